"""Stage 1: which principles does the untrained model's chain of thought carry?

For every question the untrained model writes completions under every text of a pool; each completion is scored under
the texts it competes with; from the score matrices follow the mutual-information bounds and the Sufficiency Index,

    SI = I_row / log K        (METHOD.md section 6; our choice, not the paper's formula)

per principle and per set, with intervals over questions. High-SI and low-SI sets follow from the same matrices.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm import prompts
from enigma.llm.sampling import prompt_cache
from enigma.llm.scoring import completion_logprobs, reasoning_tokens
from enigma.method import stability
from enigma.method.infonce import infonce_terms, pointwise_mutual_information
from enigma.method.stats import mean_interval
from enigma.record.progress import track
from enigma.record.results import atomic_write_json, atomic_write_text, csv_text
from enigma.record.runlock import one_writer

SPANS = ("reasoning", "completion")


@dataclass(frozen=True)
class Block:
    """Texts that compete: the columns of one score matrix. `members[j]` is the principle that text j belongs to."""

    texts: tuple[int, ...]
    members: tuple[int, ...]


def contrast_blocks(principles: list[Principle], contrast: str) -> tuple[list[str], list[Block]]:
    """The texts to sample under, and which of them compete.

    `others`: one block, each principle against all others. `antithesis`: a block of two for each principle.
    `both`: one block of all principles and antitheses. Source: our choice (METHOD.md section 4).

    Raises:
        InputError: a contrast with antitheses and a principle without one.
    """
    k = len(principles)
    if contrast == "others":
        return [p.text for p in principles], [Block(tuple(range(k)), tuple(range(k)))]
    missing = [p.name for p in principles if not p.antithesis]
    if missing:
        raise InputError(
            f"principle {missing[0]!r}: no antithesis, which contrast {contrast!r} needs; add one or use 'others'"
        )
    texts = [p.text for p in principles] + [p.antithesis for p in principles]
    if contrast == "antithesis":
        return texts, [Block((i, k + i), (i, -1)) for i in range(k)]
    return texts, [Block(tuple(range(2 * k)), tuple(range(k)) + (-1,) * k)]


@torch.no_grad()
def sample_completions(
    model, tokenizer, encoded: list[list[int]], max_tokens: int, batch_size: int, seed: int
):
    """One completion for each encoded prompt: temperature 1, no truncation of the distribution, end token kept.

    Returns lists of token ids of at most `max_tokens`. Sampling has its own seed and leaves the global generators as
    they were. Source: METHOD.md section 6 (the bounds hold for on-policy samples).
    """
    devices = [model.device] if model.device.type == "cuda" else []
    completions = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(encoded), batch_size):
            batch = tokenizer.pad(
                {"input_ids": encoded[start : start + batch_size]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model.generate(
                **batch,
                past_key_values=prompt_cache(model, **batch),
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            ends = _end_tokens(model, tokenizer)
            completions += [
                _until_end(ids, ends) for ids in output[:, batch["input_ids"].shape[1] :].tolist()
            ]
    return completions


def _end_tokens(model, tokenizer) -> set[int]:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for t, token in enumerate(ids):
        if token in ends:
            return ids[: t + 1]
    return ids


@torch.no_grad()
def score_blocks(
    model, tokenizer, encoded, completions, source, blocks: list[Block], rows: int = 2
) -> list[dict]:
    """Summed log-probabilities of one question's completions under the texts that they compete with.

    Args:
        encoded: token ids of the question under each text.
        completions: token ids; `source[i]` is the text that completion i was sampled under.
        blocks: which texts compete.
        rows: prompts in one forward; a matter of memory alone.

    Returns:
        For each block `{"source": [...], "reasoning": (N, K) list, "completion": (N, K) list}` in nats, the source
        counted within the block. Sums include the end token of a completion that stopped by itself.
    """
    device = model.device
    prompt_ids = [torch.tensor(ids, device=device) for ids in encoded]
    tensors = [torch.tensor(ids, device=device) for ids in completions]
    spans = torch.tensor([reasoning_tokens(tokenizer, ids) for ids in completions], device=device)
    results = []
    for block in blocks:
        mine = [i for i, text in enumerate(source) if text in block.texts]
        columns = []
        for start in range(0, len(block.texts), rows):
            chosen = [prompt_ids[j] for j in block.texts[start : start + rows]]
            columns.append(completion_logprobs(model, chosen, [tensors[i] for i in mine]).logps)
        logps = torch.cat(columns)
        within = torch.arange(logps.shape[-1], device=device) < spans[mine][:, None]
        results.append(
            {
                "source": [block.texts.index(source[i]) for i in mine],
                "reasoning": (logps * within).sum(-1).T.tolist(),
                "completion": logps.sum(-1).T.tolist(),
            }
        )
    return results


class Values(NamedTuple):
    """Question by question, in nats: row bound, column bound and the column bound's share of its limit, (questions,)."""

    row: np.ndarray
    column: np.ndarray
    share: np.ndarray


