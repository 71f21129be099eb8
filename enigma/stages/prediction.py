"""Does SI, measured before training, predict what training then does? One point for each set that an arm was trained on.

Compared are the arms that differ in their set alone: SI of the set against steadiness and against benchmarks, by
Spearman's rank correlation, averaged over seeds. The p-value is exact, over all permutations of the sets; below five sets no
p-value can reach 0.05, and that is what the verdict says. From tables alone. Source: our choice [D].
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, rankdata

from enigma.stages.claims import PRIMARY

# Outcome: its sign, so that a positive correlation favours the claim. The first two decide; fixed before any run.
OUTCOMES = {"reward_roughness": -1, "benchmarks": 1, "reward_drawdown": -1, "grad_norm_cv": -1}
DECISIVE = ("reward_roughness", "benchmarks")
PREDICTORS = ("si", "si_heldout")
SETS_NEEDED = 5  # with four, the smallest two-sided p-value is 2 / 4! = 0.083
RESAMPLES = 2000
TOO_FEW, PREDICTS, OPPOSITE, NOT = (
    "too few sets to tell",
    "predicts",
    "predicts the opposite",
    "does not predict",
)
INPUTS = ("selection", "legibility", "steadiness", "benchmark_differences")
CAPTIONS = {
    "prediction_points": "What SI is held against: the arms that differ in their set alone. si: of the set, on the questions "
    "that chose it; si_heldout: on others (whole completions). Steadiness as in the table steadiness (lower is steadier); "
    "benchmarks: mean difference to the untrained model over the own tasks' deciding metrics.",
    "prediction": "Rank correlation (Spearman) over sets between SI and each outcome, signed so that above zero favours the "
    "claim. p-value: exact, over permutations of the sets, not corrected for the number of rows; 95 % interval by "
    f"bootstrap over sets, and seeds within each, from {SETS_NEEDED} sets on. reward_roughness and benchmarks decide.",
}


def alike(profile) -> list[str]:
    """The arms of the largest group that differ in their set alone, in the profile's order."""
    groups: dict[tuple, list[str]] = {}
    for name, arm in profile.arms.items():
        groups.setdefault(tuple(arm.model_dump(exclude={"set"}).items()), []).append(name)
    return max(groups.values(), key=lambda arms: len({profile.arms[arm].set for arm in arms}))


def points(profile, selection: dict, legibility, steadiness, differences) -> pd.DataFrame:
    """The table `prediction_points`: a row for each of the `alike` arms and seed; NaN for what was not measured."""
    base = legibility[legibility["seed"].isna()].set_index("set")
    heldout = base["row_bound"] / np.log(base["k"])
    steady = steadiness.dropna(subset=["seed"]).pivot(
        index=["arm", "seed"], columns="measure", values="value"
    )
    decides = differences[["task", "metric"]].apply(tuple, axis=1).isin(PRIMARY.values())
    gains = (
        differences[decides & (differences["versus"] == "base")].groupby(["arm", "seed"])["difference"].mean()
    )
    rows = []
    for arm in alike(profile):
        name = profile.arms[arm].set
        for seed in profile.seeds.runs:
            row = {
                "arm": arm,
                "set": name,
                "seed": seed,
                "si": selection[name]["si"],
                "si_heldout": heldout.get(name, np.nan),
                "benchmarks": gains.get((arm, seed), np.nan),
            }
            row |= {
                measure: steady[measure].get((arm, seed), np.nan) for measure in OUTCOMES if measure in steady
            }
            rows.append(row)
    return pd.DataFrame(rows).reindex(columns=["arm", "set", "seed", *PREDICTORS, *OUTCOMES])


def rank_correlation(si, outcome) -> float:
    """Spearman's correlation, (n,) each, in [-1, 1]; NaN for fewer than three or where one does not vary."""
    if len(si) < 3 or np.ptp(si) == 0 or np.ptp(outcome) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(si), rankdata(outcome))[0, 1])


def p_value(si, outcome) -> float:
    """Two-sided p-value of no association over all permutations (9,999 drawn ones where there are more)."""
    ranks = rankdata(si) - (len(si) + 1) / 2

    def association(drawn, axis):  # Spearman's correlation but for its scale, which no permutation changes
        return (drawn * ranks).sum(axis)

    found = permutation_test(
        (rankdata(outcome),),
        association,
        permutation_type="pairings",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def bootstrap_ends(si, runs: list[np.ndarray], seed: int) -> tuple[float, float]:
    """95 % ends of the correlation: sets are drawn again, and seeds within each. `runs[i]` (seeds,) outcomes of set i."""
    generator, n = np.random.default_rng(seed), len(si)
    some = generator.integers(0, n, (RESAMPLES, n))
    outcome = np.empty(some.shape)
    for i, run in enumerate(runs):
        drawn = run[generator.integers(0, len(run), (*some.shape, len(run)))].mean(-1)
        outcome[some == i] = drawn[some == i]
    a, b = (
        ranks - ranks.mean(1, keepdims=True)
        for ranks in (rankdata(si[some], axis=1), rankdata(outcome, axis=1))
    )
    with np.errstate(invalid="ignore"):  # a resample of one set alone has no correlation
        correlations = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(correlations, [0.025, 0.975])
    return float(low), float(high)


def correlation(table: pd.DataFrame, predictor: str, outcome: str, seed: int) -> dict:
    """A row of the table `prediction`, from `prediction_points`."""
    sets = [part for _, part in table.dropna(subset=[predictor, outcome]).groupby("set", sort=False)]
    si = np.array([part[predictor].iloc[0] for part in sets])
    runs = [OUTCOMES[outcome] * part[outcome].to_numpy() for part in sets]
    means = np.array([run.mean() for run in runs])
    row = {
        "predictor": predictor,
        "outcome": outcome,
        "sets": len(sets),
        "seeds": table["seed"].nunique(),
        "correlation": rank_correlation(si, means),
        "low": np.nan,
        "high": np.nan,
        "p_value": np.nan,
    }
    if len(sets) < SETS_NEEDED:
        return row | {"verdict": TOO_FEW}
    if np.isnan(row["correlation"]):
        return row | {"verdict": NOT}
    row["low"], row["high"] = bootstrap_ends(si, runs, seed)
    row["p_value"] = p_value(si, means)
    direction = PREDICTS if row["correlation"] > 0 else OPPOSITE
    return row | {"verdict": direction if row["p_value"] <= 0.05 else NOT}


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Write and return the tables `prediction_points` and `prediction`. InputError names what has to run before."""
    selection = results.read_yaml("selection")
    table = points(profile, selection, *(results.read_table(name) for name in INPUTS[1:]))
    rows = [
        correlation(table, p, outcome, profile.seeds.bootstrap) for p in PREDICTORS for outcome in OUTCOMES
    ]
    tables = {"prediction_points": table, "prediction": pd.DataFrame(rows)}
    for name, made in tables.items():
        results.write_table(name, made, CAPTIONS[name], inputs=INPUTS)
    return tables
