"""The neighbours beside each other: every arm that names a control, and what it changes (docs/neighbours.md)."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from enigma.method.stats import student_interval
from enigma.profile import BASE
from enigma.stages.judging import Missing

MEASURES = ("reward", "drift", "untrained_bound", "perplexity", "bits", "arc_easy", "piqa", "seconds")
AT_DRIFT = "reward_at_drift"
CAPTION = (
    "Each neighbour and, in the row below, its difference to its control over paired seeds with Student's t interval; a row "
    "without `versus` has the mean over seeds, with the smallest and the largest. reward: graded format at the end; drift: "
    "Sinkhorn divergence on held-out prompts, mean over layers; untrained_bound: information (nats) that the untrained model "
    "reads; perplexity: of held-out completions under the untrained model; bits: Lempel-Ziv bits per character; arc_easy, piqa: "
    "margin minus the untrained model's (nats per character), shown whether or not so few items make the task sensitive; seconds: of a step; reward_at_drift: difference in "
    "training reward (mean of three steps), each run taken where its drift first reached the smaller of the two largest drifts. learned: "
    "whether the interval of the gain lies above zero in every run."
)


def table(profile, read) -> pd.DataFrame:
    """The table `neighbours` from `enigma.stages.claims.Tables`; no rows where no arm has a control."""
    controls = {name: arm.control for name, arm in profile.arms.items() if arm.control}
    rows = []
    for arm in [name for name in profile.arms if name in controls or name in controls.values()]:
        found = {}
        for measure in MEASURES:
            for side in (arm, controls.get(arm)):
                try:
                    found[measure, side] = _by_seed(profile, read, measure, side)
                except (Missing, KeyError):
                    found[measure, side] = pd.Series(dtype=float)
        checks = read.get("training_checks").query("arm == @arm")
        head = {"arm": arm, "seeds": len(checks), "learned": bool((checks["gain_low"] > 0).all())}
        own = {m: (v.mean(), v.min(), v.max()) for m in MEASURES for v in [found[m, arm].dropna()]}
        rows.append(head | {"versus": ""} | _spread(own))
        if arm in controls:
            pairs = {m: (found[m, arm] - found[m, controls[arm]]).dropna() for m in MEASURES}
            pairs[AT_DRIFT] = at_equal_drift(read.get("training"), arm, controls[arm])
            differences = {m: student_interval(v) if len(v) else (math.nan,) * 3 for m, v in pairs.items()}
            rows.append(head | {"versus": controls[arm]} | _spread(differences))
    columns = ["arm", "versus", "seeds", "learned", *_spread(dict.fromkeys((*MEASURES, AT_DRIFT), (0, 0, 0)))]
    return pd.DataFrame(rows, columns=columns)


def at_equal_drift(training: pd.DataFrame, *arms: str) -> pd.Series:
    """By seed, the first arm's reward minus the second's, each where its drift first reaches what both have reached."""
    found = {}
    for seed, rewards, drifts in _curves(training, arms):
        first, second = _reached(drifts, arms)
        found[seed] = rewards.loc[first, arms[0]] - rewards.loc[second, arms[1]]
    return pd.Series(found, dtype=float)


def at_equal_reward(training: pd.DataFrame, *arms: str) -> pd.Series:
    """By seed, log of the first arm's drift over the second's, each where its reward first reaches what both have reached.

    A seed is left out where that is at the first step of either, before anything moved.
    """
    found = {}
    for seed, rewards, drifts in _curves(training, arms):
        first, second = _reached(rewards, arms)
        ends = drifts.loc[first, arms[0]], drifts.loc[second, arms[1]]
        if min(ends) > 0:
            found[seed] = math.log(ends[0] / ends[1])
    return pd.Series(found, dtype=float)


def _curves(
    training: pd.DataFrame, arms: tuple[str, ...]
) -> Iterator[tuple[int, pd.DataFrame, pd.DataFrame]]:
    """(seed, rewards, drifts), one column an arm, at the steps where the drift of all was measured.

    A reward is the mean of three steps that follow each other, whether or not the drift was measured at each.
    """
    for seed, runs in training[training["arm"].isin(arms)].groupby("seed"):
        curves = runs.pivot(index="step", columns="arm", values=["reward_graded", "sinkhorn"])
        if {("sinkhorn", arm) for arm in arms} <= set(curves):
            drifts = curves["sinkhorn"].dropna()
            rewards = curves["reward_graded"].rolling(3, min_periods=1).mean()
            if len(drifts):
                yield seed, rewards.loc[drifts.index], drifts


def _reached(curves: pd.DataFrame, arms: tuple[str, ...]) -> list[int]:
    """For each arm the first step at which its curve is at the smaller of the two largest values."""
    level = curves.max().min()
    return [(curves[arm] >= level).idxmax() for arm in arms]


def _spread(values: dict[str, tuple]) -> dict[str, float]:
    return {m + end: x for m, v in values.items() for end, x in zip(("", "_low", "_high"), v, strict=True)}


def _by_seed(profile, read, measure: str, arm: str | None) -> pd.Series:
    if arm is None:
        raise KeyError(arm)
    if measure in ("arc_easy", "piqa"):
        found = read.get("benchmark_differences")
        found = found[(found["versus"] == BASE) & (found["metric"] == "margin") & (found["task"] == measure)]
        return read.by_seed(found, "difference", arm).astype(np.float64)
    frame, column = {
        "reward": lambda: (read.get("training_checks"), "reward_end"),
        "drift": lambda: (read.drift(), "value"),
        "untrained_bound": lambda: (read.get("legibility_items"), "untrained"),
        "perplexity": lambda: (read.get("legibility"), "perplexity_base"),
        "bits": lambda: (read.get("complexity"), "bits"),
        "seconds": lambda: (read.get("training"), "seconds"),
    }[measure]()
    return read.by_seed(frame, column, arm).astype(np.float64)
