"""Figures of stage 4."""

import pandas as pd

from enigma.figures.style import GREY, arm_styles, errors, figure, finding, legend, listed, panels, short
from enigma.stages.geometry import NAME

DISTANCES = {"sinkhorn": "Sinkhorn divergence", "displacement": "displacement / norm"}
SHAPES = {
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
    "anisotropy": "anisotropy",
    "intrinsic_dimension": "intrinsic dimension",
}


@figure(NAME, "geometry")
def fig7_geometry(profile, geometry):
    """How far the states moved, layer by layer, and those of their shapes that changed."""
    means = geometry.groupby(["arm", "measure", "layer"], sort=False)[["value", "low", "high"]].mean()
    means = means.reset_index()
    moved = [measure for measure in SHAPES if _moved(means, measure)]
    shown, styles = [*DISTANCES, *moved], arm_styles(profile)
    drawn, grid = panels(len(shown), 4.4, 2.7, columns=2, xlabel="layer")
    for axes, measure in zip(grid, shown, strict=True):
        base = means[means["measure"] == f"{measure}_base"].groupby("layer")["value"].mean()
        if len(base):
            axes.plot(base.index, base, color=GREY, lw=1.2, ls="--", label="base")
        for arm, curve in means[means["measure"] == measure].groupby("arm", sort=False):
            colour, marker = styles[arm]
            ends = errors(curve, "value", "low", "high")
            axes.errorbar(
                curve["layer"], curve["value"], ends, color=colour, marker=marker, ms=4, lw=1.2, label=arm
            )
        axes.set_title((DISTANCES | SHAPES)[measure])
        axes.set_xticks(sorted(set(means["layer"])))
        if measure == "sinkhorn" and means.loc[means["measure"] == measure, "value"].max() > 0:
            axes.set_yscale("log")
    legend(drawn, grid[-1])
    drift = means[means["measure"] == "displacement"].groupby("arm", sort=False)["value"].max()
    far = drift.idxmax()
    finding(
        drawn,
        f"{far} moved farthest, by {drift[far]:.2g} of the states' norm at most; "
        + (f"{listed(SHAPES[one] for one in moved)} changed" if moved else "no shape of the clouds changed"),
    )
    told = listed(f"{arm} {value:.2g}" for arm, value in drift.items())
    same = listed(SHAPES[one] for one in SHAPES if one not in moved)
    return drawn, (
        f"Geometry of hidden states against the untrained model (grey), by layer, 95 % over prompts. Largest displacement: {told}. "
        f"Not shown, since the intervals of all arms hold the untrained model's value: {same}."
    )


def _moved(means: pd.DataFrame, measure: str) -> bool:
    """Whether any arm's interval misses the untrained model's value in any layer."""
    base = means[means["measure"] == f"{measure}_base"].set_index(["arm", "layer"])["value"]
    own = means[means["measure"] == measure].set_index(["arm", "layer"])
    base = base.reindex(own.index)
    return bool(((own["low"] > base) | (own["high"] < base)).any())


@figure(NAME, "directions")
def fig8_directions(profile, directions):
    """Share of the displacement along the arm's own principle directions, against principles drawn from the pool."""
    directions = directions.dropna(subset=["observed"])
    if directions.empty:
        raise ValueError("no arm's states moved")
    arms = list(dict.fromkeys(directions["arm"]))
    styles = arm_styles(profile)
    drawn, grid = panels(len(arms), 2.7, 2.4, columns=3, xlabel="layer", sharex=True, sharey=True)
    above = []
    for axes, arm in zip(grid, arms, strict=True):
        curve = directions[directions["arm"] == arm].groupby("layer").mean(numeric_only=True).reset_index()
        band = (curve["null_low"], curve["null_high"])
        axes.fill_between(curve["layer"], *band, color=GREY, alpha=0.3, lw=0, label="other principles")
        ends = errors(curve, "observed", "observed_low", "observed_high")
        colour, marker = styles[arm]
        axes.errorbar(
            curve["layer"], curve["observed"], ends, color=colour, marker=marker, ms=4, lw=1.2, label="own"
        )
        axes.set(title=f"{arm}, median p = {short(curve['p_value'].median())}")
        axes.set_xticks(sorted(set(directions["layer"])))
        above += [arm] * bool((curve["observed"] > curve["null_high"]).mean() > 0.5)
    grid[0].set_ylabel("share of displacement")
    legend(drawn, grid[0])
    who = f"{listed(above)} moved" if above else "No arm moved"
    finding(drawn, f"{who} along its own principles more than along others in most layers")
    return drawn, (
        "Share of each arm's displacement that lies in the span of its own principles' directions (points, 95 % over prompts), "
        "against as many principles drawn from the pool (band, central 95 %)."
    )
