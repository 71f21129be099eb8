"""Figures of stage 5."""

import seaborn as sns

from enigma.figures.style import (
    BLUE,
    GREY,
    arm_styles,
    figure,
    finding,
    forest,
    listed,
    panels,
    seeds_of,
    short,
    zero,
)
from enigma.stages.claims import NAME, NOT_SUPPORTED, NOT_TESTED, SUPPORTED, UNDECIDED
from enigma.stages.comparison import MEASURES
from enigma.stages.prediction import OUTCOMES, SETS

COLOURS = {SUPPORTED: BLUE, NOT_SUPPORTED: "#d55e00", UNDECIDED: GREY, NOT_TESTED: "#8a8a8a"}
MARKS = {SUPPORTED: "o", NOT_SUPPORTED: "X", UNDECIDED: "D", NOT_TESTED: "_"}


@figure(NAME, "claims")
def fig9_claims(profile, claims):
    """Every claim with its verdict and the effect that decided it, in units of its interval."""
    drawn, [axes] = panels(1, 7.5, 0.42 * len(claims) + 0.9)
    for y, row in enumerate(claims[::-1].itertuples()):
        colour, width = COLOURS[row.verdict], (row.high - row.low) / 2
        if width > 0:
            at = row.value / width
            axes.errorbar(at, y, xerr=1, fmt=MARKS[row.verdict], color=colour, ms=5, lw=1.6)
        axes.text(
            0.01, y + 0.33, row.measure, va="center", transform=axes.get_yaxis_transform(), fontsize="small"
        )
        axes.vlines(0, y - 0.25, y + 0.15, color=GREY, lw=0.8, zorder=0)
        axes.axhline(y + 0.6, color=GREY, lw=0.3)
    names = claims["id"] + "\n" + claims["verdict"].str.removesuffix(" at this size")
    axes.set_yticks(range(len(claims)), names[::-1])
    for label, verdict in zip(axes.get_yticklabels(), claims["verdict"][::-1], strict=True):
        label.set(color=COLOURS[verdict], fontweight="bold", fontsize="small")
    axes.set_ylim(-0.4, len(claims) - 0.4)
    axes.set_xlabel("effect, in half widths of its 95 % interval")
    counts = claims["verdict"].value_counts()
    told = ", ".join(f"{word} {counts.get(word, 0)}" for word in COLOURS)
    finding(drawn, told[0].upper() + told[1:])
    return drawn, (
        f"Verdicts on the paper's claims and on two of our own: {told}. Right of the line favours the claim. A claim without a "
        "point was not tested, or has no interval."
    )


# Of the table `ablation`: what a panel is called, and whether more is better.
ABLATION = {
    "margin": ("benchmark margin (sd)", True),
    "untrained_bound": ("read by the untrained (nats)", True),
    "drift": ("drift (Sinkhorn)", False),
    "strict": ("strict format", True),
}


@figure(NAME, "ablation")
def fig10_ablation(profile, ablation):
    """Each arm against plain GRPO."""
    table = ablation[ablation["arm"] != "grpo"]
    if table.empty:
        raise ValueError("no arm beside grpo in this run")
    measures, arms = list(dict.fromkeys(table["measure"])), list(dict.fromkeys(table["arm"]))[::-1]
    styles = arm_styles(profile)
    drawn, grid = panels(len(measures), 2.9, 0.28 * len(arms) + 0.9, columns=3, sharey=True)
    for axes, measure in zip(grid, measures, strict=True):
        for row in table[table["measure"] == measure].itertuples():
            forest(axes, table.loc[[row.Index]], [arms.index(row.arm)], *styles[row.arm])
        zero(axes)
        axes.set_title(ABLATION[measure][0])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.locator_params(axis="x", nbins=4)
    grid[0].set_yticks(range(len(arms)), arms)
    more = table["measure"].map(lambda measure: ABLATION[measure][1])
    up, down = table["low"] > 0, table["high"] < 0
    better, worse = sum(up & more | down & ~more), sum(down & more | up & ~more)
    finding(
        drawn,
        f"Of {len(table)} differences to plain GRPO {better} are better and {worse} worse, clear of zero"
        if table["seeds"].max() > 1
        else "Differences to plain GRPO, one seed: no interval, so nothing is decided here",
    )
    return drawn, (
        f"What each arm changes against plain GRPO of the same seed, over {seeds_of(table['seeds'])}, paired; intervals (Student's t) where there "
        "are two or more. Benchmark margin in standard deviations of the untrained model's items; information about the principle "
        "that the untrained model reads in held-out completions; drift, of which less is better; share of strictly formatted "
        "completions at the end of training."
    )


