"""Figures of stage 2."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from enigma.figures.style import GREY, arm_styles, errors, figure
from enigma.profile import BASE
from enigma.stages.train import NAME

PANELS = (
    ("reward_graded", "format reward (graded)"),
    ("probe", "log-probability of well-formed answers (nats per token)"),
    ("row_bound", "information, own critic (nats)"),
    ("sinkhorn", "Sinkhorn divergence to the untrained model"),
)


@figure(NAME, "training")
def fig3_training(profile, training):
    """Curves of every arm over the steps, mean over seeds."""
    styles = arm_styles(training["arm"])
    drawn, grid = plt.subplots(2, 2, figsize=(9, 5.6), sharex=True)
    for axes, (column, label) in zip(grid.flat, PANELS, strict=True):
        ends = []
        for arm, rows in training.groupby("arm", sort=False):
            curve = rows.groupby("step")[column].agg(["mean", "min", "max"]).dropna()
            if curve.empty:
                continue
            colour = styles[arm][0]
            axes.plot(curve.index, curve["mean"], color=colour, lw=1.6)
            axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, lw=0)
            ends.append((curve["mean"].iloc[-1], arm, colour, curve.index[-1]))
        _end_labels(axes, ends)
        axes.set_title(label)
    budget = profile.trainer.ot_budget
    if budget > 0:
        grid[1, 1].axhline(budget, color=GREY, lw=0.8, ls="--")
    for axes in grid[1]:
        axes.set_xlabel("step")
    final = training.sort_values("step").groupby("arm")["reward_graded"].apply(lambda run: run.tail(3).mean())
    told = ", ".join(f"{arm} {value:.2f}" for arm, value in final.items())
    seeds = training.groupby("arm")["seed"].nunique().max()
    return drawn, (
        f"Training of every arm, mean over {seeds} seed(s), band from smallest to largest. Graded format reward at the end: {told}. "
        "Dashed: the budget of the Sinkhorn term."
    )


def _end_labels(axes, ends) -> None:
    """Each curve's name at its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, last = (high - low) * 0.07, -np.inf
    for value, arm, colour, x in sorted(ends):
        last = max(value, last + gap)
        axes.annotate(f" {arm}", (x, last), color=colour, fontsize=8, va="center", annotation_clip=False)
    axes.margins(x=0.18)


@figure(NAME, "legibility")
def fig4_legibility(profile, legibility):
    """Information about the principle, for the model itself and for the untrained reader; and perplexity."""
    table = legibility.copy()
    table["name"] = [row.arm + (f" ({row.set})" if row.arm == BASE else "") for row in table.itertuples()]
    styles = arm_styles(table["arm"])
    order = list(dict.fromkeys(table["name"]))[::-1]
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9, 0.4 * len(order) + 1.6), sharey=True)
    for row in table.itertuples():
        y, colour = order.index(row.name), styles[row.arm][0]
        for prefix, face, shift in (("row_bound", colour, 0.13), ("row_bound_base_critic", "white", -0.13)):
            one = table.loc[[row.Index]]
            left.errorbar(
                getattr(row, prefix),
                y + shift,
                xerr=errors(one, prefix, f"{prefix}_low", f"{prefix}_high"),
                fmt="o",
                color=colour,
                mfc=face,
                ms=5,
                lw=1.2,
            )
        one = table.loc[[row.Index]]
        right.errorbar(
            row.perplexity_base,
            y,
            xerr=errors(one, "perplexity_base", "perplexity_base_low", "perplexity_base_high"),
            fmt="o",
            color=colour,
            ms=5,
            lw=1.2,
        )
    left.axvline(np.log(table["k"].iloc[0]), color=GREY, lw=0.8, ls="--")
    left.set_yticks(range(len(order)), order)
    left.set(xlabel="information about the principle (nats)", title="What a completion says of its principle")
    right.set(xlabel="perplexity under the untrained model", xscale="log", title="How odd the text is")
    return drawn, (
        "Held-out questions after training. Filled: information for the model itself; hollow: for the untrained model as reader, "
        f"which did not learn any code. Dashed: all there is to know, log {int(table['k'].iloc[0])}. 95 % intervals over questions."
    )
