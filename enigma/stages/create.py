"""Creation of principles before training: proposals for better texts, judged by the Sufficiency Index.

A proposal stands in its seed's place among the other seeds (or beside an only seed's antithesis). Its gain (eq. 31) is
estimated by eq. 12, for which the whole set is sampled: the seeds once, for all proposals that are left. Its completions
are also read with the seed's wording, as the reader q of eq. 12: a text that only its own words can read does not mean
what its seed means. Halving asks more questions each round, and the better half by the smaller gain goes on. The
best of many looks good by luck, so the last of each seed is judged on fresh questions. Source: docs/method.md,
section 11 (our choice [D]); halving: Karnin, Koren and Somekh 2013, https://proceedings.mlr.press/v28/karnin13.html
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import check_questions, count_questions, load_questions
from enigma.errors import InputError
from enigma.method import sufficiency as si
from enigma.record.cache import Piece, Store
from enigma.record.files import atomic_write_text, plain
from enigma.record.results import RECORD
from enigma.stages import proposals as proposing
from enigma.stages import select
from enigma.stages.proposals import Proposal

NAME = "create"
POOL = "created_principles.yaml"
FRESH = 36  # questions that judge, or as many as there are
COLUMNS = (
    *("seed", "seed_text", "origin", "text", "similarity", "round", "questions", "gain_search"),
    *("si_seed", "si", "gain", "gain_low", "gain_high", "si_read", "accepted", "reason"),
)
CAPTIONS = {
    "creation": "Every proposal for a better principle. similarity: cosine to its seed by the sentence encoder. gain_search: the "
    "smaller of its gains on the questions that chose, so it flatters. For the last of each seed, on fresh questions: SI "
    "of the seed and of the text in its place, the gain with an interval that holds for all these texts together (95 %, "
    "Bonferroni), and si_read: SI of its completions by the seed's wording. Accepted: gain_low > 0 and si_read >= si_seed."
}

# (texts, role, first question, end) -> rows of `sample_and_score` under the set and `texts`, one for each question.
Ask = Callable[[list[str], str, int, int], list[dict]]


class Reading(NamedTuple):
    """Information by question: of a text in its seed's place, of the seed, of the text's completions by the seed's wording."""

    own: si.Ratio
    seed: si.Ratio
    read: si.Ratio


def reading(rows: list[dict], k: int, place: int, column: int) -> Reading:
    """Of the text in `column` of score matrices whose first `k` columns are the set, put in the set's `place`."""
    base = list(range(k))
    members = [column if i == place else i for i in base]

    def side(own: list[int], reader: list[int]) -> si.Ratio:
        mine = [np.array(row["reasoning"], float)[np.isin(row["source"], own)] for row in rows]
        found = si.principle_information([m[:, own] for m in mine], [m[:, reader] for m in mine])
        return si.Ratio(found.information[place], found.weight[place])

    return Reading(own=side(members, members), seed=side(base, base), read=side(members, base))


def joined(parts: list[Reading]) -> Reading:
    """The questions of several readings together."""
    return Reading(*(si.Ratio(*np.concatenate(side, axis=-1)) for side in zip(*parts, strict=True)))


def schedule(proposals: int, questions: int) -> list[int]:
    """Questions seen by the end of each round: n / 2^(R-1), ..., n / 2, n, rounded up, R = log2(proposals) rounded up.

    Each round spends about as much as any other. Where n is too small to grow in every round there are fewer rounds.
    """
    rounds = math.ceil(math.log2(proposals)) if proposals else 0
    return sorted({math.ceil(questions / 2**left) for left in range(rounds)})


