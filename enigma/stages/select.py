"""Stage 1: which principles does the untrained model's chain of thought carry?

For every question the untrained model writes a completion under every principle of a pool; each is scored under all of
them. From the score matrices follow SI (docs/method.md, eq. 11 to 13) per principle and per set, with intervals over
questions, and the sets that stage 2 trains on.
"""

import math
import re
import sys
from functools import cache, partial

import numpy as np
import pandas as pd

from enigma import stages
from enigma.data.principles import Principle, load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.method import stability
from enigma.method import sufficiency as si
from enigma.record.cache import Piece, Store
from enigma.record.files import read_json

NAME = "01_select"
SPANS = ("reasoning", "completion")
CAPTIONS = {
    "sufficiency": "Sufficiency of principles and sets on the untrained model, si = I / log K, with 95 % intervals over "
    "questions: every completion speaks for every principle by its exact posterior (Rao-Blackwell). information: the same "
    "in nats. si_plain: from the completions sampled under a principle alone. si_paraphrase: of some of the questions, read "
    "under independent paraphrases, a lower bound that repeating a principle's own words does not raise. The sets were "
    "chosen on these questions, so their own SI flatters them; the table legibility measures them on others. Where the "
    "model computes in bfloat16, rounding alone moves one completion's contrast between principles by about 0.2 nats and the "
    "information of a set by up to 0.03 nats; in float32 by nothing that shows here.",
    "sufficiency_items": "Each principle's information (nats, weighted) and weight question by question, reasoning span: the "
    "rows that si and its intervals are made from.",
    "selection": "The sets that stage 2 trains on, by SI over the reasoning span.",
    "selection_stability": "How stable is the selection? in_high and in_low: share of the bootstrap resamples of the "
    "questions in which a principle is in the set of highest and of lowest SI. si_first and si_second: its SI on two "
    "disjoint halves of the questions (one split of many; the table test_retest averages them).",
    "test_retest": "Spearman's rank correlation of the principles' SI between two disjoint halves of the questions, mean "
    "and central 95 % over random splits; full: stepped up by Spearman and Brown to what all questions would give "
    "against as many others.",
    "echo": "Share of completions that repeat a content word of the principle they were written under (own) and, for "
    "comparison, of another principle of the pool (other).",
}


# ---- measuring -----------------------------------------------------------------------------------------------------


def pieces(profile, store: Store) -> list[Piece]:
    """One piece for as many questions as are sampled in one batch."""
    return pool_pieces(profile, load_pool(profile.principles.pool), "pool")


