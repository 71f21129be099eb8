"""Creation of principles before training: proposals for better texts, judged by the Sufficiency Index.

A proposal rewrites one seed principle, by an edit operator or by the model itself. It is measured in its seed's place:
its completions are told apart from the other seeds of the file (from its antithesis, where there is no other seed), and

    gain = SI(proposal in the set) - SI(seed in the set)        paired by question.

Successive halving spends little on bad proposals: `schedule` gives each round about twice the questions of the one
before, and the better half goes on, until one is left. The best of many looks good by luck, so this one is judged on
fresh questions of the role `heldout`, and accepted only where the 95 % interval of its gain lies above zero there.

Only a text's own completions enter its SI, so the other seeds are never sampled, only scored with. Source:
docs/method.md, eq. 31 (our choice [D]); successive halving: Karnin, Koren and Somekh 2013,
https://proceedings.mlr.press/v28/karnin13.html
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from enigma.data.principles import MAX_CHARACTERS, Principle, load_pool
from enigma.data.questions import load_questions
from enigma.data.text import find_unsafe, normalise
from enigma.errors import InputError
from enigma.llm import prompts
from enigma.method.rewards import TAGS
from enigma.method.stats import mean_interval
from enigma.record.progress import track
from enigma.record.results import atomic_write_json

COLUMNS = (
    "seed",
    "proposal",
    "origin",
    "round",
    "questions",
    "tokens",
    "seed_tokens",
    "si_seed",
    "si_proposal",
    "gain",
    "gain_low",
    "gain_high",
    "accepted",
    "reason",
)
CAPTION = (
    "Every proposal for a better principle. round: rounds of the halving that it took part in; "
    "tokens: tokens sampled for it, its rewriting included, and seed_tokens for its seed beside all its rivals; "
    "gain_round1, ...: mean SI gain over its seed up to that round, on the questions that chose it, so it flatters; "
    "si_seed, si_proposal and gain with its 95 % interval: on fresh questions, for the last of each seed alone."
)
REWRITES = 4  # for each seed
REWRITE_TOKENS = 64
REWRITE_REQUEST = (
    "Rewrite this principle in one or two short sentences. Keep its meaning, and make it easy to see in someone's "
    "reasoning whether they follow it. Reply with the new principle alone.\n\nPrinciple: "
)

# ---------------------------------------------------------------- proposals


def concrete(text: str, others: Sequence[str]) -> list[str]:
    """The principle with a behaviour appended that a reader can observe."""
    return [
        f"{_sentence(text)} {addition}"
        for addition in ("Show it in one example.", "Name it in your first sentence.")
    ]


def imperative(text: str, others: Sequence[str]) -> list[str]:
    """The principle cut to what its first sentence asks for, without reason, purpose or condition before or after."""
    first = re.split(r"(?<=[.!?])\s", text)[0]
    asked = re.sub(r"^(?:when|if|before|after|while|where)\b[^,]*,\s*", "", first, flags=re.IGNORECASE)
    asked = re.split(r"[,;:]| (?:because|before|so that|when|even) ", asked)[0].strip()
    return [_sentence(asked[0].upper() + asked[1:])] if asked else []


def explicit(text: str, others: Sequence[str]) -> list[str]:
    """The principle with the request to show it in the chain of thought."""
    return [f"{_sentence(text)} Say so explicitly in your reasoning."]


def combine(text: str, others: Sequence[str]) -> list[str]:
    """The principle followed by the next seed. One alone: all pairs would cost the square of the seeds."""
    return [f"{_sentence(text)} {other}" for other in others[:1]]


OPERATORS = {function.__name__: function for function in (concrete, imperative, explicit, combine)}


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def cleaned(output: str) -> str:
    """A model's rewriting as a bare principle: its first line, without label, list mark, quotes or an unfinished end."""
    line = next((line.strip() for line in output.splitlines() if line.strip()), "")
    line = re.sub(r"^(?:[-*]|\d{1,2}[.)])\s+", "", line)
    line = re.sub(r"^[\w ]{0,30}principle\W{0,3}:\W{0,3}", "", line, flags=re.IGNORECASE)
    line = " ".join(line.split()).strip("\"'*` ")
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", line)]
    return line[: ends[-1]] if ends else line


