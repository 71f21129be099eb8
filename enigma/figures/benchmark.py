"""Figures of stage 3."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from enigma.figures.style import GREY, arm_styles, figure, forest, zero
from enigma.profile import BASE
from enigma.stages.benchmark import NAME
from enigma.tasks.robustness import CONDITIONS, WORST

REPEATED = ("enigma_robustness", "enigma_adherence")


@figure(NAME, "benchmarks", "benchmark_differences")
def fig5_benchmarks(profile, benchmarks, differences):
    """Accuracy of every model, and how each arm's margin differs from the untrained model's."""
    tasks = [task for task in dict.fromkeys(benchmarks["task"]) if task not in (*REPEATED, "enigma_format")]
    sensitive = set(benchmarks[benchmarks["sensitive"].astype(bool)]["task"])
    styles = arm_styles(benchmarks["arm"])
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9.5, 0.55 * len(tasks) + 1.8), sharey=True)
    arms = [arm for arm in styles if arm in set(benchmarks["arm"])]
    for i, arm in enumerate(arms):
        shift = (len(arms) / 2 - i - 0.5) * 0.7 / len(arms)
        colour, marker = styles[arm]
        for y, task in enumerate(reversed(tasks)):
            rows = benchmarks[(benchmarks["arm"] == arm) & (benchmarks["task"] == task)]
            scored = rows[rows["metric"].isin(("acc", "mc1", "mc2"))].head(1)
            if len(scored):
                reach = 1.96 * scored["stderr"]
                ends = scored.assign(
                    low=(scored["value"] - reach).clip(0), high=(scored["value"] + reach).clip(upper=1)
                )
                forest(left, ends, [y + shift], colour, marker, label=arm if y == 0 else None)
            found = differences[
                (differences["arm"] == arm)
                & (differences["task"] == task)
                & (differences["versus"] == BASE)
                & (differences["metric"] == "margin")
            ]
            if len(found):
                forest(
                    right,
                    found,
                    np.full(len(found), y + shift),
                    colour,
                    marker,
                    names=("difference", "low", "high"),
                )
    for y, task in enumerate(reversed(tasks)):
        chance = benchmarks[(benchmarks["task"] == task) & benchmarks["chance"].notna()]["chance"]
        if len(chance):
            left.plot([chance.mean()] * 2, [y - 0.4, y + 0.4], color=GREY, lw=1, ls=":")
    names = [
        task.removeprefix("enigma_") + ("" if task in sensitive else "\n(insensitive)")
        for task in reversed(tasks)
    ]
    left.set_yticks(range(len(tasks)), names)
    left.set(xlabel="accuracy", xlim=(0, 1))
    left.legend(loc="lower center", bbox_to_anchor=(1.0, 1.02), ncols=len(arms), fontsize=8)
    right.set_xlabel("margin of the right answer, arm - untrained\n(nats per character)")
    zero(right)
    return drawn, (
        "Left: accuracy of every model on the same items, with the standard error's 95 %; dotted: guessing. Right: the margin of "
        "the right answer against the untrained model's, paired by item, 95 % over items. A task in which the untrained model "
        "is not told from guessing is marked insensitive and judges nothing."
    )


@figure(NAME, "robustness")
def fig6_robustness(profile, robustness):
    """How far the margin falls under each perturbation."""
    if robustness.empty:
        raise ValueError("no robustness task in this run")
    order = [condition for condition in (*CONDITIONS, WORST) if condition != "original"][::-1]
    styles = arm_styles(robustness["arm"])
    drawn, axes = plt.subplots(figsize=(7, 0.5 * len(order) + 1.4))
    arms = [arm for arm in styles if arm in set(robustness["arm"])]
    for i, arm in enumerate(arms):
        rows = robustness[(robustness["arm"] == arm) & (robustness["condition"] != "original")]
        y = np.array([order.index(condition) for condition in rows["condition"]])
        shift = (len(arms) / 2 - i - 0.5) * 0.7 / len(arms)
        forest(
            axes, rows, y + shift, styles[arm][0], styles[arm][1], names=("drop", "low", "high"), label=arm
        )
    zero(axes)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("drop of the margin (nats per character)")
    axes.legend(fontsize=8)
    worst = robustness[robustness["condition"] == WORST].groupby("arm", sort=False)["drop"].mean()
    least = worst.idxmin()
    axes.set_title(f"{least} loses least in the worst case ({worst[least]:.2f})")
    return (
        drawn,
        "Drop of the right answer's margin under changes that should not matter, against the unchanged prompt; 95 % over items.",
    )