def pool_pieces(profile, pool: list[Principle], name: str) -> list[Piece]:
    """The pieces of measuring `pool` as the profile says; `name` tells this pool's from others'."""
    from enigma.llm.loading import fingerprint

    spec = profile.sufficiency
    questions = load_questions(profile.questions, "select", spec.questions, profile.seeds.data)
    step = max(1, spec.batch_size // (len(pool) * spec.samples))
    common = {
        "model": fingerprint(profile.model, profile.seeds.initialisation),
        "prompts": profile.prompts.model_dump(),
        "texts": [p.text for p in pool],
        **{key: getattr(spec, key) for key in ("samples", "max_tokens", "batch_size")},
    }
    parts = [
        {"questions": side[i : i + step], "wordings": read}
        for side, read in (
            (questions[: spec.echo], wordings(pool) if spec.echo else []),
            (questions[spec.echo :], []),
        )
        for i in range(0, len(side), step)
    ]
    return [
        Piece("select", f"{name}-{i:03d}", {**common, **part, "seed": profile.seeds.sampling + i})
        for i, part in enumerate(parts)
    ]


def wordings(pool: list[Principle]) -> list[list[str]]:
    """The further wordings of a pool, each in the pool's order. Raises InputError for a principle without a paraphrase."""
    if bare := [p.name for p in pool if not p.paraphrases]:
        raise InputError(
            f"principle {bare[0]!r}: found no paraphrases; expected at least one, for sufficiency.echo; add one under "
            "paraphrases, or set sufficiency.echo to 0"
        )
    return [[p.paraphrases[0] for p in pool]]


def measure(profile, store: Store) -> dict:
    """The score matrices of every question, question by question: see `enigma.llm.matched.sample_and_score`."""
    return {"questions": measure_pieces(profile, store, pieces(profile, store))}


def measure_pieces(profile, store: Store, todo: list[Piece], load=None) -> list[dict]:
    """Rows of all pieces; the model is loaded only where one has to be made, by `load` where that is given."""
    load = load or cache(lambda: load_untrained(profile))
    keys = ("samples", "max_tokens", "batch_size", "seed", "wordings", "sets")

    def made(recipe: dict) -> list[dict]:
        from enigma.llm.matched import sample_and_score

        options = {key: recipe[key] for key in keys if key in recipe}
        return sample_and_score(*load(), recipe["questions"], recipe["texts"], recipe["prompts"], **options)

    work = [(piece, partial(made, piece.ingredients)) for piece in todo]
    parts = stages.made(store.rows, store, work, "sampling and scoring", "part")
    return [row for part in parts for row in part]


def load_untrained(profile):
    """(model, tokenizer) of the profile, before any training. InputError where it lacks a layer that is to be trained."""
    from enigma.llm.check import check_layers
    from enigma.llm.loading import load_model

    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    matrices = [name for name, weight in model.named_parameters() if weight.ndim == 2]
    check_layers(profile.trainer.lora.target_modules, sorted({name.split(".")[-2] for name in matrices}))
    return model, tokenizer


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """`sufficiency`, `selection`, `selection_stability`, `test_retest` and `echo`, from the score matrices."""
    pool = load_pool(profile.principles.pool)
    questions = raw["questions"]
    sets = _sets(profile, pool, questions)
    scores = [row["reasoning"] for row in questions]
    by_principle = si.principle_information(scores)
    candidates = _candidates(profile, pool)
    ratio, draws = si.set_information(scores, candidates), profile.sufficiency.resamples
    shares = stability.selection_shares(ratio, candidates, len(pool), draws, profile.seeds.bootstrap)
    halves = stability.split_halves(by_principle, 1, profile.seeds.bootstrap)
    chosen = [next((name for name in ("high", "low") if i in sets[name]), "") for i in range(len(pool))]
    first, second = (si.share_of_known(half[:, 0], len(pool)) for half in halves)
    names = [p.name for p in pool]
    stable = {"principle": names, "chosen": chosen, "in_high": shares[0], "in_low": shares[1]}
    retest = [_retest_row(span, questions, profile.seeds.bootstrap) for span in SPANS]
    return {
        "sufficiency": sufficiency_table(pool, questions, sets, boot(profile)),
        "sufficiency_items": _items(names, by_principle),
        "selection": _selection(pool, sets),
        "selection_stability": pd.DataFrame(stable | {"si_first": first, "si_second": second}),
        "test_retest": pd.DataFrame(retest),
        "echo": pd.DataFrame([echo_rates(pool, questions)]),
    }


def sufficiency_table(
    pool: list[Principle], questions: list[dict], sets: dict[str, tuple[int, ...]], boot: dict
) -> pd.DataFrame:
    """SI of every principle within the pool, and of the named sets and the whole pool, for both spans.

    `boot`: resamples and seed of the intervals.
    """
    everything = {**sets, "pool": tuple(range(len(pool)))}
    rows = []
    for span in SPANS:
        scores, source = [row[span] for row in questions], [row["source"] for row in questions]
        # Only some of the questions were also read under paraphrases, and only over the reasoning span.
        echoed = [row for row in questions if span == "reasoning" and row["wordings"]]
        again = [row[span] for row in echoed], [row["wordings"][0] for row in echoed]
        single, plain = si.principle_information(scores), si.sampled_information(scores, source)
        echo_free = si.principle_information(*again) if echoed else None
        for i, p in enumerate(pool):
            head = {"level": "principle", "name": p.name, "family": p.family, "members": p.name, "span": span}
            rows.append(
                head | _row(len(pool), single.at(i), plain.at(i), echo_free and echo_free.at(i), boot)
            )
        for name, members in everything.items():
            kept = si.within(scores, source, members)
            names = ";".join(pool[i].name for i in members)
            head = {"level": "set", "name": name, "members": names, "span": span}
            own, sampled = si.set_information(scores, [members]), si.pooled(si.sampled_information(*kept))
            echo_free_set = si.set_information(again[0], [members], again[1]).at(0) if echoed else None
            rows.append(head | _row(len(members), own.at(0), sampled, echo_free_set, boot))
    return pd.DataFrame(rows)


def boot(profile) -> dict:
    return {"resamples": profile.sufficiency.resamples, "seed": profile.seeds.bootstrap}


def _items(names: list[str], ratio: si.Ratio) -> pd.DataFrame:
    principles, questions = ratio.weight.shape
    columns = {
        "principle": np.repeat(names, questions),
        "question": np.tile(np.arange(questions), principles),
    }
    return pd.DataFrame(columns | {"information": ratio.information.ravel(), "weight": ratio.weight.ravel()})


def _row(k: int, own: si.Ratio, plain: si.Ratio, paraphrase: si.Ratio | None, boot: dict) -> dict:
    found = {"si": own.interval(k, **boot), "si_plain": plain.interval(k, **boot)}
    if paraphrase is not None:
        found["si_paraphrase"] = paraphrase.interval(k, floor=-math.inf, **boot)
    row = {"k": k, "questions": len(own.weight), "information": found["si"].value * np.log(k)}
    for name, interval in found.items():
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def _retest_row(span: str, questions: list[dict], seed: int) -> dict:
    ratio = si.principle_information([row[span] for row in questions])
    found = stability.test_retest(ratio, seed=seed)
    row = {"span": span, "principles": len(ratio.weight), "questions_per_half": len(questions) // 2}
    row |= {"correlation": found.value, "low": found.low, "high": found.high}
    return row | {"full": stability.stepped_up(found.value)}


def echo_rates(pool: list[Principle], questions: list[dict]) -> dict:
    """Shares of completions, in [0, 1], that repeat a content word (five letters or more) of a principle."""
    words = [content_words(p.text) for p in pool]
    common = {word for mine in words for word in mine if sum(word in other for other in words) > 1}
    own, other = [], []
    for row in questions:
        for k, text in zip(row["source"], row["texts"], strict=True):
            found = content_words(text)
            hits = [bool((mine - common) & found) for mine in words]
            own.append(hits[k])
            other.append(np.mean([hit for j, hit in enumerate(hits) if j != k]))
    return {"own": np.mean(own), "other": np.mean(other), "completions": len(own)}


def content_words(text: str) -> set[str]:
    """Words of five letters or more, in lower case."""
    return set(re.findall(r"[a-z]{5,}", text.lower()))


# ---- the selection -------------------------------------------------------------------------------------------------


def chosen_sets(profile, store: Store) -> dict[str, list[Principle]]:
    """The principles of the sets that stage 1 chooses, under the names that the profile's arms have for them.

    Raises NotDone where stage 1 has not been measured.
    """
    pool = load_pool(profile.principles.pool)
    questions = [
        row for piece in pieces(profile, store) for row in read_json(store.need(piece) / "rows.json")
    ]
    return {name: [pool[i] for i in members] for name, members in _sets(profile, pool, questions).items()}


def _sets(profile, pool: list[Principle], questions: list[dict]) -> dict[str, tuple[int, ...]]:
    candidates = _candidates(profile, pool)
    values = si.set_sufficiency_index([row["reasoning"] for row in questions], candidates)
    try:
        return si.select(values, candidates, profile.sets())
    except ValueError as error:
        raise InputError(f"principles.set_size: {profile.principles.set_size}: {error}; lower it") from None


def _candidates(profile, pool: list[Principle]) -> np.ndarray:
    spec = profile.principles
    try:
        return si.candidate_sets(
            [p.family or "" for p in pool], spec.set_size, spec.balanced, seed=profile.seeds.bootstrap
        )
    except ValueError as error:
        raise InputError(f"principles.balanced: {error}; set it to false, or add principles") from None


def _selection(pool: list[Principle], sets: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    rows = [
        (name, pool[i].name, pool[i].family, pool[i].text) for name, members in sets.items() for i in members
    ]
    return pd.DataFrame(rows, columns=["set", "principle", "family", "text"])


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 1: measure the pool on the untrained model, choose the sets. Returns and writes the tables."""
    return stages.run(sys.modules[__name__], profile, results)


def rank(profile, pool: list[Principle], store: Store) -> pd.DataFrame:
    """The principles of a pool, two or more, from the highest to the lowest SI over the reasoning span.

    Model, prompts, questions and sample sizes are the profile's.
    """
    questions = measure_pieces(profile, store, pool_pieces(profile, pool, "own"))
    table = sufficiency_table(pool, questions, {}, boot(profile))
    table = table[(table.level == "principle") & (table.span == "reasoning")]
    return table.sort_values("si", ascending=False).reset_index(drop=True)