def problem(text: str, taken: set[str]) -> str | None:
    """Why `text` cannot be a principle of a pool, or None. `taken` holds normal forms of the texts there are."""
    if not text:
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, more than {MAX_CHARACTERS}"
    if unsafe := find_unsafe(text):
        return unsafe
    if tag := next((tag for tag in TAGS if tag in normalise(text)), None):
        return f"format tag {tag}"
    if "\ufffd" in text:
        return "broken character"
    return "the same as another text" if normalise(text) in taken else None


@dataclass
class Proposal:
    """A text in the place of a seed, and what was learnt of it. `reason` is set once its fate is decided."""

    seed: str
    proposal: str
    origin: str
    tokens: int = 0
    reason: str = ""
    round: int = 0
    questions: int = 0
    seed_tokens: int = 0
    si_seed: float = math.nan
    si_proposal: float = math.nan
    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    accepted: bool = False
    by_round: list[float] = field(default_factory=list)  # mean gain so far, on the questions that choose

    def row(self) -> dict:
        """A row of the table `creation`."""
        values = asdict(self)
        return values | {f"gain_round{n}": gain for n, gain in enumerate(values.pop("by_round"), start=1)}


def propose(
    seeds: list[Principle],
    rewrites: list[list[tuple[str, int]]],
    fits: Callable[[str], str | None] = lambda text: None,
) -> list[list[Proposal]]:
    """The proposals for each seed: all operators', then the model's `rewrites` [seed][(text, tokens spent)].

    A text that `problem` or `fits` (the tokenizer's own rules: a reason or None) finds unfit stays in the list with its
    reason: it is logged, never measured. No text occurs twice, over all seeds and their antitheses.
    """
    texts = [p.text for p in seeds]
    taken = {normalise(text) for p in seeds for text in (p.text, p.antithesis) if text}
    proposals = []
    for i, principle in enumerate(seeds):
        others = texts[i + 1 :] + texts[:i]
        made = [(text, name, 0) for name, edit in OPERATORS.items() for text in edit(principle.text, others)]
        made += [(text, "rewrite", tokens) for text, tokens in rewrites[i]]
        mine = []
        for text, origin, tokens in made:
            reason = problem(text, taken) or fits(text)
            taken.add(normalise(text))
            # What could mislead a reader of the table is escaped.
            shown = ascii(text)[1:-1] if find_unsafe(text) else text
            mine.append(
                Proposal(principle.name, shown, origin, tokens, f"refused: {reason}" if reason else "")
            )
        proposals.append(mine)
    return proposals


def rewritings(
    model, tokenizer, seeds: list[Principle], seed: int, batch_size: int
) -> list[list[tuple[str, int]]]:
    """`REWRITES` rewritings of each seed principle by the model itself, cleaned, with the tokens that each took.

    Asked in chat, sampled at temperature 1 from `seed`.
    """
    from enigma.stages.select import sample_completions  # torch is loaded after the checks have refused

    asked = [[{"role": "user", "content": REWRITE_REQUEST + p.text}] for p in seeds for _ in range(REWRITES)]
    encoded = [prompts.encode(tokenizer, messages) for messages in asked]
    sampled = sample_completions(model, tokenizer, encoded, REWRITE_TOKENS, batch_size, seed)
    outputs = [(cleaned(tokenizer.decode(ids, skip_special_tokens=True)), len(ids)) for ids in sampled]
    return [outputs[i : i + REWRITES] for i in range(0, len(outputs), REWRITES)]


# ---------------------------------------------------------------- search

# (texts, contrasts, questions, folder's name) -> SI of each text (questions, texts) and its sampled tokens (texts,).
Score = Callable[[list[str], list[str], list[str], str], tuple[np.ndarray, np.ndarray]]


def contrasts_of(seeds: list[Principle], i: int) -> list[str]:
    """What seed i and its proposals are told apart from: the other seeds, or the antithesis of an only seed."""
    return [p.text for j, p in enumerate(seeds) if j != i] or [seeds[i].antithesis]


def schedule(proposals: int, questions: int) -> list[int]:
    """Questions seen by the end of each round: n / 2^(R-1), ..., n / 2, n, rounded up, R = log2(proposals) rounded up.

    Each round spends about as much as any other. Where n is too small to grow in every round there are fewer rounds.
    """
    rounds = math.ceil(math.log2(proposals)) if proposals else 0
    return sorted({math.ceil(questions / 2**left) for left in range(rounds)})


