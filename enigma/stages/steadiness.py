"""Steadiness of a training run: area, roughness and drawdown of a curve, variation of the gradient norm.

Pure functions of a curve first; below them, intervals for a whole training table. A curve's roughness holds the
sampling noise of each step's batch, which is of the same size in every arm, so arms are compared, not judged alone.
METHOD [D].
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from enigma.method.stats import Interval, mean_interval

# Name of a measure: the column of the training table it is taken of, and the function of METHOD section 8.
MEASURES = {
    "reward_area": ("reward_graded", "area"),
    "reward_roughness": ("reward_graded", "roughness"),
    "reward_drawdown": ("reward_graded", "drawdown"),
    "kl_area": ("kl", "area"),
    "kl_roughness": ("kl", "roughness"),
    "grad_norm_cv": ("grad_norm", "variation"),
}
SEEDS_NEEDED = 3
NO_GROUPS = pd.DataFrame(columns=["arm", "seed", "step", "question", "principle", "reward_graded"])
CAPTION = (
    "Steadiness of training. Reward: area (mean height), roughness (mean absolute step difference over range), "
    "maximum drawdown; KL: area and roughness; coefficient of variation of the gradient norm. 95% intervals over "
    "the unit in the column `over`: a bootstrap within each step for single runs, seeds where an arm has at least "
    "three. Where a step has too few units there is no interval."
)


def area(curve: np.ndarray) -> np.ndarray:
    """Mean height under the curve by trapezia, in the curve's unit. `curve` is (..., steps), at least 2 steps."""
    return np.trapezoid(curve, axis=-1) / (np.shape(curve)[-1] - 1)


def roughness(curve: np.ndarray) -> np.ndarray:
    """Mean absolute step difference over the curve's range, in (0, 1]; NaN for a flat curve. (..., steps).

    A straight line of n steps has 1/(n-1); a curve that jumps between two values at each step has 1.
    """
    curve = np.asarray(curve, dtype=np.float64)
    span = np.ptp(curve, axis=-1)
    jumps = np.abs(np.diff(curve, axis=-1)).mean(axis=-1)
    return np.divide(jumps, span, out=np.full_like(jumps, np.nan), where=span > 0)


def drawdown(curve: np.ndarray) -> np.ndarray:
    """Largest fall from an earlier maximum, in the curve's unit, >= 0. (..., steps)."""
    curve = np.asarray(curve, dtype=np.float64)
    return (np.maximum.accumulate(curve, axis=-1) - curve).max(axis=-1)


def variation(curve: np.ndarray) -> np.ndarray:
    """Coefficient of variation: standard deviation over mean, both over steps; NaN for a mean of 0. (..., steps)."""
    curve = np.asarray(curve, dtype=np.float64)
    mean = curve.mean(axis=-1)
    return np.divide(curve.std(axis=-1, ddof=1), mean, out=np.full_like(mean, np.nan), where=mean != 0)


FUNCTIONS = {"area": area, "roughness": roughness, "drawdown": drawdown, "variation": variation}


def resampled_curves(groups: pd.DataFrame, unit: list[str], resamples: int, seed: int) -> np.ndarray | None:
    """(resamples, steps): reward curves with each step's units drawn again, or None where a step has one unit alone.

    Deviations are stretched by sqrt(n/(n-1)), since a step has few units n and the plain bootstrap is then too narrow.
    """
    random = np.random.default_rng(seed)
    columns = []
    for _, step in groups.groupby("step", sort=True):
        values = step.groupby(unit)["reward_graded"].mean().to_numpy()
        n = len(values)
        if n < 2:
            return None
        means = values[random.integers(0, n, size=(resamples, n))].mean(axis=1)
        columns.append(values.mean() + np.sqrt(n / (n - 1)) * (means - values.mean()))
    return np.stack(columns, axis=1)


def run_interval(
    measure: str, run: pd.DataFrame, groups: pd.DataFrame, resamples=2000, seed=0
) -> tuple[Interval, str]:
    """A measure of one run with its 95% interval, and the unit that was resampled ("" where there is no interval).

    `run` is the run's rows of the training table, `groups` its rows of training_groups. Questions are resampled where
    every step has two or more (groups of one question are not independent), else GRPO groups. Normal interval from
    the bootstrap's standard deviation: resampling adds noise, so the bootstrap's own centre is too rough.
    """
    column, name = MEASURES[measure]
    curve = run.sort_values("step")[column].to_numpy(dtype=np.float64)
    value = float(FUNCTIONS[name](curve)) if len(curve) > 1 else float("nan")
    if column != "reward_graded" or groups.empty or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan")), ""
    for over, unit in (("questions", ["question"]), ("groups", ["question", "principle"])):
        curves = resampled_curves(groups, unit, resamples, seed)
        if curves is not None:
            width = 1.959964 * float(np.nanstd(FUNCTIONS[name](curves), ddof=1))
            return Interval(value, value - width, value + width), over
    return Interval(value, float("nan"), float("nan")), ""


def table(training: pd.DataFrame, groups: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The steadiness table: arm, seed, measure, value, low, high, over.

    One row for each run and measure; arms with three seeds or more get a row more, with an empty seed and the mean
    over seeds. `seed` is that of the bootstrap. Rows keep the order of `training`.
    """
    rows = []
    for arm, of_arm in training.groupby("arm", sort=False):
        for measure in MEASURES:
            values = []
            for run_seed, run in of_arm.groupby("seed", sort=False):
                mine = groups[(groups["arm"] == arm) & (groups["seed"] == run_seed)]
                interval, over = run_interval(measure, run, mine, seed=seed)
                values.append(interval.value)
                rows.append([arm, run_seed, measure, *interval, over])
            if len(values) >= SEEDS_NEEDED and np.isfinite(values).all():
                rows.append([arm, float("nan"), measure, *mean_interval(values, seed=seed), "seeds"])
    return pd.DataFrame(rows, columns=["arm", "seed", "measure", "value", "low", "high", "over"])


def run(profile, results) -> pd.DataFrame:
    """Make and write the table `steadiness` from `training` and, where there is one, `training_groups`."""
    training = results.read_table("training")
    inputs = ["training", "training_groups"] if results.has_table("training_groups") else ["training"]
    groups = results.read_table("training_groups") if len(inputs) == 2 else NO_GROUPS
    made = table(training, groups, profile.seeds.bootstrap)
    results.write_table("steadiness", made, CAPTION, inputs=inputs)
    return made
