"""Figures of stage 2."""

import numpy as np

from enigma.figures.style import (
    GREY,
    arm_styles,
    figure,
    finding,
    forest,
    legend,
    listed,
    over_seeds,
    panels,
    seeds_of,
    short,
    zero,
)
from enigma.profile import BASE
from enigma.stages.train import NAME

PANELS = (
    ("reward_graded", "format reward, graded"),
    ("probe", "probe: log p of fixed answers (nats per token)"),
    ("row_bound", "information, own reader (nats)"),
    ("sinkhorn", "drift: Sinkhorn divergence"),
)
LABELLED = 8  # so many curves can have their names at their ends; more have a legend
READERS = (
    ("row_bound", None, 0.1, "read by the model itself"),
    ("row_bound_base_critic", "white", -0.1, "read by the untrained model"),
)


@figure(NAME, "training")
def fig3_training(profile, training):
    """Curves of every arm over the steps, mean over seeds."""
    styles = arm_styles(profile)
    drawn, grid = panels(len(PANELS), 4.6, 2.6, columns=2, xlabel="step", sharex=True)
    for axes, (column, name) in zip(grid, PANELS, strict=True):
        ends = []
        for arm, rows in training.groupby("arm", sort=False):
            curve = rows.groupby("step")[column].agg(["mean", "min", "max"]).dropna()
            if curve.empty:
                continue
            colour, marker = styles[arm]
            look = {"color": colour, "marker": marker, "markevery": (0.1, 0.2)}
            axes.plot(curve.index, curve["mean"], lw=1.5, ms=3, label=arm, **look)
            axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, lw=0)
            ends.append((curve["mean"].iloc[-1], arm, colour))
        axes.set_title(name)
        if column == "sinkhorn" and profile.trainer.ot_budget > 0:
            axes.axhline(profile.trainer.ot_budget, color=GREY, lw=0.8, ls="--")
        if len(profile.arms) <= LABELLED:
            _end_labels(axes, ends, training["step"].max())
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(profile.arms) > LABELLED:
        legend(drawn, grid[0])
    last = training.groupby("arm")["step"].transform("max")  # an arm may have steps of its own number
    fifth = max(1, int(last.min()) // 5)
    final = training[training["step"] > last - fifth].groupby("arm", sort=False)
    reached = final["reward_graded"].mean()
    best, least = reached.idxmax(), reached.idxmin()
    told = f"{best} reaches the highest format reward ({short(reached[best])}), {least} the lowest ({short(reached[least])})"
    finding(
        drawn, told if best != least else f"Format reward at the end: {short(reached[best])} in every arm"
    )
    ends = listed(f"{arm} {short(value)}" for arm, value in reached.items())
    seeds = seeds_of(training.groupby("arm")["seed"].nunique())
    return drawn, (
        f"Training of every arm, mean over {seeds}, band from the smallest to the largest. Graded format reward over the "
        f"last {fifth} step(s): {ends}. The probe has no sampling noise. Dashed: the budget of the Sinkhorn term; drift below it is free. What a loss does not need is "
        f"measured every {profile.trainer.reference_steps} steps alone, so a curve may end early."
    )


def _end_labels(axes, ends, x: float) -> None:
    """Each curve's name at the last step `x`, at the height of its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap, heights = (high - low) * 0.085, []
    for value, *_ in sorted(ends):
        heights.append(max(value, heights[-1] + gap) if heights else value)
    above = max(0.0, heights[-1] - high) if heights else 0.0
    for height, (_, arm, colour) in zip(heights, sorted(ends), strict=True):
        axes.annotate(
            f"  {arm}", (x, height - above), color=colour, fontsize=7.5, va="center", annotation_clip=False
        )


@figure(NAME, "legibility")
def fig4_legibility(profile, legibility):
    """Information about the principle, for the model itself and for the untrained reader; and perplexity."""
    table = legibility.copy()
    table["name"] = [row.arm + (f" ({row.set})" if row.arm == BASE else "") for row in table.itertuples()]
    styles = arm_styles(profile)
    order = list(dict.fromkeys(table["name"]))[::-1]
    drawn, [left, right] = panels(2, 4.5, 0.36 * len(order) + 0.9, columns=2, sharey=True)
    for y, name in enumerate(order):
        rows = table[table["name"] == name]
        colour, marker = styles[rows["arm"].iloc[0]]
        for measure, face, at, reader in READERS:
            names = [f"{measure}{end}" for end in ("", "_low", "_high")]
            look = {"mfc": face or colour, "label": reader}
            forest(left, over_seeds(rows, names), [y + at], colour, marker, names=names, **look)
        names = [f"perplexity_base{end}" for end in ("", "_low", "_high")]
        forest(right, over_seeds(rows, names), [y], colour, marker, names=names)
    left.axvline(np.log(table["k"].iloc[0]), color=GREY, lw=0.8, ls="--")
    zero(left)
    left.set_yticks(range(len(order)), order)
    left.set(xlabel="information about the principle (nats)")
    right.set(xlabel="perplexity under the untrained model")
    read = table.groupby(["arm", "name"], sort=False)["row_bound_base_critic"].mean()
    trained = read.drop(BASE, level="arm", errors="ignore").droplevel("arm")
    legend(drawn, left)
    if len(trained):
        best, least = trained.idxmax(), trained.idxmin()
        told = f"The untrained reader finds {short(trained[best])} nats in {best} and {short(trained[least])} in {least}"
        finding(drawn, f"{told}; before training {_untrained(read[BASE])}" if BASE in read else told)
    return drawn, (
        "Held-out questions after training. Information: what a completion says of its principle, filled for the model itself, hollow "
        f"for the untrained model as reader, which did not learn any code; dashed: all there is to know, log {int(table['k'].iloc[0])}. "
        "Perplexity: how odd the text is to the untrained model. base (high): the untrained model's own completions on the high-SI "
        "set. 95 % intervals over questions, or over seeds where there are several."
    )


def _untrained(read) -> str:
    """What the untrained model's own completions carry, by name of the set; of many sets the least and the most."""
    if len(read) > 2:
        return f"{short(read.min())} to {short(read.max())} in {len(read)} sets"
    return listed(f"{short(value)} in {name}" for name, value in read.items())