def halve(scores: Sequence[float], keep: int) -> list[int]:
    """The indices of the `keep` highest scores, in their order. Of equal ones the earlier is kept."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:keep]
    return sorted(best)


def search(
    seeds: list[Principle],
    proposals: list[list[Proposal]],
    questions: list[str],
    fresh: list[str],
    score: Score,
    boot: dict,
) -> pd.DataFrame:
    """Successive halving on `questions`, then the last proposal of each seed against its seed on `fresh` ones.

    `score` measures; `boot` goes to `enigma.method.stats.mean_interval`. Returns the table `creation`: a row for each proposal
    with `COLUMNS` and `gain_round1`, ..., the mean gain up to that round.
    """
    for i, mine in enumerate(track(proposals, "creating principles", unit="principle")):
        measured = _measurer(seeds, i, mine, score)
        for last in _halving([p for p in mine if not p.reason], questions, measured):
            _judge(last, measured([last], fresh, "fresh"), boot)
    rows = [proposal.row() for mine in proposals for proposal in mine]
    rounds = sorted({column for row in rows for column in row if column.startswith("gain_round")})
    return pd.DataFrame(rows, columns=[*COLUMNS, *rounds]).astype({"accepted": bool})


def _measurer(seeds: list[Principle], i: int, mine: list[Proposal], score: Score):
    """A function that measures some of seed i's proposals beside the seed, and books what it spends."""

    def measured(alive: list[Proposal], questions: list[str], step: str) -> np.ndarray:
        texts = [seeds[i].text, *(p.proposal for p in alive)]
        si, tokens = score(texts, contrasts_of(seeds, i), questions, f"seed-{i:02d}-{step}")
        for proposal, spent in zip(alive, tokens[1:], strict=True):
            proposal.tokens += int(spent)
            proposal.questions += len(questions)
        for proposal in mine:
            proposal.seed_tokens += int(tokens[0])
        return si

    return measured


def _halving(alive: list[Proposal], questions: list[str], measured) -> list[Proposal]:
    """The survivor, in a list that is empty where there was no proposal."""
    gains, seen = np.empty((0, len(alive))), 0
    ends = schedule(len(alive), len(questions))
    for number, end in enumerate(ends, start=1):
        si = measured(alive, questions[seen:end], f"round-{number}")
        gains, seen = np.concatenate([gains, si[:, 1:] - si[:, :1]]), end
        means = gains.mean(0).tolist()
        best = halve(means, 1 if end == ends[-1] else math.ceil(len(alive) / 2))
        for j, proposal in enumerate(alive):
            proposal.round = number
            proposal.by_round.append(means[j])
            if j not in best:
                proposal.reason = f"not among the best {len(best)} of {len(alive)} in round {number}"
        alive, gains = [alive[j] for j in best], gains[:, best]
    return alive


def _judge(proposal: Proposal, si: np.ndarray, boot: dict) -> None:
    """Accept or not; `si` is (fresh questions, 2), the seed's first."""
    interval = mean_interval(si[:, 1] - si[:, 0], **boot)
    proposal.si_seed, proposal.si_proposal = map(float, si.mean(0))
    proposal.gain, proposal.gain_low, proposal.gain_high = interval
    proposal.accepted = bool(interval.low > 0)
    side = "above" if proposal.accepted else "below" if interval.high < 0 else "not clear of"
    proposal.reason = f"the interval of the gain on fresh questions is {side} zero"


# ---------------------------------------------------------------- measuring with a model


