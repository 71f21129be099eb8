"""Symmetric InfoNCE over a matched set, and the mutual-information bounds it gives.

Pure tensors. For one question, N completions were sampled under K principles; `scores[i, k]` is the
critic's value of completion i under principle k and `source[i]` is the principle that i was sampled
under. Equations: docs/method.md, eq. 3 to 5, 10 and 15 (the symmetric form follows the SAMI reference, arXiv
2404.14313; that siblings are never negatives is our choice).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """Lower bounds of I(Y;C|X), scalars in nats."""

    row: Tensor
    column: Tensor


class InfoNCETerms(NamedTuple):
    """For each completion, (N,) in nats: the two losses, and the column bound."""

    row: Tensor
    column: Tensor
    column_bound: Tensor


def sami_loss(scores: Tensor, source: Tensor) -> Tensor:
    """The symmetric InfoNCE loss of one matched set, a scalar in nats: (mean row_i + mean column_i) / 2      (eq. 5)

        row_i    = -log softmax_k(S[i, :])[k(i)]                                                        (eq. 3)
        column_i = -log( e^{S[i,k(i)]} / (e^{S[i,k(i)]} + sum_{j: k(j) != k(i)} e^{S[j,k(i)]}) )          (eq. 4)

    Args:
        scores: (N, K) critic values in nats. Computed in float32, or float64 when that comes in.
        source: (N,) integers in [0, K): the principle each completion was sampled under.

    Differentiable with respect to `scores`.

    Raises:
        ValueError: shapes that do not fit, K below 2, NaN or infinite scores, a source out of range, or a
            principle without completions.

    Source: docs/method.md, eq. 3 to 5 (paper [A]: a SAMI-style symmetric InfoNCE; the exact form is our choice [D]).
    """
    terms = infonce_terms(scores, source)
    return (terms.row.mean() + terms.column.mean()) / 2


def mutual_information_bounds(scores: Tensor, source: Tensor) -> Bounds:
    """The lower bounds of I(Y;C|X) that the row and the column comparison give, in nats.

        row    = `row_bound` of the row losses                                                         (eq. 10)
        column = mean_i log( (1 + m) e^{S[i,k(i)]} / (e^{S[i,k(i)]} + m Z_i) )                            (eq. 15)
            with Z_i the mean over principles c of the mean of e^{S[j,k(i)]} over j != i with k(j) = c

    The column loss leaves siblings out, so its negatives come from the other principles alone and log(1 + negatives) -
    column bounds the divergence from those, not I(Y;C|X): on a toy where the information is log 2 it reaches log(1 +
    negatives). The column bound therefore compares with the marginal, in which the own principle has its share of 1/K,
    by way of the siblings. m = K min(siblings, completions of any other principle). It holds for every critic (negatives
    stratified by principle exceed independent ones in no convex loss), approaches the information as completions grow
    when the critic is the pointwise mutual information, and is 0 without siblings.

    Arguments and errors as in `sami_loss`. Source: docs/method.md, eq. 10 and 15 (our choice [D]).
    """
    terms = infonce_terms(scores, source)
    return Bounds(row_bound(terms.row, scores.shape[1]), terms.column_bound.mean())


def row_bound(losses: Tensor, k: int) -> Tensor:
    """log K - mean_i row_i (eq. 10), nats, of row losses (n,) among K principles."""
    return math.log(k) - losses.mean()


def infonce_terms(scores: Tensor, source: Tensor) -> InfoNCETerms:
    """The per-completion values that the loss and the bounds average. Same arguments, same errors."""
    _check(scores, source)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    source = source.long()
    k = scores.shape[1]
    n = torch.arange(len(source), device=scores.device)
    own = scores[n, source]
    # [i, j]: the score of completion j under i's own principle.
    columns = scores[:, source].T
    sibling = source[:, None] == source[None, :]
    itself = torch.eye(len(n), dtype=torch.bool, device=scores.device)
    column = torch.logsumexp(columns.masked_fill(sibling & ~itself, float("-inf")), dim=1) - own
    counts = torch.bincount(source, minlength=k)
    # m / K for each completion: draws of every principle that the marginal's estimate stands for.
    least, second = counts.sort().values[:2]
    fewest = torch.where(counts == least, second, least)  # completions of any other principle
    draws = torch.minimum(counts - 1, fewest)[source].to(scores.dtype)
    available = (counts[source][None, :] - sibling.long()).clamp(min=1).to(scores.dtype)
    marginal = torch.logsumexp((columns - available.log()).masked_fill(itself, float("-inf")), dim=1)
    limit = torch.log1p(k * draws)
    return InfoNCETerms(
        row=-torch.log_softmax(scores, dim=1)[n, source],
        column=column,
        column_bound=limit + own - torch.logaddexp(own, marginal + draws.log()),
    )


def pointwise_mutual_information(scores: Tensor) -> Tensor:
    """The column critic of the metrics: `log p(y|x,c_k) - log mean_k p(y|x,c_k)`.

    `scores` is (N, K), summed log-probabilities in nats; the result has the same shape. The row loss does not
    change under it. Source: docs/method.md, eq. 15 (our choice).
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.log_softmax(scores, dim=1) + math.log(scores.shape[1])


def _check(scores: Tensor, source: Tensor) -> None:
    if scores.ndim != 2 or source.ndim != 1 or len(scores) != len(source):
        raise ValueError(
            f"scores must be (N, K) and source (N,); found {tuple(scores.shape)} and {tuple(source.shape)}"
        )
    if source.is_floating_point() or source.dtype == torch.bool:
        raise ValueError(f"source must hold integers; found {source.dtype}")
    k = scores.shape[1]
    if k < 2:
        raise ValueError(f"InfoNCE needs at least 2 principles; found K={k}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite values")
    if len(source) and (source.min() < 0 or source.max() >= k):
        raise ValueError(
            f"source must lie in [0, {k}); found values from {int(source.min())} to {int(source.max())}"
        )
    counts = torch.bincount(source.long(), minlength=k)
    if (counts == 0).any():
        raise ValueError(
            f"empty group: no completion was sampled under principle {int((counts == 0).nonzero()[0])}"
        )
