"""Sinkhorn divergence between two clouds of points, with a gradient that costs no recorded iteration.

The problem (POT's notation), for uniform weights a on x and b on y and cost M_ij = |x_i - y_j|^2 / scale:

    OT_eps(x, y) = min_P <P, M> + eps KL(P | a b^T)   subject to   P 1 = a,  P^T 1 = b,  P >= 0
    S_eps(x, y)  = OT_eps(x, y) - OT_eps(x, x)/2 - OT_eps(y, y)/2                                   (eq. 6)

References: Cuturi 2013 (the entropic problem); Feydy et al. 2019 (the divergence; S_eps >= 0, and 0 only for
equal measures). Its place in the loss: docs/method.md, section 5. The divergence is the paper's [A], the choice of cost,
of scale and of solver is ours [D].

How it is solved: POT's log-domain Sinkhorn for a few iterations, then Newton steps on the dual with one marginal
eliminated (m x m systems). On hidden states of a language model Sinkhorn alone leaves 1e-5 of the mass misplaced
after 2000 iterations at eps = 0.05, since the plan is nearly a permutation there; three to five Newton steps reach
1e-9 in a tenth of the time. A Newton step that does not halve the error is dropped and Sinkhorn goes on.

Left out: weights, unbalanced transport, batches, low-memory cost matrices (max_points bounds the memory).
"""

import warnings
from typing import NamedTuple

import torch
from ot.bregman import sinkhorn_log

SINKHORN_ROUND = 11  # POT looks at the error at iterations 0 and 10, so a round ends on a look.
FIRST_NEWTON_ERROR = 0.5  # With more of the mass misplaced, Newton's model of the dual does not hold.
NEWTON_RIDGE = 1e-12  # Share of a point's weight: above rounding, below every coupling that matters.


class ConvergenceWarning(UserWarning):
    """The solver stopped at `max_iter` with more mass misplaced than `tol`."""


class Divergence(NamedTuple):
    """A divergence and how well it was solved."""

    value: torch.Tensor  # scalar, unitless, >= 0, with gradient
    converged: bool
    error: float  # largest share of mass misplaced in the three problems, 0..2
    iterations: int  # Sinkhorn iterations and Newton steps of the three problems together


class _Plan(NamedTuple):
    plan: torch.Tensor
    value: torch.Tensor
    error: float
    iterations: int