def model_score(
    model, tokenizer, *, spec, placement, demonstration, seed: int, folder: Path, key: str
) -> Score:
    """A `Score` that samples under each text and scores the samples under it and the contrasts, over the reasoning span.

    `spec` is the profile's `sufficiency` block. Finished parts are kept in `folder`/<name> and reused while `key`, the
    texts and the questions are the same.
    """
    from enigma.stages.select import Block, sample_completions, score_blocks

    def part(texts: list[str], contrasts: list[str], asked: list[str]) -> list[dict]:
        encoded = [
            [
                prompts.encode(tokenizer, prompts.messages(q, text, placement, demonstration))
                for text in texts + contrasts
            ]
            for q in asked
        ]
        others = tuple(range(len(texts), len(texts) + len(contrasts)))
        blocks = [Block((t, *others), (t,) + (-1,) * len(others)) for t in range(len(texts))]
        source = [t for t in range(len(texts)) for _ in range(spec.samples)]
        flat = [ids[t] for ids in encoded for t in source]
        drawn = seed + int(_digest(texts, contrasts, asked)[:8], 16)
        sampled = sample_completions(model, tokenizer, flat, spec.max_tokens, spec.batch_size, drawn)
        results = []
        for i, ids in enumerate(encoded):
            mine = sampled[i * len(source) : (i + 1) * len(source)]
            scored = score_blocks(model, tokenizer, ids, mine, source, blocks)
            results.append(
                {
                    "si": [own_sufficiency(block["reasoning"]) for block in scored],
                    "tokens": [
                        sum(len(y) for y, t in zip(mine, source, strict=True) if t == own)
                        for own in range(len(texts))
                    ],
                }
            )
        return results

    def score(texts, contrasts, questions, name):
        size = max(1, spec.batch_size // (len(texts) * spec.samples))
        done = []
        for index, start in enumerate(range(0, len(questions), size)):
            asked = questions[start : start + size]
            path = folder / name / f"part-{index:03d}.json"
            done += kept(
                path, _digest(key, texts, contrasts, asked), lambda asked=asked: part(texts, contrasts, asked)
            )
        return np.array([q["si"] for q in done]), np.array([q["tokens"] for q in done]).sum(0)

    return score


def own_sufficiency(scores) -> float:
    """SI of the text in column 0, from an (N, K) matrix of its own completions' summed log-probabilities in nats.

    The row bound of a completion is its pointwise mutual information with its own text.
    """
    import torch

    from enigma.method.infonce import pointwise_mutual_information

    scores = torch.as_tensor(scores, dtype=torch.float64)
    return float(pointwise_mutual_information(scores)[:, 0].mean()) / math.log(scores.shape[1])


def kept(path: Path, key: str, make: Callable[[], list]) -> list:
    """What `make` returns, from the file `path` where it was written under the same `key`."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key:
            return found["value"]
    value = make()
    atomic_write_json(path, {"key": key, "value": value})
    return value


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the command


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
    """Propose, search, and write the table `creation` and the pool `created_principles`. Returns the table.

    Model, prompts, sample sizes and the numbers of questions (`select` to search, `heldout` to judge) are the profile's.
    """
    from enigma.llm.loading import load_model

    spec = profile.sufficiency
    questions = load_questions(profile.questions, "select", spec.questions, profile.seeds.data)
    fresh = load_questions(profile.questions, "heldout", spec.heldout, profile.seeds.data)
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    folder = results.runs / "create"
    sampling = profile.seeds.sampling
    rewrites = kept(
        folder / "rewrites.json",
        _digest(profile.hash, REWRITE_REQUEST, [p.text for p in seeds]),
        lambda: rewritings(model, tokenizer, seeds, sampling, spec.batch_size),
    )
    score = model_score(
        model,
        tokenizer,
        spec=spec,
        placement=profile.prompts.placement,
        demonstration=profile.prompts.demonstration,
        seed=sampling,
        folder=folder,
        key=profile.hash,
    )
    boot = dict(resamples=spec.resamples, seed=profile.seeds.bootstrap)
    proposals = propose(seeds, rewrites, lambda text: _token_problem(tokenizer, text))
    table = search(seeds, proposals, questions, fresh, score, boot)
    results.write_table("creation", table, CAPTION)
    results.write_yaml(
        "created_principles",
        created_pool(seeds, table),
        "The seeds as a pool, with each accepted proposal in its seed's place; `source` says which these are.",
        inputs=("creation",),
    )
    return table


def _token_problem(tokenizer, text: str) -> str | None:
    try:
        prompts.fit_template(tokenizer, [{"role": "user", "content": text}])
    except InputError:
        return "special token of this model"
    return None


def created_pool(seeds: list[Principle], table: pd.DataFrame) -> dict:
    """What `load_pool` reads: every seed, its text replaced where a proposal was accepted."""
    pool = {p.name: p for p in seeds}
    for row in table[table["accepted"]].itertuples():
        gain = f"{row.gain:.3g} [{row.gain_low:.3g}, {row.gain_high:.3g}]"
        source = f"created from {row.seed} by {row.origin}, SI gain on fresh questions {gain}"
        pool[row.seed] = replace(pool[row.seed], text=row.proposal, source=source)
    return {"principles": [{key: text for key, text in asdict(p).items() if text} for p in pool.values()]}
