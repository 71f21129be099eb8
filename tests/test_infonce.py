"""The losses by hand, their invariances, and the bounds on a toy whose mutual information is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from enigma.method.infonce import (
    infonce_terms,
    mutual_information_bounds,
    pointwise_mutual_information,
    sami_loss,
)


def symmetric_infonce(scores, source):
    """The loss, its two halves, and the bounds."""
    terms, bounds = infonce_terms(scores, source), mutual_information_bounds(scores, source)
    halves = dict(row=terms.row.mean(), column=terms.column.mean())
    limits = dict(row_bound=bounds.row, column_bound=bounds.column)
    return SimpleNamespace(loss=sami_loss(scores, source), **halves, **limits)


def by_hand(scores, source):
    """Plain loops over floats, sharing nothing with the code under test. Siblings are never negatives."""
    n, k = len(scores), len(scores[0])
    row = column = bound = 0.0
    for i, own in enumerate(source):
        e = [[math.exp(scores[j][own]) for j in range(n) if source[j] == c and j != i] for c in range(k)]
        mine = math.exp(scores[i][own])
        row -= math.log(mine / sum(map(math.exp, scores[i])))
        column -= math.log(mine / (mine + sum(sum(group) for c, group in enumerate(e) if c != own)))
        m = k * (source.count(own) - 1)
        bound += math.log((1 + m) * mine / (mine + m * sum(sum(group) / len(group) for group in e) / k))
    return row / n, column / n, bound / n


def random_case(n_per=3, k=4):
    generator = torch.Generator().manual_seed(0)
    source = torch.arange(k).repeat_interleave(n_per)
    return torch.randn(n_per * k, k, generator=generator, dtype=torch.float64), source


def test_equals_plain_loops():
    scores, source = random_case()
    result = symmetric_infonce(scores, source)
    row, column, bound = by_hand(scores.tolist(), source.tolist())
    assert result.row.item() == pytest.approx(row, rel=1e-12)
    assert result.column.item() == pytest.approx(column, rel=1e-12)
    assert result.loss.item() == pytest.approx((row + column) / 2, rel=1e-12)
    assert result.row_bound.item() == pytest.approx(math.log(4) - row, rel=1e-12)
    assert result.column_bound.item() == pytest.approx(bound)


def test_unequal_groups_and_no_siblings():
    scores, _ = random_case(n_per=2, k=2)
    lone = symmetric_infonce(scores[:2], torch.tensor([0, 1]))
    assert lone.column_bound.item() == 0
    uneven = symmetric_infonce(scores, torch.tensor([0, 0, 0, 1]))
    assert math.isfinite(uneven.column_bound.item())


def test_one_completion_per_principle_is_the_reference_sami_loss():
    """Cross-entropies over rows and columns with the diagonal as target, as in arXiv 2404.14313."""
    scores, source = random_case(n_per=1)
    target = torch.arange(4)
    rows, columns = (torch.nn.functional.cross_entropy(matrix, target) for matrix in (scores, scores.T))
    assert sami_loss(scores, source).item() == pytest.approx((rows + columns).item() / 2, rel=1e-12)


def test_invariances():
    scores, source = random_case()
    plain, per_completion = symmetric_infonce(scores, source), torch.randn(12, 1)
    assert symmetric_infonce(scores + per_completion, source).row.item() == pytest.approx(plain.row.item())
    per_principle = symmetric_infonce(scores + torch.randn(1, 4), source)
    assert per_principle.column.item() == pytest.approx(plain.column.item())
    # The metric's column critic forgets a completion's own length and fluency.
    pmi = symmetric_infonce(pointwise_mutual_information(scores), source)
    shifted = symmetric_infonce(pointwise_mutual_information(scores + per_completion), source)
    assert shifted.column.item() == pytest.approx(pmi.column.item())
    assert pmi.row.item() == pytest.approx(plain.row.item())
    order = torch.tensor([2, 0, 3, 1])
    relabelled = symmetric_infonce(scores[:, order], torch.argsort(order)[source])
    assert relabelled.loss.item() == pytest.approx(plain.loss.item())


def test_gradient_and_precision():
    scores, source = random_case()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: symmetric_infonce(s, source).loss, scores)
    assert symmetric_infonce(scores.bfloat16(), source).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("scores", "source", "message"),
    [
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "K=1"),
        (torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "lie in \\[0, 2\\)"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), "from -1 to 1"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 1]), "empty group.*principle 2"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "integers"),
        (torch.zeros(2, 2, 1), torch.tensor([0, 1]), "must be \\(N, K\\)"),
    ],
)
def test_bad_input(scores, source, message):
    with pytest.raises(ValueError, match=message):
        symmetric_infonce(scores, source)


# A categorical "language model": p(y|c) over a small alphabet, so that I(Y;C) is a finite sum.


def channel(k, sharpness):
    """(K, letters) conditional distributions; `sharpness` 0 ignores the principle, large ones give it away."""
    letters = 3 * k
    own = np.arange(letters) % k == np.arange(k)[:, None]
    base = np.random.default_rng(0).dirichlet(np.full(letters, 5.0))
    p = base * np.exp(sharpness * own)
    return p / p.sum(1, keepdims=True)


def information(p):
    marginal = p.mean(0)
    return float((p * np.log(p / marginal)).sum(1).mean())


def bounds(p, n_per, repeats, seed):
    generator = np.random.default_rng(seed)
    k, letters = p.shape
    source = torch.arange(k).repeat_interleave(n_per)
    values = []
    for _ in range(repeats):
        y = np.concatenate([generator.choice(letters, n_per, p=p[c]) for c in range(k)])
        scores = pointwise_mutual_information(torch.tensor(np.log(p[:, y]).T))
        result = symmetric_infonce(scores, source)
        values.append((result.row_bound.item(), result.column_bound.item()))
    values = np.array(values)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(repeats)


@pytest.mark.parametrize(("k", "sharpness"), [(2, 0.05), (2, 6.0), (4, 1.5), (8, 0.05), (8, 6.0)])
def test_row_bound_is_tight_and_column_bound_stays_below(k, sharpness):
    p = channel(k, sharpness)
    truth = information(p)
    few, few_error = bounds(p, 2, 600, seed=1)
    many, many_error = bounds(p, 16, 200, seed=2)
    for mean, error in ((few, few_error), (many, many_error)):
        assert abs(mean[0] - truth) < 4 * error[0] + 1e-9
        assert mean[1] < truth + 4 * error[1]
    # More negatives bring the column bound closer.
    assert truth - many[1] < truth - few[1] + 3 * (few_error[1] + many_error[1])
    assert truth - many[1] < 0.1 * max(truth, 0.1) + 4 * many_error[1]
