"""Figures of stage 4."""

from __future__ import annotations

import matplotlib.pyplot as plt

from enigma.figures.style import GREY, arm_styles, errors, figure
from enigma.stages.geometry import NAME

PANELS = (
    ("sinkhorn", "Sinkhorn divergence"),
    ("displacement", "displacement / norm"),
    ("effective_rank", "effective rank"),
)


@figure(NAME, "geometry")
def fig7_geometry(profile, geometry):
    """What moved, layer by layer."""
    styles = arm_styles(geometry["arm"])
    drawn, grid = plt.subplots(1, len(PANELS), figsize=(10, 3.2))
    for axes, (measure, label) in zip(grid, PANELS, strict=True):
        for arm, rows in geometry[geometry["measure"] == measure].groupby("arm", sort=False):
            curve = rows.groupby("layer")[["value", "low", "high"]].mean().reset_index()
            colour, marker = styles[arm]
            axes.errorbar(
                curve["layer"],
                curve["value"],
                yerr=errors(curve, "value", "low", "high"),
                color=colour,
                marker=marker,
                ms=4,
                lw=1.2,
                label=arm,
            )
        base = geometry[geometry["measure"] == f"{measure}_base"].groupby("layer")["value"].mean()
        if len(base):
            axes.plot(base.index, base, color=GREY, lw=1.2, label="base")
        if measure == "sinkhorn":
            axes.set_yscale("log")
        axes.set(xlabel="layer", title=label)
    grid[0].legend(fontsize=8)
    drift = geometry[geometry["measure"] == "sinkhorn"].groupby("arm", sort=False)["value"].mean()
    told = ", ".join(f"{arm} {value:.3g}" for arm, value in drift.items())
    return (
        drawn,
        f"Geometry of hidden states against the untrained model, by layer, 95 % over prompts. Mean Sinkhorn divergence: {told}.",
    )


@figure(NAME, "directions")
def fig8_directions(profile, directions):
    """Share of the displacement along the arm's own principle directions, against principles drawn from the pool."""
    arms = list(dict.fromkeys(directions["arm"]))
    styles = arm_styles(arms)
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    drawn, grid = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.6 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axes, arm in zip(grid.flat, arms, strict=False):
        curve = directions[directions["arm"] == arm].groupby("layer").mean(numeric_only=True).reset_index()
        axes.fill_between(
            curve["layer"],
            curve["null_low"],
            curve["null_high"],
            color=GREY,
            alpha=0.25,
            lw=0,
            label="other principles",
        )
        ends = errors(curve, "observed", "observed_low", "observed_high")
        axes.errorbar(
            curve["layer"],
            curve["observed"],
            yerr=ends,
            color=styles[arm][0],
            marker="o",
            ms=4,
            lw=1.2,
            label="own",
        )
        axes.set(title=f"{arm}, median p = {curve['p_value'].median():.2g}", xlabel="layer")
    for axes in list(grid.flat)[len(arms) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylabel("share of displacement")
    grid[0, 0].legend(fontsize=8)
    return drawn, (
        "Share of each arm's displacement that lies in the span of its own principles' directions (points, 95 % over prompts), "
        "against as many principles drawn from the pool (band, central 95 %)."
    )