def sinkhorn_divergence(
    x: torch.Tensor,
    y: torch.Tensor,
    epsilon: float = 0.05,
    scale: float | torch.Tensor | None = None,
    *,
    tol: float = 1e-8,
    max_iter: int = 1000,
    max_points: int = 1024,
    seed: int = 0,
) -> torch.Tensor:
    """Debiased Sinkhorn divergence of two clouds (eq. 6), a scalar without unit (squared distance over `scale`).

    x: (n, d); y: (m, d); n and m may differ. Any floating type, inside or outside autocast: all arithmetic is
    float64 (on the CPU where the device has none) and the result is float32, or float64 if an input is.
    epsilon: regularisation as a share of `scale`, > 0.
    scale: cost that counts as 1. Default: y's own mean cost, mean_ij |y_i - y_j|^2 over all m^2 pairs, the zero
        diagonal counted (= twice y's total variance), before any subsampling, with its gradient if y has one.
    tol: share of mass that may be misplaced (L1 distance of the plan's marginals) when the solver stops.
    max_iter: Sinkhorn iterations and Newton steps per problem; after them the last plan is used, with a
        `ConvergenceWarning`.
    max_points: a larger cloud is replaced by `max_points` of its points, drawn without replacement by a generator
        seeded with `seed` alone. Clouds of one size keep the same rows, so matched clouds stay matched. The
        global random state is not touched.

    The result is 0 for equal clouds, at least 0 (a negative rounding error is clamped to 0, and then has no
    gradient), symmetric for a given scale, and exact at any distance from the origin: each cloud is centred at its
    own mean and the squared distance of the means, which the divergence contains as a summand, is added.
    The gradient with respect to x and y (and a tensor `scale`) is exact at convergence: by the envelope theorem it
    is that of <P, M> with P held, so no iteration is recorded.

    Raises ValueError for a wrong shape, an empty cloud, different widths, values that are not finite, and for an
    epsilon, scale, tol, max_iter or max_points out of range. Source: paper (the term), our choice (the details).
    """
    result = solve_divergence(
        x, y, epsilon, scale, tol=tol, max_iter=max_iter, max_points=max_points, seed=seed
    )
    if not result.converged:
        warnings.warn(
            f"Sinkhorn divergence not converged: {result.error:.1e} of the mass misplaced after "
            f"{result.iterations} iterations, {tol:.1e} asked for. Raise epsilon or max_iter.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result.value


def solve_divergence(
    x, y, epsilon=0.05, scale=None, *, tol=1e-8, max_iter=1000, max_points=1024, seed=0
) -> Divergence:
    """`sinkhorn_divergence` with the solver's state beside the value, and no warning. Same arguments and errors."""
    _check_cloud("x", x)
    _check_cloud("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y: widths {x.shape[1]} and {y.shape[1]}, expected the same width")
    for name, number in (
        ("epsilon", epsilon),
        ("tol", tol),
        ("max_iter", max_iter),
        ("max_points", max_points),
    ):
        if not 0 < number < float("inf"):
            raise ValueError(f"{name}: found {number}, expected a positive finite number")

    result_type = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x, y = _to_float64(x), _to_float64(y)
        unit = _unit(y, scale)
        x, y = _subsample(x, max_points, seed), _subsample(y, max_points, seed)
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        xy, xx, yy = (_transport(p, q, unit, epsilon, tol, max_iter) for p, q in ((x, y), (x, x), (y, y)))
        shift = (x_mean - y_mean).square().sum() / unit
        value = (shift + xy.value - (xx.value + yy.value) / 2).clamp(min=0)
    error = max(part.error for part in (xy, xx, yy))
    iterations = sum(part.iterations for part in (xy, xx, yy))
    return Divergence(value.to(result_type), error <= tol, error, iterations)


def squared_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """mean_i |x_i - y_i|^2 over y's own mean cost: a scalar in the unit of `sinkhorn_divergence`, with gradient.

    x, y: (n, d), row i of both the same token. The plain rival of the divergence [D]: it also counts what only moves
    points to where others were, and a token that changed places with another. Float64 inside, float32 out.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = _to_float64(x), _to_float64(y)
        return ((x - y).square().sum(1).mean() / _unit(y, None)).float()


def _check_cloud(name: str, cloud: torch.Tensor) -> None:
    if cloud.ndim != 2:
        raise ValueError(f"{name}: shape {tuple(cloud.shape)}, expected (points, width)")
    if 0 in cloud.shape:
        raise ValueError(
            f"{name}: shape {tuple(cloud.shape)}, expected at least one point and one coordinate"
        )
    if not torch.isfinite(cloud).all():
        raise ValueError(f"{name}: holds NaN or infinity, expected finite coordinates")


def _to_float64(cloud: torch.Tensor) -> torch.Tensor:
    # Apple's GPU has no float64.
    return (cloud.cpu() if cloud.device.type == "mps" else cloud).double()


def _unit(y: torch.Tensor, scale: float | torch.Tensor | None) -> torch.Tensor:
    if scale is None:
        unit = 2 * (y - y.mean(0)).square().sum(1).mean()
        if unit <= 0:
            raise ValueError("y: all points are equal, so its mean cost is 0; pass a positive scale")
        return unit
    unit = torch.as_tensor(scale, dtype=torch.float64, device=y.device)
    if unit.numel() != 1 or not 0 < unit.item() < float("inf"):
        raise ValueError(f"scale: found {scale}, expected one positive finite number")
    return unit.reshape(())


def _subsample(cloud: torch.Tensor, max_points: int, seed: int) -> torch.Tensor:
    if len(cloud) <= max_points:
        return cloud
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(seed))
    return cloud[order[:max_points].sort().values.to(cloud.device)]


def _transport(
    x: torch.Tensor, y: torch.Tensor, unit: torch.Tensor, epsilon: float, tol: float, max_iter: int
) -> _Plan:
    """OT_eps with the gradient of <P, M>. The value is the dual's, whose error is of second order in the plan's."""
    cost = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0) / unit
    with torch.no_grad():
        solved = _solve(-cost.detach() / epsilon, tol, max_iter)
    attached = epsilon * solved.value + (solved.plan * (cost - cost.detach())).sum()
    return solved._replace(value=attached)


def _solve(log_kernel: torch.Tensor, tol: float, max_iter: int) -> _Plan:
    """Plan and dual value (in units of eps) for uniform weights: rounds of Sinkhorn, each followed by Newton."""
    n, m = log_kernel.shape
    a, b = log_kernel.new_full((n,), 1 / n), log_kernel.new_full((m,), 1 / m)
    u, v = log_kernel.new_zeros(n), log_kernel.new_zeros(m)
    iterations = 0
    error = float("inf")
    while error > tol and iterations < max_iter:
        steps = min(SINKHORN_ROUND, max_iter - iterations)
        # POT measures the L2 norm of one marginal's error; divided by sqrt(m) it bounds the L1 norm by tol.
        options = dict(numItermax=steps, stopThr=tol / m**0.5, warn=False, log=True, warmstart=(u, v))
        _, log = sinkhorn_log(a, b, -log_kernel, 1.0, **options)
        iterations += log["niter"] + 1
        u, plan, error = _close_rows(log_kernel, log["log_v"], a, b)
        v = log["log_v"]
        while tol < error < FIRST_NEWTON_ERROR and iterations < max_iter:
            tried = _newton_step(plan, v, a, b)
            u_tried, plan_tried, error_tried = _close_rows(log_kernel, tried, a, b)
            iterations += 1
            if not error_tried < error / 2:
                break
            u, v, plan, error = u_tried, tried, plan_tried, error_tried
    value = a @ (u - a.log()) + b @ (v - b.log())
    return _Plan(plan, value, error, iterations)


def _close_rows(log_kernel, v, a, b) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The u that makes the rows sum to a, the plan, and how much mass its columns misplace."""
    u = a.log() - torch.logsumexp(log_kernel + v, 1)
    plan = torch.exp(log_kernel + u[:, None] + v)
    return u, plan, (plan.sum(0) - b).abs().sum().item()


def _newton_step(plan, v, a, b) -> torch.Tensor:
    """v after one Newton step on the dual, u eliminated.

    The dual is flat along a constant, which b b^T pins, and along groups of points that exchange no mass with the
    others (repeated tokens, small epsilon), which the ridge pins.
    """
    columns = plan.sum(0)
    hessian = columns.diag() - plan.T @ (plan / a[:, None]) + torch.outer(b, b)
    hessian.diagonal().add_(NEWTON_RIDGE * b)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return v
    return v + torch.cholesky_solve((b - columns)[:, None], factor)[:, 0]
