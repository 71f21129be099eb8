"""Steadiness of a training run: what a curve over steps says about it (docs/method.md, eq. 24). Curves are (..., steps)."""

import numpy as np


def unsteadiness(curve) -> np.ndarray:
    """Mean squared second difference, mean_t (x_{t+1} - 2 x_t + x_{t-1})^2, in the curve's unit squared (eq. 24).

    At least 3 steps. 0 for a straight line, however steep. It is not divided by the curve's range: a run that learns
    nothing is not rough.
    """
    return (np.diff(np.asarray(curve, dtype=np.float64), n=2, axis=-1) ** 2).mean(axis=-1)


def area(curve) -> np.ndarray:
    """Mean height under the curve by trapezia, in the curve's unit; at least 2 steps."""
    return np.trapezoid(curve, axis=-1) / (np.shape(curve)[-1] - 1)


def drawdown(curve) -> np.ndarray:
    """Largest fall from an earlier maximum, in the curve's unit, 0 or more."""
    curve = np.asarray(curve, dtype=np.float64)
    return (np.maximum.accumulate(curve, axis=-1) - curve).max(axis=-1)


def variation(curve) -> np.ndarray:
    """Coefficient of variation: standard deviation over mean, both over steps; NaN for a mean of 0."""
    curve = np.asarray(curve, dtype=np.float64)
    mean = curve.mean(axis=-1)
    return np.divide(curve.std(axis=-1, ddof=1), mean, out=np.full_like(mean, np.nan), where=mean != 0)