@figure(NAME, "prediction_points", "prediction")
def fig11_prediction(profile, points, prediction):
    """SI before training against what training did, one point a set."""
    if len(points) < SETS:
        raise ValueError(f"{len(points)} sets; {SETS} are needed to say whether SI predicts anything")
    drawn, grid = panels(len(OUTCOMES), 2.9, 2.6, columns=4)
    for axes, outcome in zip(grid, OUTCOMES, strict=True):
        row = prediction[prediction["outcome"] == outcome].iloc[0]
        sns.regplot(data=points, x="si", y=outcome, ax=axes, ci=None, color=BLUE, scatter_kws={"s": 20})
        axes.set_title(f"rho = {short(row.correlation)}, p = {row.p_value:.2g}")
        axes.set(xlabel="SI of the set", ylabel=outcome.replace("_", " "))
    best = prediction.loc[prediction["p_value"].idxmin()]
    finding(
        drawn,
        f"SI predicts {best.outcome.replace('_', ' ')} best: rho = {short(best.correlation)}, p = {best.p_value:.2g}",
    )
    return drawn, (
        "Does SI, measured before training, predict what training does? One point for each set, Spearman's rho, exact permutation p, "
        "not corrected for four outcomes."
    )


@figure(NAME, "neighbours", "complexity")
def fig12_neighbours(profile, neighbours, complexity):
    """Every neighbour beside its control, one panel for each measure."""
    if neighbours.empty:
        raise ValueError("no arm of this profile names a control")
    own = neighbours[neighbours["versus"].isna()]
    arms, styles = own["arm"].tolist()[::-1], arm_styles(profile)
    measures = [measure for measure in MEASURES if own[measure].notna().any()]
    drawn, grid = panels(len(measures), 2.2, 0.24 * len(arms) + 0.9, columns=4, sharey=True)
    for axes, measure in zip(grid, measures, strict=True):
        names = (measure, f"{measure}_low", f"{measure}_high")
        for row in own.itertuples():
            forest(axes, own.loc[[row.Index]], [arms.index(row.arm)], *styles[row.arm], names=names)
            control = own.loc[own["arm"] == profile.arms[row.arm].control, measure]
            axes.plot(control, [arms.index(row.arm)] * len(control), "|", color=GREY, ms=9)
        axes.set_title(measure.replace("_", " "))
        axes.locator_params(axis="x", nbins=4)
        if measure == "bits":
            untrained = complexity.groupby("arm")["base"].mean()
            axes.plot(untrained[arms], range(len(arms)), "o", color=GREY, mfc="white", ms=4)
    grid[0].set_yticks(range(len(arms)), arms)
    learned = own.loc[own["learned"].astype(bool), "arm"]
    finding(drawn, f"Of {len(own)} arms these gained format reward in every run: {listed(learned)}")
    return drawn, (
        f"The neighbours, mean over {seeds_of(own['seeds'])}, the line from smallest to largest; the grey mark is the arm's "
        "control. Bits: Lempel-Ziv, per character, hollow: of the untrained model's text at the same length; benchmarks: margin minus the untrained model's."
    )
