"""Does SI, measured before training, predict what training does? Over arms that differ in their set alone."""

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from enigma.stages.judging import Missing, log_unsteadiness

SETS = 6  # fewer allow no exact p-value below 0.05
OUTCOMES = ("margin", "untrained_bound", "unsteadiness", "reward_end")
CAPTION_POINTS = (
    "One row for each set that an ENIGMA arm was trained on: its SI before training, and what the arm did, mean over seeds. "
    "margin: benchmark margin against base, in standard deviations; untrained_bound: information (nats) that the untrained "
    "model reads in held-out completions; unsteadiness: log mean squared second difference of the probe; reward_end: graded."
)
CAPTION = (
    "Spearman's rank correlation of SI before training with what training did, over sets, with the exact permutation "
    f"p-value. Fewer than {SETS} sets allow no verdict."
)


def alike(profile) -> list[str]:
    """The largest group of arms with the SAMI term that differ in their set (and seeds) alone; none where two are as large."""
    groups: dict[str, list[str]] = {}
    for name, arm in profile.arms.items():
        if arm.lambda_sami > 0 and arm.reward == "format":
            rest = arm.model_dump(exclude={"set", "seeds", "control"})
            groups.setdefault(repr(rest), []).append(name)
    first, *others = sorted(groups.values(), key=len, reverse=True) or [[]]
    return [] if others and len(others[0]) == len(first) else first


def points(profile, read) -> pd.DataFrame:
    """The table `prediction_points` from `enigma.stages.judging.Tables`; a measure that is missing is NaN."""
    sets = read.get("sufficiency").query("level == 'set' and span == 'reasoning'").set_index("name")["si"]
    steady = log_unsteadiness(read.get("training"))
    checks, items = read.get("training_checks"), read.get("legibility_items")
    rows = []
    for arm in alike(profile):
        row = {"arm": arm, "set": profile.arms[arm].set, "si": sets.get(profile.arms[arm].set, np.nan)}
        makers = {
            "margin": lambda arm=arm: read.effect(arm, "base").mean(),
            "untrained_bound": lambda arm=arm: read.by_seed(items, "untrained", arm).mean(),
            "unsteadiness": lambda arm=arm: read.by_seed(steady, "value", arm).mean(),
            "reward_end": lambda arm=arm: read.by_seed(checks, "reward_end", arm).mean(),
        }
        for name, make in makers.items():
            try:
                row[name] = make()
            except Missing:
                row[name] = np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=["arm", "set", "si", *OUTCOMES])


def table(points: pd.DataFrame, seed: int) -> pd.DataFrame:
    """outcome, sets, correlation, p_value (NaN below `SETS` sets)."""
    rows = []
    for outcome in OUTCOMES:
        pair = points[["si", outcome]].dropna()
        correlation, p_value = np.nan, np.nan
        if len(pair) >= 3:
            correlation = scipy_stats.spearmanr(pair["si"], pair[outcome]).statistic
        if len(pair) >= SETS:
            found = scipy_stats.permutation_test(
                (pair["si"].rank().to_numpy(),),
                _with(pair[outcome].rank().to_numpy()),
                permutation_type="pairings",
                n_resamples=9999,
                rng=np.random.default_rng(seed),
            )
            p_value = found.pvalue
        rows.append([outcome, len(pair), correlation, p_value])
    return pd.DataFrame(rows, columns=["outcome", "sets", "correlation", "p_value"])


def _with(ranks: np.ndarray):
    return lambda x: np.corrcoef(x, ranks)[0, 1]
