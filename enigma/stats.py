"""Intervals. Statistics live here, drawing lives in `figures`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside the interval. False where an end is not a number."""
        return bool(self.low > point or self.high < point)


def mean_interval(values, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of independent units with a studentised bootstrap (bootstrap-t) interval.

    Each resample's error is divided by its own standard error, so the interval widens as it must
    when units are few or skewed. `values` is (n,), one number for each independent unit (a question,
    a seed, an item), in any unit; the result has the same unit. With one unit, or none, the ends are
    NaN. With no spread the interval is the point itself. Source: our choice (METHOD.md section 6
    asks for a bootstrap over questions; the percentile form covers too little for few questions).
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, float("nan"), float("nan"))
    error = values.std(ddof=1) / np.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean)
    drawn = values[np.random.default_rng(seed).integers(0, n, size=(resamples, n))]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(n)
    # A resample that repeats one unit has no spread and no t; it is left out.
    kept = errors > 1e-12 * error
    t = (drawn.mean(axis=1)[kept] - mean) / errors[kept]
    tail = (1 - level) / 2
    t_low, t_high = np.quantile(t, [tail, 1 - tail])
    return Interval(mean, float(mean - t_high * error), float(mean - t_low * error))