def search(seeds: list, proposals: list[Proposal], ask: Ask, questions: int, fresh: int) -> pd.DataFrame:
    """Successive halving on `questions`, then the last proposal of each seed against its seed on `fresh` ones.

    `ask` measures: its rows have the set's texts (`set_texts`) in the first columns, and those that it was given after
    them. Returns the table `creation`, a row for each proposal.
    """
    texts, places = {p.name: p.text for p in seeds}, {p.name: i for i, p in enumerate(seeds)}
    k = len(set_texts(seeds))
    rows = {id(p): asdict(p) | {"seed_text": texts[p.seed], "round": 0, "accepted": False} for p in proposals}
    alive = {name: [p for p in proposals if p.seed == name and not p.reason] for name in places}
    parts: dict[int, list[Reading]] = {own: [] for own in rows}

    def measured(some: list[Proposal], role: str, start: int, end: int) -> list[Reading]:
        found = ask([p.text for p in some], role, start, end) if some else []
        return [reading(found, k, places[p.seed], k + j) for j, p in enumerate(some)]

    ends = schedule(max(map(len, alive.values())), questions)
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), start=1):
        racing = [p for mine in alive.values() if len(mine) > 1 for p in mine]
        for one, found in zip(racing, measured(racing, "select", start, end), strict=True):
            parts[id(one)].append(found)
            so_far = joined(parts[id(one)])
            gain = min(side.gain(so_far.seed, k).value for side in (so_far.own, so_far.read))
            rows[id(one)] |= {"round": number, "questions": end, "gain_search": gain}
        for name, mine in alive.items():
            keep = 1 if end == ends[-1] else math.ceil(len(mine) / 2)
            ranked = sorted(mine, key=lambda p: -rows[id(p)].get("gain_search", 0.0))
            for one in ranked[keep:]:
                rows[id(one)]["reason"] = f"not among the best {keep} of {len(mine)} in round {number}"
            alive[name] = ranked[:keep]
    last = [p for mine in alive.values() for p in mine]
    for one, found in zip(last, measured(last, "heldout", 0, fresh), strict=True):
        rows[id(one)] |= judged(found, k, len(last))
    table = pd.DataFrame(list(rows.values()), columns=COLUMNS)
    numbers = [name for name in COLUMNS if name.startswith(("gain", "si")) or name == "questions"]
    return table.astype({name: float for name in numbers} | {"accepted": bool})


def judged(found: Reading, k: int, tried: int) -> dict:
    """Whether a text is accepted, and the numbers that say so; `tried` texts were judged with it."""
    gain = found.own.gain(found.seed, k, 1 - 0.05 / tried)
    own, seed, read = (float(side.sufficiency(k)) for side in found)
    reason = "" if read >= seed else "its completions carry less by the seed's wording than the seed's own"
    if not gain.low > 0:
        reason = f"the interval of the gain is {'below' if gain.high < 0 else 'not clear of'} zero"
    row = {"si_seed": seed, "si": own, "si_read": read, "accepted": not reason, "reason": reason}
    return row | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}


def set_texts(seeds: list[Principle]) -> list[str]:
    """What a proposal and its seed are told apart within: all seeds, or an only seed and its antithesis."""
    return [p.text for p in seeds] if len(seeds) > 1 else [seeds[0].text, seeds[0].antithesis]


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(profile, store: Store, seeds: list[Principle]) -> tuple[dict, list[Piece]]:
    """Raw rows from which `tables` makes the table again, and the pieces that hold them."""
    load = functools.cache(lambda: select.load_untrained(profile))
    found, used = proposing.make(profile, store, seeds, load)
    spec = profile.sufficiency
    fresh = min(max(FRESH, spec.heldout), count_questions(profile.questions, "heldout", profile.seeds.data))
    counts = {"questions": spec.questions, "fresh": fresh}
    raw = {"profile": profile.hash, "seeds": [asdict(p) for p in seeds], "counts": counts, "steps": []}
    raw["proposals"] = [asdict(p) for p in found]

    def ask(texts: list[str], role: str, start: int, end: int) -> list[dict]:
        todo = pieces(profile, set_texts(seeds), texts, role, start, end)
        used.extend(todo)
        raw["steps"].append(select.measure_pieces(profile, store, todo, load))
        return raw["steps"][-1]

    search(seeds, found, ask, **counts)
    return raw, used


