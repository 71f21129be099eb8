"""Figures of stage 5."""

from __future__ import annotations

import matplotlib.pyplot as plt
import seaborn as sns

from enigma.figures.style import GREY, arm_styles, errors, figure, zero
from enigma.stages.claims import NAME, NOT_SUPPORTED, NOT_TESTED, SUPPORTED, UNDECIDED
from enigma.stages.prediction import OUTCOMES, SETS

COLOURS = {SUPPORTED: "#0173b2", NOT_SUPPORTED: "#d55e00", UNDECIDED: GREY, NOT_TESTED: "#bdbdbd"}


@figure(NAME, "claims")
def fig9_claims(profile, claims):
    """Every claim with its verdict and the effect that decided it, in units of its interval."""
    drawn, axes = plt.subplots(figsize=(9, 0.5 * len(claims) + 1.2))
    for y, row in enumerate(claims[::-1].itertuples()):
        colour = COLOURS[row.verdict]
        width = (row.high - row.low) / 2
        if width > 0:
            axes.errorbar(row.value / width, y, xerr=1, fmt="o", color=colour, ms=6, lw=1.6)
        axes.text(
            1.02, y, row.verdict, color=colour, va="center", transform=axes.get_yaxis_transform(), fontsize=9
        )
    zero(axes)
    axes.set_yticks(
        range(len(claims)), [f"{row.id}  {row.measure}" for row in claims[::-1].itertuples()], fontsize=8
    )
    axes.set_xlabel("effect, in half widths of its 95 % interval (right of the line favours the claim)")
    counts = claims["verdict"].value_counts()
    told = ", ".join(
        f"{word} {counts.get(word, 0)}" for word in (SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTED)
    )
    axes.set_title(told)
    return (
        drawn,
        f"Verdicts on the paper's claims and on two of our own: {told}. A claim without a point was not tested, or has no interval.",
    )


@figure(NAME, "ablation")
def fig10_ablation(profile, ablation):
    """Each arm against plain GRPO."""
    table = ablation[ablation["arm"] != "grpo"]
    if table.empty:
        raise ValueError("no arm beside grpo in this run")
    measures, arms = list(dict.fromkeys(table["measure"])), list(dict.fromkeys(table["arm"]))[::-1]
    styles = arm_styles(arms[::-1])
    drawn, grid = plt.subplots(
        1, len(measures), figsize=(2.6 * len(measures), 0.4 * len(arms) + 1.4), sharey=True, squeeze=False
    )
    for axes, measure in zip(grid.flat, measures, strict=True):
        for row in table[table["measure"] == measure].itertuples():
            one = table.loc[[row.Index]]
            axes.errorbar(
                row.value,
                arms.index(row.arm),
                xerr=errors(one, "value", "low", "high"),
                fmt="o",
                color=styles[row.arm][0],
                ms=5,
            )
        zero(axes)
        axes.set_title(measure.replace("_", " "))
    grid[0, 0].set_yticks(range(len(arms)), arms)
    seeds = int(table["seeds"].max())
    return drawn, (
        f"What each arm changes against plain GRPO of the same seed, over {seeds} paired seed(s); intervals (Student's t) where there "
        "are two or more."
    )


@figure(NAME, "prediction_points", "prediction")
def fig11_prediction(profile, points, prediction):
    """SI before training against what training did, one point a set."""
    if len(points) < SETS:
        raise ValueError(f"{len(points)} sets; {SETS} are needed to say whether SI predicts anything")
    drawn, grid = plt.subplots(1, len(OUTCOMES), figsize=(11, 3))
    for axes, outcome in zip(grid, OUTCOMES, strict=True):
        row = prediction[prediction["outcome"] == outcome].iloc[0]
        sns.regplot(
            data=points, x="si", y=outcome, ax=axes, ci=None, color=COLOURS[SUPPORTED], scatter_kws={"s": 20}
        )
        axes.set_title(f"rho = {row.correlation:.2f}, p = {row.p_value:.2g}")
        axes.set(xlabel="SI of the set", ylabel=outcome.replace("_", " "))
    return (
        drawn,
        "Does SI, measured before training, predict what training does? One point for each set, Spearman's rho, exact permutation p.",
    )