def bound_values(
    scores: list, source: list, principle: int | None = None, keep: list[int] | None = None
) -> Values:
    """The bounds of every question, over all completions or over one principle's.

    `scores` holds an (N, K) matrix of summed log-probabilities for each question, `source` the (N,) columns that the
    completions were sampled under. With `keep` those columns alone, and the completions sampled under them, take
    part: a subset is scored without a new forward. `principle` counts within `keep`. Raises the errors of
    `enigma.method.infonce`. Source: METHOD.md section 6.
    """
    return Values(
        *np.array([_question_bounds(s, k, principle, keep) for s, k in zip(scores, source, strict=True)]).T
    )


def _question_bounds(scores, source, principle, keep) -> tuple[float, float, float]:
    scores = torch.as_tensor(np.asarray(scores), dtype=torch.float64)
    source = torch.as_tensor(np.asarray(source))
    if keep is not None:
        member = torch.isin(source, torch.tensor(keep))
        scores = scores[member][:, keep]
        source = torch.tensor([keep.index(k) for k in source[member].tolist()])
    terms = infonce_terms(pointwise_mutual_information(scores), source)
    mine = slice(None) if principle is None else source == principle
    row = math.log(scores.shape[1]) - terms.row[mine]
    column = terms.column_bound[mine]
    # Without siblings there is no column bound.
    share = (column / terms.column_limit[mine]).mean()
    return float(row.mean()), float(column.mean()), float(share)


