"""Sinkhorn divergence: against plain loops, closed forms, invariants and injected faults."""

import math
import warnings

import pytest
import torch
from ot.bregman import sinkhorn_log

from enigma.method.transport import ConvergenceWarning, sinkhorn_divergence, solve_divergence


def clouds(n=7, m=5, d=3, seed=0, shift=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + shift
    return x, torch.randn(m, d, generator=generator, dtype=torch.float64)


# ---- an independent solution in plain loops ------------------------------------------------------------------------


def slow_transport(x, y, scale, epsilon, iterations):
    n, m = len(x), len(y)
    cost = [[sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / scale for b in y] for a in x]
    f, g = [0.0] * n, [0.0] * m
    for _ in range(iterations):
        for i in range(n):
            f[i] = -epsilon * log_mean_exp([(g[j] - cost[i][j]) / epsilon for j in range(m)])
        for j in range(m):
            g[j] = -epsilon * log_mean_exp([(f[i] - cost[i][j]) / epsilon for i in range(n)])
    return sum(f) / n + sum(g) / m


def log_mean_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))


def slow_divergence(x, y, epsilon, scale=None, iterations=400):
    x, y = x.tolist(), y.tolist()
    if scale is None:
        scale = sum(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for a in y for b in y) / len(y) ** 2
    cross, own_x, own_y = (
        slow_transport(p, q, scale, epsilon, iterations) for p, q in ((x, y), (x, x), (y, y))
    )
    return cross - own_x / 2 - own_y / 2


@pytest.mark.parametrize("scale", [None, 3.0])
def test_equals_plain_loops(scale):
    x, y = clouds()
    expected = slow_divergence(x, y, 0.5, scale)
    assert sinkhorn_divergence(x, y, 0.5, scale).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.005])
def test_gradient_of_both_clouds_against_central_differences(epsilon, dtype):
    x, y = (cloud.to(dtype).requires_grad_() for cloud in clouds(n=6, m=6, d=3))
    sinkhorn_divergence(x, y, epsilon).backward()
    step = 1e-5
    for leaf in (x, y):
        expected = torch.zeros_like(leaf, dtype=torch.float64)
        for index in range(leaf.numel()):
            ends = []
            for sign in (1, -1):
                moved = leaf.detach().double().clone()
                moved.view(-1)[index] += sign * step
                pair = (moved, y.detach().double()) if leaf is x else (x.detach().double(), moved)
                ends.append(sinkhorn_divergence(*pair, epsilon))
            expected.view(-1)[index] = (ends[0] - ends[1]) / (2 * step)
        assert (leaf.grad.double() - expected).norm() / expected.norm() < 1e-5


# ---- closed forms --------------------------------------------------------------------------------------------------


def test_two_points():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]])
    assert sinkhorn_divergence(x, y, scale=2.0).item() == pytest.approx(12.5)


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.001])
def test_a_translation_costs_its_squared_length(epsilon):
    _, y = clouds(m=20, d=6)
    shift = torch.tensor([0.3, 0, -0.1, 0, 0, 2.0], dtype=torch.float64)
    expected = shift.square().sum() / torch.cdist(y, y).square().mean()
    assert sinkhorn_divergence(y + shift, y, epsilon).item() == pytest.approx(expected.item(), rel=1e-9)


def test_spread_gaussians_equal_the_entropic_closed_form():
    # Janati et al. 2020, one dimension, eps = 2 sigma^2 in their notation.
    epsilon, s, t = 0.8, 1.0, 4.0
    points = torch.special.ndtri((torch.arange(300, dtype=torch.float64) + 0.5) / 300)[:, None]

    def spread_part(a, b):
        d = math.sqrt(4 * a * b + (epsilon / 2) ** 2)
        return a + b - d + epsilon / 2 * (1 - math.log(epsilon) + math.log(d + epsilon / 2))

    expected = spread_part(s, t) - spread_part(s, s) / 2 - spread_part(t, t) / 2
    found = sinkhorn_divergence(points, 2 * points, epsilon, scale=1.0)
    assert found.item() == pytest.approx(expected, rel=0.02)


# ---- invariants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.002])
def test_equal_clouds_have_no_divergence_and_no_gradient(epsilon):
    x, _ = clouds(n=40, d=16)
    leaf = x.clone().requires_grad_()
    value = sinkhorn_divergence(leaf, x, epsilon)
    value.backward()
    assert 0 <= value.item() < 1e-12
    assert leaf.grad.abs().max() < 1e-8


def test_order_of_points_does_not_matter():
    x, y = clouds(n=12, m=12)
    assert sinkhorn_divergence(x.flip(0), y).item() == pytest.approx(
        sinkhorn_divergence(x, y).item(), rel=1e-9
    )
    assert sinkhorn_divergence(x.flip(0), x).item() < 1e-12


def test_at_least_the_squared_distance_of_the_means():
    for seed in range(20):
        x, y = clouds(n=3 + seed, m=8, d=1 + seed % 5, seed=seed, shift=0.1 * seed)
        bound = (x.mean(0) - y.mean(0)).square().sum().item()
        assert sinkhorn_divergence(x, y, 0.1, scale=1.0).item() > bound > 0


def test_symmetric_for_a_given_scale():
    x, y = clouds(n=11, m=6)
    one, other = sinkhorn_divergence(x, y, scale=2.0), sinkhorn_divergence(y, x, scale=2.0)
    assert one.item() == pytest.approx(other.item(), rel=1e-9)
    assert sinkhorn_divergence(x, y).item() != pytest.approx(sinkhorn_divergence(y, x).item(), rel=1e-3)


