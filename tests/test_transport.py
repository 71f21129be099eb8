"""Sinkhorn divergence: against plain iterations, closed forms, invariants and injected faults."""

import math
import warnings

import pytest
import torch

from enigma.method.transport import ConvergenceWarning, sinkhorn_divergence, solve_divergence


def clouds(n=7, m=5, d=3, seed=0, shift=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + shift
    return x, torch.randn(m, d, generator=generator, dtype=torch.float64)


# ---- an independent solution by plain iterations -------------------------------------------------------------------


def slow_divergence(x, y, epsilon, scale=None):
    scale = scale or ((y[:, None] - y) ** 2).sum(-1).mean()

    def transport(a, b):
        cost = ((a[:, None] - b) ** 2).sum(-1) / scale
        f, g = torch.zeros(len(a), 1, dtype=a.dtype), torch.zeros(1, len(b), dtype=a.dtype)
        for _ in range(400):
            f = -epsilon * torch.exp((g - cost) / epsilon).mean(1, keepdim=True).log()
            g = -epsilon * torch.exp((f - cost) / epsilon).mean(0, keepdim=True).log()
        return f.mean() + g.mean()

    return transport(x, y) - transport(x, x) / 2 - transport(y, y) / 2


@pytest.mark.parametrize("scale", [None, 3.0])
def test_equals_plain_iterations(scale):
    x, y = clouds()
    expected = slow_divergence(x, y, 0.5, scale)
    assert sinkhorn_divergence(x, y, 0.5, scale).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.005])
def test_gradient_of_both_clouds_against_central_differences(epsilon):
    pair = [cloud.requires_grad_() for cloud in clouds(n=6, m=6)]
    step = {"eps": 1e-5, "atol": 5e-6, "rtol": 1e-4}
    assert torch.autograd.gradcheck(lambda x, y: sinkhorn_divergence(x, y, epsilon), pair, **step)


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


def test_at_least_the_squared_distance_of_the_means():
    for seed in range(20):
        x, y = clouds(n=3 + seed, m=8, d=1 + seed % 5, seed=seed, shift=0.1 * seed)
        bound = (x.mean(0) - y.mean(0)).square().sum().item()
        assert sinkhorn_divergence(x, y, 0.1, scale=1.0).item() > bound > 0


def test_what_changes_nothing():
    """The order of points, which cloud is which for a given scale, translation, rotation, unit."""
    x, y = clouds()
    rotation, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    expected = sinkhorn_divergence(x, y).item()
    for pair in ((x.flip(0), y), (x + 1e3, y + 1e3), (x @ rotation, y @ rotation), (100 * x, 100 * y)):
        assert sinkhorn_divergence(*pair).item() == pytest.approx(expected, rel=1e-9)
    assert sinkhorn_divergence(x.flip(0), x).item() < 1e-12
    one, other = sinkhorn_divergence(x, y, scale=2.0), sinkhorn_divergence(y, x, scale=2.0)
    assert one.item() == pytest.approx(other.item(), rel=1e-9)
    assert expected != pytest.approx(sinkhorn_divergence(y, x).item(), rel=1e-3)


def test_default_scale_counts_the_diagonal_and_all_points():
    x, y = clouds(n=30, m=30)
    scale = torch.cdist(y, y).square().mean()
    assert sinkhorn_divergence(x, y).item() == pytest.approx(
        sinkhorn_divergence(x, y, scale=scale).item(), rel=1e-9
    )
    given = sinkhorn_divergence(x, y, scale=scale, max_points=10).item()
    assert sinkhorn_divergence(x, y, max_points=10).item() == pytest.approx(given, rel=1e-9)


# ---- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_raised_first(dtype):
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
    assert torch.allclose(x.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


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
    assert result.iterations < 100  # Sinkhorn alone has 1e-6 of the mass misplaced after 1000


def test_repeated_points_are_solved():
    x, y = clouds(n=6, m=6, d=4)
    x, y = x.repeat(5, 1), y.repeat(5, 1)
    result = solve_divergence(x, y, 0.01)
    assert result.converged
    assert result.value.item() == pytest.approx(sinkhorn_divergence(x[:6], y[:6], 0.01).item(), rel=1e-9)


def test_unconverged_says_so_and_converged_says_nothing():
    x, y = clouds()
    with pytest.warns(ConvergenceWarning, match="of the mass misplaced"):
        sinkhorn_divergence(x, y, 0.01, max_iter=1)
    result = solve_divergence(x, y, 0.01, max_iter=1)
    assert not result.converged
    assert result.error > 1e-8
    assert result.iterations == 3
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
        ({"x": torch.zeros(0, 3)}, "x: .*at least one point"),
        ({"x": torch.zeros(4, 2)}, "widths 2 and 3"),
        ({"x": torch.full((4, 3), float("nan"))}, "x: holds NaN"),
        ({"y": torch.full((4, 3), float("inf"))}, "y: holds NaN"),
        ({"epsilon": 0.0}, "epsilon: found 0"),
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