def pieces(profile, among: list[str], texts: list[str], role: str, start: int, end: int) -> list[Piece]:
    """The pieces of measuring `texts` with the set `among`: one for as many questions as are sampled in one batch."""
    from enigma.llm.loading import fingerprint

    spec, k = profile.sufficiency, len(among)
    asked = load_questions(profile.questions, role, end, profile.seeds.data)
    step = max(1, spec.batch_size // ((k + len(texts)) * spec.samples))
    common = {
        "model": fingerprint(profile.model, profile.seeds.initialisation),
        "prompts": profile.prompts.model_dump(),
        "texts": among + texts,
        "sets": [[*range(k), k + j] for j in range(len(texts))],
        **{key: getattr(spec, key) for key in ("samples", "max_tokens", "batch_size")},
    }
    seed = profile.seeds.sampling if role == "select" else profile.seeds.evaluation
    parts = [{"questions": asked[i : min(i + step, end)], "seed": seed + i} for i in range(start, end, step)]
    return [Piece("create", f"{role}-{i:03d}", {**common, **part}) for i, part in enumerate(parts, start)]


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """`creation`, by the same search with what was measured."""
    steps = iter(raw["steps"])
    given = [Proposal(**{key: cell for key, cell in p.items() if cell is not None}) for p in raw["proposals"]]
    seeds = [Principle(**one) for one in raw["seeds"]]
    return {"creation": search(seeds, given, lambda *_: next(steps), **raw["counts"])}


def kept(profile, results) -> bool:
    """Whether the results hold a creation that was made with this very profile."""
    try:
        return results.read_raw(NAME)["profile"] == profile.hash
    except (InputError, LookupError, TypeError):
        return False


def load_seeds(name_or_path: str) -> list[Principle]:
    """The seed principles of a file. InputError as `load_pool`, and for one seed that has nothing to be told apart from."""
    seeds = load_pool(name_or_path)
    if len(seeds) < 2 and not seeds[0].antithesis:
        raise InputError(
            f"{name_or_path}: found 1 principle without an antithesis; expected at least 2 principles, or "
            "an antithesis to tell it apart from; add one"
        )
    return seeds


def run(profile, seeds: list[Principle], results) -> pd.DataFrame:
    """Propose, search, and write the table `creation`, its rows, and the pool `POOL` beside it. Returns the table.

    Model, prompts, sample sizes and the questions of the search are the profile's. Raises InputError where the folder
    holds the results of another profile of that name.
    """
    from enigma.llm.check import check_model

    found = results.read_record()["profile_hash"] if (results.folder / RECORD).is_file() else profile.hash
    if found != profile.hash:
        raise InputError(
            f"{results.folder}: found results of another profile ({found}); expected {profile.hash}; choose another "
            "folder with --results, or run this profile first"
        )
    check_questions(profile.questions, {"select": profile.sufficiency.questions, "heldout": 2})
    check_model(profile.model)
    with results.lock():
        raw, used = measure(profile, results.store, seeds)
        table = tables(profile, raw, {})["creation"]
        made = [results.store.made(piece) for piece in used]
        results.write_raw(NAME, raw)
        results.write_table("creation", table, CAPTIONS["creation"], NAME, made=made)
        pool = yaml.safe_dump(created_pool(seeds, table), sort_keys=False, allow_unicode=True)
        atomic_write_text(results.tables / POOL, pool)
    return table


def created_pool(seeds: list[Principle], table: pd.DataFrame) -> dict:
    """What `load_pool` reads: every seed, its text replaced where a proposal was accepted; `source` says so.

    A new text has no paraphrases: those of its seed are not its own.
    """
    pool = {p.name: p for p in seeds}
    for row in table[table["accepted"]].itertuples():
        gain = f"{row.gain:.3g} [{row.gain_low:.3g}, {row.gain_high:.3g}]"
        source = f"created from {row.seed} by {row.origin}, SI gain on fresh questions {gain}"
        pool[row.seed] = replace(pool[row.seed], text=row.text, source=source, paraphrases=())
    entries = [{key: cell for key, cell in asdict(p).items() if cell} for p in pool.values()]
    return plain({"principles": entries})