def estimate(
    scores: list,
    source: list,
    names: list[str],
    *,
    keep: list[int] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Sufficiency of a set and of each principle in it, with intervals over questions.

    Args:
        scores: for each question an (N, K) matrix of summed log-probabilities in nats.
        source: for each question (N,) integers in [0, K).
        names: K names of the columns.
        keep: columns of a subset; completions under others are left out.
        level, resamples, seed: of the studentised bootstrap over questions (`enigma.method.stats.mean_interval`).

    Returns:
        A row for the set (`level` = set, first) and one for each principle, with `row_bound`, `column_bound` (nats),
        `si` = row bound / log K, in (-inf, 1], their interval ends, and `si_sym`, the mean of the row bound over
        log K and of the column bound over its limit (NaN with one completion per principle: siblings are needed).

    Raises:
        ValueError: no question, or matrices that `enigma.method.infonce` refuses.

    Source: METHOD.md section 6 (our choice).
    """
    if not len(scores):
        raise ValueError("no question: at least one score matrix is needed")
    names = names if keep is None else [names[j] for j in keep]
    boot = dict(level=level, resamples=resamples, seed=seed)
    rows = [
        {
            "level": "set" if principle is None else "principle",
            "name": "set" if principle is None else names[principle],
            "k": len(names),
            **summary(bound_values(scores, source, principle, keep), math.log(len(names)), boot),
        }
        for principle in (None, *range(len(names)))
    ]
    return pd.DataFrame(rows)


def summary(values: Values, limit: float, boot: dict) -> dict:
    """Means and intervals over questions; `limit` is log K in nats.

    The posterior is exact, so the row bound's true mean is the information itself and lies in [0, log K].
    """
    row, column = (
        mean_interval(values.row, support=(0.0, limit), **boot),
        mean_interval(values.column, **boot),
    )
    return {
        "questions": len(values.row),
        "row_bound": row.value,
        "row_low": row.low,
        "row_high": row.high,
        "column_bound": column.value,
        "column_low": column.low,
        "column_high": column.high,
        "si": row.value / limit,
        "si_low": row.low / limit,
        "si_high": row.high / limit,
        "si_sym": (row.value / limit + float(values.share.mean())) / 2,
    }


@dataclass(frozen=True)
class Pool:
    """What stage 1 measured: for every question and block a matrix for each span, and the sources."""

    principles: list[Principle]
    blocks: list[Block]
    questions: list[list[dict]]  # [question][block] as `score_blocks` returns it

    def matrices(self, span: str, block: int) -> tuple[list, list]:
        """Score matrices and sources of all questions."""
        return [q[block][span] for q in self.questions], [q[block]["source"] for q in self.questions]

    def limit(self, members: tuple[int, ...]) -> float:
        """log K of a set, in nats."""
        if len(self.blocks) > 1:
            return math.log(2)
        return math.log(len(members) * len(self.blocks[0].texts) // len(self.principles))

    def principle_values(self, i: int, span: str) -> Values:
        """Bounds of principle i's completions within the pool."""
        block, column = (i, 0) if len(self.blocks) > 1 else (0, i)
        return bound_values(*self.matrices(span, block), principle=column)

    def set_values(self, members: tuple[int, ...], span: str) -> Values:
        """Bounds of a set of principles, from the pool's own matrices.

        Where all texts compete in one block the set's columns (with the antitheses, if they take part) are its matched
        set. With the `antithesis` contrast it is the mean of its members' blocks.
        """
        if len(self.blocks) > 1:
            parts = [bound_values(*self.matrices(span, b)) for b in members]
            return Values(*np.mean(parts, axis=0))
        n = len(self.principles)
        keep = [j for j in range(len(self.blocks[0].texts)) if j % n in members]
        return bound_values(*self.matrices(span, 0), keep=keep)

    def row_values(self, sets: np.ndarray, span: str) -> np.ndarray:
        """`set_values(...).row` of many sets at once: (sets, size) indices -> (sets, questions) row bounds in nats."""
        n = len(self.principles)
        if len(self.blocks) > 1:
            own = np.stack([bound_values(*self.matrices(span, b)).row for b in range(n)])
            return own[sets].mean(1)
        texts = len(self.blocks[0].texts)
        columns = np.concatenate([sets + n * j for j in range(texts // n)], axis=1)
        member = np.zeros((len(sets), texts), dtype=bool)
        np.put_along_axis(member, columns, True, axis=1)
        values = np.empty((len(sets), len(self.questions)))
        for q, (scores, source) in enumerate(zip(*self.matrices(span, 0), strict=True)):
            scores, own = np.asarray(scores), np.asarray(scores)[np.arange(len(source)), source]
            # A slice of the sets at a time: all of a large pool's would fill the memory.
            for some in np.array_split(np.arange(len(sets)), math.ceil(len(sets) / 500)):
                rows = own[:, None] - logsumexp(scores[:, columns[some]], axis=-1)
                mine = member[some][:, source].T
                values[some, q] = math.log(columns.shape[1]) + (rows * mine).sum(0) / mine.sum(0)
        return values


def candidate_sets(n: int, size: int, limit: int = 5000, seed: int = 0) -> np.ndarray:
    """Sets of `size` out of n principles, (sets, size): all while there are at most `limit`, else as many drawn by `seed`."""
    if math.comb(n, size) <= limit:
        return np.array(list(itertools.combinations(range(n), size)))
    generator = np.random.default_rng(seed)
    drawn = {tuple(sorted(generator.choice(n, size, replace=False).tolist())) for _ in range(limit)}
    return np.array(sorted(drawn))


def select(
    pool: Pool,
    size: int,
    span: str = "reasoning",
    exhaustive_limit: int = 5000,
    sets: Sequence[str] = ("high", "low"),
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """The sets of `size` principles that `sets` names, as indices into the pool.

    `high` and `low` are disjoint and have the highest and the lowest SI: every set is tried while there are at most
    `exhaustive_limit` of them; beyond that the search is greedy. Another name is a number q between 0 and 1: the set
    whose SI is at that quantile of all sets (of a sample by `seed`, beyond the limit). Source: METHOD.md section 6 (our
    choice).

    Raises:
        InputError: a pool that is smaller than two disjoint sets.
    """
    n = len(pool.principles)
    if n < 2 * size:
        raise InputError(
            f"principles.set_size: found {size}, expected at most {n // 2}, half of the pool of {n}"
        )

    def value(members: np.ndarray) -> np.ndarray:
        return pool.row_values(members, span).mean(1)

    candidates = candidate_sets(n, size, exhaustive_limit, seed)
    values = value(candidates)
    if math.comb(n, size) <= exhaustive_limit:
        high = candidates[values.argmax()]
        apart = ~np.isin(candidates, high).any(1)
        low = candidates[apart][values[apart].argmin()]
    else:
        high = _greedy(range(n), size, value)
        low = _greedy([i for i in range(n) if i not in high], size, lambda members: -value(members))
    order = values.argsort(kind="stable")
    chosen = {"high": high, "low": low}
    for name in sets:
        if name not in chosen:
            chosen[name] = candidates[order[round(float(name) * (len(order) - 1))]]
    return {name: tuple(chosen[name].tolist()) for name in sets}


def _greedy(among: Iterable[int], size: int, value: Callable) -> np.ndarray:
    """Start from the best pair, then add the best principle until the set is full."""
    options = np.array(list(itertools.combinations(among, 2)))
    chosen = options[value(options).argmax()]
    while len(chosen) < size:
        options = np.array([sorted({*chosen.tolist(), i}) for i in among if i not in chosen])
        chosen = options[value(options).argmax()]
    return chosen


def measure(
    model,
    tokenizer,
    principles: list[Principle],
    questions: list[str],
    *,
    spec,
    placement,
    demonstration,
    seed: int,
    folder: Path,
    key: str,
) -> Pool:
    """Sample and score a pool on questions.

    Finished parts are kept in `folder` and reused while `key`, the texts and the questions are the same. `spec` is the
    profile's `sufficiency` block. With K texts, `samples` completions each and Q questions it samples Q x K x samples
    completions, and scores each under all the texts it competes with.
    """
    texts, blocks = contrast_blocks(principles, spec.contrast)
    key = hashlib.sha256(json.dumps([key, texts, questions]).encode()).hexdigest()[:16]
    source = [t for t in range(len(texts)) for _ in range(spec.samples)]
    per_part = max(1, spec.batch_size // len(source))
    parts = [questions[i : i + per_part] for i in range(0, len(questions), per_part)]
    done = []
    for index, part in enumerate(track(parts, "sampling and scoring", unit="part")):
        path = folder / f"part-{index:03d}.json"
        scored = _read_part(path, key)
        if scored is None:
            encoded = [
                [
                    prompts.encode(tokenizer, prompts.messages(q, text, placement, demonstration))
                    for text in texts
                ]
                for q in part
            ]
            flat = [ids[t] for ids in encoded for t in source]
            sampled = sample_completions(
                model, tokenizer, flat, spec.max_tokens, spec.batch_size, seed + index
            )
            scored = [
                score_blocks(
                    model, tokenizer, ids, sampled[i * len(source) : (i + 1) * len(source)], source, blocks
                )
                for i, ids in enumerate(encoded)
            ]
            atomic_write_json(path, {"key": key, "questions": scored})
        done += scored
    for path in sorted(folder.glob("part-*.json"))[len(parts) :]:  # of an earlier run with more parts
        path.unlink()
    return Pool(principles, blocks, done)


def _read_part(path: Path, key: str) -> list | None:
    if not path.exists():
        return None
    part = json.loads(path.read_text())
    return part["questions"] if part["key"] == key else None


def sufficiency_table(pool: Pool, sets: dict[str, tuple[int, ...]], boot: dict) -> pd.DataFrame:
    """SI and bounds of every principle and of the named sets, for both spans, with intervals over questions."""
    names = [p.name for p in pool.principles]
    everything = tuple(range(len(names)))
    rows = []
    for span in SPANS:
        for i, p in enumerate(pool.principles):
            limit = pool.limit(everything)
            head = {"level": "principle", "name": p.name, "family": p.family, "members": p.name, "span": span}
            rows.append(
                head | {"k": round(math.exp(limit))} | summary(pool.principle_values(i, span), limit, boot)
            )
        for name, members in {**sets, "pool": everything}.items():
            limit = pool.limit(members)
            head = {"level": "set", "name": name, "family": "", "span": span}
            head["members"] = ";".join(names[i] for i in members)
            rows.append(
                head | {"k": round(math.exp(limit))} | summary(pool.set_values(members, span), limit, boot)
            )
    return pd.DataFrame(rows)


@one_writer
def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 1: measure the pool on the untrained model, choose the sets.

    Writes `sufficiency`, `selection`, `selection_stability` and `test_retest`, and returns the tables.
    """
    pool = measure_pool(profile, load_pool(profile.principles.pool), results.runs / "select")
    boot = dict(resamples=profile.sufficiency.resamples, seed=profile.seeds.bootstrap)
    sets = select(pool, profile.principles.set_size, sets=profile.sets(), seed=boot["seed"])
    tables = {"sufficiency": sufficiency_table(pool, sets, boot), **stability_tables(pool, sets, boot)}
    captions = {"sufficiency": CAPTION, **stability.CAPTIONS}
    for name, table in tables.items():
        results.write_table(name, table, captions[name])
    selection = _selection(tables["sufficiency"], sets, pool.principles)
    results.write_yaml("selection", selection, "The sets that stage 2 trains on.")
    return tables


def stability_tables(pool: Pool, sets: dict[str, tuple[int, ...]], boot: dict) -> dict[str, pd.DataFrame]:
    """How the selection and the ranking would change with other questions, from the pool's own matrices."""
    n, size = len(pool.principles), len(sets["high"])
    candidates = candidate_sets(n, size, seed=boot["seed"])
    limit = pool.limit(tuple(range(n)))
    si = {span: np.stack([pool.principle_values(i, span).row / limit for i in range(n)]) for span in SPANS}
    names = [p.name for p in pool.principles]
    values = pool.row_values(candidates, "reasoning")
    return {
        "selection_stability": stability.selection_table(
            names, sets, values, candidates, si["reasoning"], **boot
        ),
        "test_retest": stability.retest_table(si, **boot),
    }


def rank(profile, pool_file: str, folder: Path) -> pd.DataFrame:
    """The principles of a file from the highest to the lowest SI over the reasoning span, also written to `folder`.

    Model, prompts, questions and sample sizes are the profile's. Raises InputError as `load_pool` does, and for fewer
    than two principles to tell apart.
    """
    principles = load_pool(pool_file)
    if len(principles) < 2 and profile.sufficiency.contrast == "others":
        raise InputError(f"{pool_file}: found 1 principle, expected at least 2 to tell apart")
    pool = measure_pool(profile, principles, folder)
    table = sufficiency_table(
        pool, {}, dict(resamples=profile.sufficiency.resamples, seed=profile.seeds.bootstrap)
    )
    table = table[(table.level == "principle") & (table.span == "reasoning")].sort_values(
        "si", ascending=False
    )
    atomic_write_text(folder / "sufficiency.csv", csv_text(table))
    return table


def measure_pool(profile, principles: list[Principle], folder: Path) -> Pool:
    """`measure` with the profile's model, prompts and questions."""
    from enigma.llm.loading import load_model

    questions = load_questions(profile.questions, "select", profile.sufficiency.questions, profile.seeds.data)
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    return measure(
        model,
        tokenizer,
        principles,
        questions,
        spec=profile.sufficiency,
        placement=profile.prompts.placement,
        demonstration=profile.prompts.demonstration,
        seed=profile.seeds.sampling,
        folder=folder,
        key=profile.hash,
    )


CAPTION = (
    "Sufficiency of principles and sets on the untrained model: row and column mutual-information bounds (nats) and "
    "SI = row bound / log K, with 95 % intervals over questions. The sets were chosen on these questions, so their own "
    "SI flatters them; the table legibility measures them on others."
)


def _selection(table: pd.DataFrame, sets: dict, principles: list[Principle]) -> dict:
    rows = table[(table.level == "set") & (table.span == "reasoning")].set_index("name")
    chosen = {
        name: {
            "principles": [principles[i].name for i in members],
            **{key: float(f"{rows.loc[name, key]:.6g}") for key in ("si", "si_low", "si_high")},
        }
        for name, members in sets.items()
    }
    return {"span": "reasoning", **chosen}