def test_invariant_to_translation_rotation_and_unit():
    x, y = clouds()
    expected = sinkhorn_divergence(x, y).item()
    rotation, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    assert sinkhorn_divergence(x + 1e3, y + 1e3).item() == pytest.approx(expected, rel=1e-9)
    assert sinkhorn_divergence(x @ rotation, y @ rotation).item() == pytest.approx(expected, rel=1e-9)
    assert sinkhorn_divergence(100 * x, 100 * y).item() == pytest.approx(expected, rel=1e-9)


def test_default_scale_counts_the_diagonal_and_all_points():
    x, y = clouds(n=30, m=30)
    scale = torch.cdist(y, y).square().mean()
    assert sinkhorn_divergence(x, y).item() == pytest.approx(
        sinkhorn_divergence(x, y, scale=scale).item(), rel=1e-9
    )
    given = sinkhorn_divergence(x, y, scale=scale, max_points=10).item()
    assert sinkhorn_divergence(x, y, max_points=10).item() == pytest.approx(given, rel=1e-9)


# ---- precision -----------------------------------------------------------------------------------------------------


def test_float32_far_from_the_origin():
    x, y = clouds(n=30, m=30, d=8)
    x, y = (x + 1e4).float(), (y + 1e4).float()
    expected = sinkhorn_divergence(x.double(), y.double()).item()
    assert sinkhorn_divergence(x, y).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_first(dtype):
    x, y = (cloud.to(dtype) for cloud in clouds(n=20, m=20, d=8))
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = sinkhorn_divergence(exact, y.double())
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn_divergence(x, y)
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(x.grad.double(), exact.grad, rtol=1e-2, atol=1e-4)


# ---- the solver ----------------------------------------------------------------------------------------------------


def graph_size(node, seen=None):
    seen = set() if seen is None else seen
    if node is not None and node not in seen:
        seen.add(node)
        for parent, _ in node.next_functions:
            graph_size(parent, seen)
    return len(seen)


def test_iterations_are_not_recorded():
    x, y = clouds(n=30, m=30, d=2)
    x.requires_grad_()
    easy, hard = solve_divergence(x, y, 1.0), solve_divergence(x, y, 0.003)
    assert hard.iterations > 2 * easy.iterations
    assert graph_size(hard.value.grad_fn) == graph_size(easy.value.grad_fn) < 100


def test_nearly_a_permutation_is_solved_where_sinkhorn_alone_is_not():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(128, 12, generator=generator, dtype=torch.float64)
    x = y + 0.2 * torch.randn(128, 12, generator=generator, dtype=torch.float64)
    result = solve_divergence(x, y, 0.02)
    assert result.converged
    assert result.error <= 1e-8
    assert result.iterations < 100
    weights = torch.full((128,), 1 / 128, dtype=torch.float64)
    cost = torch.cdist(x, y).square() / torch.cdist(y, y).square().mean()
    _, log = sinkhorn_log(weights, weights, cost, 0.02, numItermax=1000, stopThr=1e-12, warn=False, log=True)
    assert log["err"][-1] * 128**0.5 > 1e-6


def test_repeated_points_are_solved():
    x, y = clouds(n=6, m=6, d=4)
    x, y = x.repeat(5, 1), y.repeat(5, 1)
    result = solve_divergence(x, y, 0.01)
    assert result.converged
    assert result.value.item() == pytest.approx(sinkhorn_divergence(x[:6], y[:6], 0.01).item(), rel=1e-9)


def test_unconverged_says_so():
    x, y = clouds()
    with pytest.warns(ConvergenceWarning, match="of the mass misplaced"):
        sinkhorn_divergence(x, y, 0.01, max_iter=1)
    result = solve_divergence(x, y, 0.01, max_iter=1)
    assert not result.converged
    assert result.error > 1e-8
    assert result.iterations == 3


def test_converged_says_nothing():
    x, y = clouds()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn_divergence(x, y)


# ---- many points ---------------------------------------------------------------------------------------------------


def test_subsampling_is_seeded_keeps_matches_and_leaves_the_global_generator():
    x, _ = clouds(n=50)
    y = x + torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    state = torch.random.get_rng_state()
    first = sinkhorn_divergence(x, y, max_points=10)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sinkhorn_divergence(x, y, max_points=10) == first
    assert sinkhorn_divergence(x, y, max_points=10, seed=1) != first
    assert sinkhorn_divergence(x, x, max_points=10) < 1e-12
    assert sinkhorn_divergence(x, y, max_points=50) == sinkhorn_divergence(x, y)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3)}, "x: shape"),
        ({"y": torch.zeros(2, 3, 3)}, "y: shape"),
        ({"x": torch.zeros(0, 3)}, "x: .*at least one point"),
        ({"y": torch.zeros(4, 0)}, "y: .*at least one point"),
        ({"x": torch.zeros(4, 2)}, "widths 2 and 3"),
        ({"x": torch.full((4, 3), float("nan"))}, "x: holds NaN"),
        ({"y": torch.full((4, 3), float("inf"))}, "y: holds NaN"),
        ({"epsilon": 0.0}, "epsilon: found 0"),
        ({"epsilon": -1.0}, "epsilon: found -1"),
        ({"epsilon": float("nan")}, "epsilon: found nan"),
        ({"scale": 0.0}, "scale: found 0"),
        ({"scale": float("nan")}, "scale: found nan"),
        ({"scale": torch.ones(2)}, "scale: found"),
        ({"tol": 0.0}, "tol: found 0"),
        ({"max_iter": 0}, "max_iter: found 0"),
        ({"max_points": 0}, "max_points: found 0"),
        ({"y": torch.ones(4, 3)}, "y: all points are equal"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message):
    x, y = clouds()
    with pytest.raises(ValueError, match=message):
        sinkhorn_divergence(**({"x": x, "y": y} | arguments))
