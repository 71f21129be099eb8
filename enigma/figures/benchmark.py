"""Figures of stage 3."""

import pandas as pd

from enigma.figures.style import (
    GREY,
    arm_styles,
    figure,
    finding,
    forest,
    legend,
    over_seeds,
    panels,
    short,
    spread,
    zero,
)
from enigma.stages.benchmark import NAME
from enigma.tasks.robustness import CONDITIONS, WORST

REPEATED = ("enigma_robustness", "enigma_adherence")
PAIRED = ("difference", "low", "high")


@figure(NAME, "benchmarks", "benchmark_differences")
def fig5_benchmarks(profile, benchmarks, differences):
    """Accuracy of every model, and how each arm's margin differs from the untrained model's."""
    scored = benchmarks[benchmarks["metric"].isin(("acc", "mc1", "mc2"))]
    scored = scored[~scored["task"].isin(REPEATED)].drop_duplicates(["arm", "seed", "task"])
    paired = differences.query("versus == 'base' and metric == 'margin' and task not in @REPEATED")
    tasks = list(dict.fromkeys(scored["task"]))[::-1]
    sensitive = set(benchmarks[benchmarks["sensitive"].astype(bool)]["task"])
    styles, arms = arm_styles(profile), list(dict.fromkeys(benchmarks["arm"]))
    height = max(0.5, 0.12 * len(arms)) * len(tasks) + 0.9
    drawn, [left, right] = panels(2, 4.7, height, columns=2, sharey=True)
    for i, arm in enumerate(arms):
        colour, marker = styles[arm]
        for y, task in enumerate(tasks):
            at = [y + spread(len(arms), i)]
            found = scored[(scored["arm"] == arm) & (scored["task"] == task)]
            forest(left, over_seeds(_wilson(found)), at, colour, marker, label=arm)
            found = paired[(paired["arm"] == arm) & (paired["task"] == task)]
            if len(found):
                forest(right, over_seeds(found, PAIRED), at, colour, marker, names=PAIRED)
    for y, task in enumerate(tasks):
        chance = scored[scored["task"] == task]["chance"].mean()
        left.plot([chance] * 2, [y - 0.4, y + 0.4], color=GREY, lw=1, ls=":")
    marks = ["" if task in sensitive else "\n(insensitive)" for task in tasks]
    left.set_yticks(range(len(tasks)), [t.removeprefix("enigma_") + m for t, m in zip(tasks, marks)])
    left.set(xlabel="accuracy", xlim=(0, 1))
    right.set_xlabel("margin, arm - untrained (nats per character)")
    zero(right)
    legend(drawn, left)
    finding(drawn, _margins(paired[paired["task"].isin(sensitive)]))
    return drawn, (
        "Accuracy of every model on the same items, with 95 % intervals (Wilson); dotted: guessing. And the margin of the right "
        "answer against the untrained model's, paired by item, 95 % over items, or over seeds where there are several. Insensitive: "
        "on so few items the untrained model's margin, its prior taken away, is not clear of guessing (t > 4), so the task judges nothing."
    )


def _wilson(rows: pd.DataFrame) -> pd.DataFrame:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(rows["value"] * rows["n"], rows["n"], method="wilson")
    return rows.assign(low=low, high=high)


def _margins(paired: pd.DataFrame) -> str:
    """In how many sensitive tasks an interval lies above zero and below it, for the best arm and the worst.

    Only arms of the most seeds are named: the interval of a single run is over items alone.
    """
    if paired.empty:
        return "No task is sensitive here: nothing is judged"
    seeds = paired.groupby("arm")["seed"].transform("nunique")
    runs = paired[seeds == seeds.max()].groupby(["arm", "task"], sort=False)
    means = pd.concat([over_seeds(rows, PAIRED).assign(arm=arm, task=task) for (arm, task), rows in runs])
    counts = means.assign(up=means["low"] > 0, down=means["high"] < 0)
    counts = counts.groupby("arm", sort=False)[["up", "down"]].sum()
    order = (counts["up"] - counts["down"]).sort_values(ascending=False).index
    told = ", ".join(
        f"{a} {counts.up[a]} up and {counts.down[a]} down" for a in dict.fromkeys(order[[0, -1]])
    )
    return f"Margins clearly moved, of {means['task'].nunique()} sensitive tasks: {told}"


@figure(NAME, "robustness")
def fig6_robustness(profile, robustness):
    """How far the margin falls under each perturbation."""
    if robustness.empty:
        raise ValueError("no robustness task in this run")
    order = [condition for condition in (*CONDITIONS, WORST) if condition != "original"][::-1]
    styles, arms = arm_styles(profile), list(dict.fromkeys(robustness["arm"]))
    drawn, [axes] = panels(1, 7, max(0.4, 0.12 * len(arms)) * len(order) + 0.9)
    names = ("drop", "low", "high")
    for i, arm in enumerate(arms):
        for y, condition in enumerate(order):
            rows = robustness[(robustness["arm"] == arm) & (robustness["condition"] == condition)]
            at = [y + spread(len(arms), i)]
            forest(axes, over_seeds(rows, names), at, *styles[arm], names=names, label=arm)
    zero(axes)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("drop of the margin (nats per character)")
    legend(drawn, axes)
    worst = robustness[robustness["condition"] == WORST].groupby("arm", sort=False)["drop"].mean()
    least, most = worst.idxmin(), worst.idxmax()
    ends = f"{short(worst[least])} ({least}) to {short(worst[most])} ({most})"
    finding(drawn, f"In the worst case margins fall by {ends}")
    return drawn, (
        "Drop of the right answer's margin under changes that should not matter, against the unchanged prompt; 95 % over items, or "
        "over seeds where there are several."
    )
