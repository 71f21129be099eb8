"""Symmetric InfoNCE over a matched set, and the mutual-information bounds it gives.

Pure tensors. For one question, N completions were sampled under K principles; `scores[i, k]` is the
critic's value of completion i under principle k and `source[i]` is the principle that i was sampled
under. Equations: METHOD.md sections 4 and 6 (the symmetric form follows the SAMI reference,
arXiv 2404.14313; that siblings are never negatives is our choice).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SymmetricInfoNCE(NamedTuple):
    """Scalars in nats. `loss` is the mean of `row` and `column`; the bounds are at most log K and log(1 + negatives)."""

    loss: Tensor
    row: Tensor
    column: Tensor
    row_bound: Tensor
    column_bound: Tensor


class InfoNCETerms(NamedTuple):
    """Per-completion losses (N,) in nats, and the number of negatives (N,) of the column loss."""

    row: Tensor
    column: Tensor
    negatives: Tensor


def symmetric_infonce(scores: Tensor, source: Tensor) -> SymmetricInfoNCE:
    """Row and column InfoNCE losses of one matched set, and their mutual-information bounds.

        row_i    = -log softmax_k(S[i, :])[k(i)]
        column_i = -log( e^{S[i,k(i)]} / (e^{S[i,k(i)]} + sum_{j: k(j) != k(i)} e^{S[j,k(i)]}) )
        row_bound = log K - mean row,    column_bound = mean_i log(1 + negatives_i) - mean column

    Args:
        scores: (N, K) critic values in nats. Computed in float32, or float64 when that comes in.
        source: (N,) integers in [0, K): the principle each completion was sampled under.

    Returns:
        `SymmetricInfoNCE` of scalars in nats, differentiable with respect to `scores`.

    Raises:
        ValueError: shapes that do not fit, K below 2, NaN or infinite scores, a source out of range, or a
            principle without completions.

    Source: METHOD.md section 4 (paper: a SAMI-style symmetric InfoNCE; the exact form is our choice).
    """
    row, column, negatives = infonce_terms(scores, source)
    row_loss, column_loss = row.mean(), column.mean()
    return SymmetricInfoNCE(
        loss=(row_loss + column_loss) / 2,
        row=row_loss,
        column=column_loss,
        row_bound=torch.log(torch.tensor(float(scores.shape[1]), dtype=row.dtype, device=row.device)) - row_loss,
        column_bound=torch.log1p(negatives).mean() - column_loss,
    )


def infonce_terms(scores: Tensor, source: Tensor) -> InfoNCETerms:
    """The per-completion losses that `symmetric_infonce` averages. Same arguments, same errors."""
    _check(scores, source)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    source = source.long()
    n = torch.arange(len(source), device=scores.device)
    row = -torch.log_softmax(scores, dim=1)[n, source]
    # [i, j]: the score of completion j under i's own principle. Siblings other than i itself are left out.
    columns = scores[:, source].T
    sibling = source[:, None] == source[None, :]
    others = sibling & ~torch.eye(len(n), dtype=torch.bool, device=scores.device)
    own = scores[n, source]
    column = torch.logsumexp(columns.masked_fill(others, float("-inf")), dim=1) - own
    return InfoNCETerms(row, column, (~sibling).sum(1).to(scores.dtype))


def pointwise_mutual_information(scores: Tensor) -> Tensor:
    """The column critic of the metrics: `log p(y|x,c_k) - log mean_k p(y|x,c_k)`.

    `scores` is (N, K), summed log-probabilities in nats; the result has the same shape. The row loss does not
    change under it. Source: METHOD.md section 6 (our choice).
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.log_softmax(scores, dim=1) + torch.log(torch.tensor(float(scores.shape[1]), dtype=scores.dtype))


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
        raise ValueError(f"empty group: no completion was sampled under principle {int((counts == 0).nonzero()[0])}")
