"""Intervals, tests of paired scores, and their correction. Statistics live here, drawing lives in `figures`."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(
    values,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    support: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of independent units with a studentised bootstrap (bootstrap-t) interval.

    Each resample's error is divided by its own standard error, so the interval widens as it must
    when units are few or skewed. `values` is (n,), one number for each independent unit (a question,
    a seed, an item), in any unit; the result has the same unit. With one unit, or none, the ends are
    NaN. With no spread the interval is the point itself. Neither end is nearer than Student's t puts it: near zero
    information the bootstrap alone loses one to three points of coverage.

    `support`: the smallest and the largest value that the true mean can have. The ends are cut to it (never past the
    estimate), which loses no coverage. Few questions near a ceiling need it: all but one look alike, so a resample
    without that one has hardly any spread to divide by, and the end runs far away. Other remedies (a floor under
    the resamples' errors, a t or a percentile interval) lose the coverage there instead.

    Source: our choice [D] (docs/method.md, section 10). What it covers, and where it does not: docs/coverage.md.
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
    student = stats.t.ppf(1 - tail, n - 1)
    t_low, t_high = np.quantile(t, [tail, 1 - tail])
    t_low, t_high = min(t_low, -student), max(t_high, student)
    low = max(mean - t_high * error, min(mean, support[0]))
    high = min(mean - t_low * error, max(mean, support[1]))
    return Interval(mean, float(low), float(high))


def student_interval(values, level: float = 0.95) -> Interval:
    """Mean of independent units (n,) with Student's t interval: for few units, such as training seeds.

    NaN ends with fewer than two units.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else float("nan"), float("nan"), float("nan"))
    reach = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - reach), float(values.mean() + reach))


def ratio_interval(
    numerator, denominator, support: tuple[float, float] = (-np.inf, np.inf), level: float = 0.95, **boot
) -> Interval:
    """Ratio of two sums over independent units, (n,) each, with an interval by influence values (eq. 28).

    R with its influences is a mean of units, and has `mean_interval`, with its `resamples` and `seed`. Student's t alone
    covers 67 to 96 % (docs/coverage.md).
    """
    value, influences = influence(numerator, denominator)
    return mean_interval(value + influences, level=level, support=support, **boot)


def ratio_difference(one, other, level: float = 0.95) -> Interval:
    """R_one - R_other of two ratios of sums, each a pair of (n,), over the same n units and paired by unit (eq. 28).

    As `ratio_interval`, with the difference of the two influences of a unit.
    """
    (first, a), (second, b) = influence(*one), influence(*other)
    return mean_interval(first - second + a - b, level=level)


def influence(numerator, denominator) -> tuple[float, np.ndarray]:
    """R = sum a / sum b of (n,) each, and the influence of each unit on it, (n,): n (a_q - R b_q) / sum b (eq. 28)."""
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    value = a.sum() / b.sum()
    return float(value), len(a) * (a - value * b) / b.sum()


def paired_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value of no difference between paired scores, both (n,), in [0, 1].

    Exact McNemar test where all scores are 0 or 1; else paired t test. 1 where no pair differs or there is only one.
    """
    differ = one != other
    if not differ.any() or len(one) == 1:
        return 1.0
    if np.isin([one, other], (0, 1)).all():
        return float(stats.binomtest(int((one > other).sum()), int(differ.sum())).pvalue)
    return float(stats.ttest_rel(one, other).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of (m,) p-values, by statsmodels; empty in, empty out."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1] if len(p_values) else np.asarray(p_values, dtype=float)


def own_label_test(matrix: np.ndarray, seed: int, draws: int = 9999) -> tuple[np.ndarray, float]:
    """Does each row stand out in its own column? For an (n, n) matrix: the values (n,) of diagonal minus mean of the
    row's other entries, and the one-sided p-value in (0, 1] of the diagonal's mean when columns are permuted over rows.

    Source: our choice [D], docs/method.md, table 1, C5.
    """
    n = len(matrix)
    own = np.diag(matrix)
    generator = np.random.default_rng(seed)
    null = np.array([matrix[np.arange(n), generator.permutation(n)].mean() for _ in range(draws)])
    p_value = (1 + np.sum(null >= own.mean() - 1e-12)) / (1 + draws)
    return own - (matrix.sum(1) - own) / (n - 1), float(p_value)
