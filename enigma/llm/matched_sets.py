"""Matched sets in a batch: which rows belong together, in which order, and all scores of a set at once.

A matched set is one question under K principles with G completions each: K x G rows that no sampler, shuffle or split
may part. The layout is our choice [D].
"""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.utils import split_tensor_dict

from enigma.llm.scoring import completion_logprobs
from enigma.method.transport import solve_divergence, squared_distance


@dataclass
class MatchedScores:
    """The matched sets of a batch, B = sets x N completions, N = K x G."""

    logps: Tensor  # (B, T) under the completion's own prompt, with gradient
    entropy: Tensor  # (B, T)
    hidden: Tensor | None  # (B, T, layers, d) under the own prompt, with gradient
    matrix: Tensor | None  # (sets, K, N, T) under every prompt of the set, where asked for
    mask: Tensor  # (B, T) bool
    sets: int


def score_matched_sets(
    model, inputs: dict, k: int, *, layers: tuple[int, ...], cross_gradient: bool, cross: bool = True
) -> MatchedScores:
    """Score every completion of a batch under every prompt of its matched set.

    `inputs` holds TRL's rollouts, rows ordered by set, then principle, then generation (`set_index` and
    `principle_index` say so). With `cross_gradient` one packed forward serves all; without it the completions under
    other prompts, which then are only logged, are scored without gradient, and not at all without `cross`. All values in
    nats.
    """
    prompts, completions = prompts_and_completions(inputs)
    b, t = inputs["completion_ids"].shape
    sets = len(inputs["set_index"].unique())
    n = b // sets
    g = n // k
    _check_order(inputs, sets, k, g)
    firsts = [prompts[i] for i in range(0, b, g)]
    row = torch.arange(b, device=inputs["completion_ids"].device)
    own = (row // g, row % g)
    if cross_gradient:
        groups = [list(range(q * n, (q + 1) * n)) for q in range(sets) for _ in range(k)]
        scores = completion_logprobs(model, firsts, completions, groups, layers=layers, entropy=True)
        matrix = scores.logps.view(sets, k, n, -1)
        own = (row // g, row % n)
    else:
        groups = [list(range(p * g, (p + 1) * g)) for p in range(sets * k)]
        scores = completion_logprobs(model, firsts, completions, groups, layers=layers, entropy=True)
        matrix = _add_cross_scores(model, firsts, completions, scores.logps, sets, k, g) if cross else None
    return MatchedScores(
        logps=pad_tokens(scores.logps[own], t),
        entropy=pad_tokens(scores.entropy[own], t),
        hidden=pad_tokens(scores.hidden[own], t) if layers else None,
        matrix=None if matrix is None else pad_tokens(matrix, t, dim=3),
        mask=inputs["completion_mask"].bool(),
        sets=sets,
    )


@torch.no_grad()
def _add_cross_scores(model, prompts, completions, own: Tensor, sets: int, k: int, g: int) -> Tensor:
    """The (sets, K, N, T) matrix from own scores (sets x K, G, T) and a forward without gradient for the others."""
    n = k * g
    others = [[q * n + i for i in range(n) if i // g != p] for q in range(sets) for p in range(k)]
    cross = completion_logprobs(model, prompts, completions, others).logps
    width = max(cross.shape[-1], own.shape[-1])
    matrix = own.new_zeros(sets, k, n, width)
    for p in range(sets * k):
        q, c = divmod(p, k)
        mine = torch.arange(c * g, (c + 1) * g)
        rest = torch.tensor([i - q * n for i in others[p]])
        matrix[q, c, mine, : own.shape[-1]] = own[p].detach()
        matrix[q, c, rest, : cross.shape[-1]] = cross[p]
    return matrix


def own_scores(model, prompts, completions, layers, entropy):
    """Score each completion under its own prompt; equal neighbouring prompts are one.

    Returns the `Scores` and, for indexing them, the row and the slot of each completion.
    """
    rows, slots, groups, unique = [], [], [], []
    for i, prompt in enumerate(prompts):
        if not unique or not torch.equal(prompt, unique[-1]):
            unique.append(prompt)
            groups.append([])
        rows.append(len(unique) - 1)
        slots.append(len(groups[-1]))
        groups[-1].append(i)
    scores = completion_logprobs(model, unique, completions, groups, layers=layers, entropy=entropy)
    return scores, (torch.tensor(rows), torch.tensor(slots))


class Drift(NamedTuple):
    """(sets, layers) each: the Sinkhorn divergence, and what the loss bounds; and the share of solves that stopped early."""

    divergence: Tensor
    bounded: Tensor
    unconverged: Tensor


def drift(hidden: Tensor, reference: Tensor, mask: Tensor, sets: int, bounded: str, **options) -> Drift:
    """How far the states (B, T, layers, d) of each set's tokens, those of `mask` (B, T), are from the reference's.

    `bounded`: `sinkhorn`, or `l2` for `squared_distance`. `options` go to `solve_divergence`.
    """
    solved, squared = [], []
    for rows in torch.arange(len(mask)).view(sets, -1):
        keep = mask[rows]
        pairs = zip(hidden[rows][keep].unbind(1), reference[rows][keep].unbind(1), strict=True)
        for x, y in pairs:
            solved.append(solve_divergence(x, y, **options))
            squared += [squared_distance(x, y)] if bounded == "l2" else []
    values = torch.stack([s.value for s in solved]).view(sets, -1)
    plain = torch.stack(squared).view(sets, -1) if squared else values
    return Drift(values, plain, values.new_tensor([not s.converged for s in solved]).mean())


def mean_logprob(logps: Tensor, mask: Tensor) -> Tensor:
    """The training critic: (K, N, T) log-probabilities to (N, K) means over the tokens of `mask` (N, T), nats.

    Source: our choice [D], as in the SAMI reference (arXiv 2404.14313); docs/method.md, eq. 3 to 5.
    """
    return ((logps * mask).sum(-1) / mask.sum(-1).clamp(min=1)).T


class MatchedSampler(Sampler):
    """Rows of whole matched sets, each row repeated for its generations. `order` yields indices of sets."""

    def __init__(self, order: Sampler, sets: list[list[int]], generations: int):
        self.order, self.sets, self.generations = order, sets, generations

    def __iter__(self):
        for index in self.order:
            for row in self.sets[index]:
                yield from [row] * self.generations

    def __len__(self) -> int:
        return len(self.order) * len(self.sets[0]) * self.generations


def matched_sets(dataset, k: int) -> list[list[int]]:
    """Row indices of each matched set, in order of first appearance.

    Raises:
        ValueError: no column `matched_set`, or a set that has not exactly K rows.
    """
    if "matched_set" not in dataset.column_names:
        raise ValueError(f"the data set needs a column `matched_set`; found {sorted(dataset.column_names)}")
    sets: dict = {}
    for i, name in enumerate(dataset["matched_set"]):
        sets.setdefault(name, []).append(i)
    for name, rows in sets.items():
        if len(rows) != k:
            raise ValueError(f"matched_set {name!r} has {len(rows)} rows, expected num_principles = {k}")
    return list(sets.values())


def regroup(batches: list[dict]) -> list[dict]:
    """Put shuffled rollouts back in the order of their generation, and split them into as many batches again.

    The Sinkhorn term takes tokens by their place, so the order inside a set counts too: the shuffle differs between
    processes.
    """
    order = torch.argsort(torch.cat([batch["position"] for batch in batches]))

    def whole(parts: list):
        if isinstance(parts[0], Tensor) and parts[0].ndim > 0:
            return torch.cat(parts)[order]
        if isinstance(parts[0], list):
            items = list(chain.from_iterable(parts))
            return [items[i] for i in order.tolist()]
        return parts[0]

    merged = {key: whole([batch[key] for batch in batches]) for key in batches[0]}
    return split_tensor_dict(merged, len(batches))


def check_rows(rows: list[dict], k: int, g: int) -> None:
    """A process's share of a generation batch: whole matched sets, each prompt g times in turn.

    Sampler and data loader give just that; a loader that splits batches over processes would cut sets apart.
    """
    for start in range(0, len(rows), k * g):
        block = rows[start : start + k * g]
        one = len(block) == k * g and len({row["matched_set"] for row in block}) == 1
        same_as_before = [a["prompt"] == b["prompt"] for a, b in pairwise(block)]
        if not one or same_as_before != [i % g > 0 for i in range(1, k * g)]:
            raise ValueError(
                f"generation batch: rows {start} to {start + len(block) - 1} are not one matched set of {k} prompts x "
                f"{g} generations; leave split_batches and dispatch_batches of accelerator_config alone, and make "
                f"per_device_eval_batch_size a multiple of {k * g}"
            )


def _check_order(inputs: dict, sets: int, k: int, g: int) -> None:
    found = inputs["set_index"], inputs["principle_index"]
    principles = torch.arange(k, device=found[1].device).repeat_interleave(g).repeat(sets)
    if not torch.equal(found[0], found[0].unique().repeat_interleave(k * g)) or not torch.equal(
        found[1], principles
    ):
        raise ValueError("a matched set was split or shuffled: every batch must hold whole sets in order")


def prompts_and_completions(inputs: dict) -> tuple[list[Tensor], list[Tensor]]:
    return (
        unpad(inputs["prompt_ids"], inputs["prompt_mask"]),
        unpad(inputs["completion_ids"], inputs["completion_mask"]),
    )


def unpad(ids: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep] for row, keep in zip(ids, mask.bool(), strict=True)]


def pad_tokens(values: Tensor, t: int, dim: int = 1) -> Tensor:
    """Pad the token dimension with zeros to the batch's own width."""
    return F.pad(values, (0, 0) * (values.ndim - dim - 1) + (0, t - values.shape[dim]))
