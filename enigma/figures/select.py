"""Figures of stage 1."""

import numpy as np

from enigma.figures.style import BLUE, GREY, ORANGE, figure, finding, forest, legend, panels, short
from enigma.stages.select import NAME

COLOURS = {"high": BLUE, "low": ORANGE, "": GREY}
NAMES = {"high": "in the high-SI set", "low": "in the low-SI set", "": "in neither"}
ENDS = ("si", "si_low", "si_high")


@figure(NAME, "sufficiency", "selection")
def fig1_sufficiency(profile, sufficiency, selection):
    """SI of every principle, from high to low, and of the sets below them."""
    span = sufficiency[sufficiency["span"] == "reasoning"]
    single = span[span["level"] == "principle"].sort_values("si")
    sets = span[(span["level"] == "set") & (span["name"] != "pool")].sort_values("si")
    chosen = {row.principle: row.set for row in selection.itertuples() if row.set in ("high", "low")}
    lines = len(single) + len(sets) + 1
    drawn, [axes] = panels(1, 7, 0.24 * lines + 0.9)
    for y, row in enumerate(single.itertuples(), start=len(sets) + 1):
        side = chosen.get(row.name, "")
        colour = COLOURS[side]
        if "si_paraphrase" in single:
            axes.hlines(
                y, row.si_paraphrase_low, row.si_paraphrase_high, color=colour, lw=0.5, ls=":", zorder=0
            )
            forest(
                axes, single.loc[[row.Index]], [y], colour, names=["si_paraphrase"] * 3, mfc="white", zorder=1
            )
        forest(axes, single.loc[[row.Index]], [y], colour, names=ENDS, label=NAMES[side])
    for y, row in enumerate(sets.itertuples()):
        forest(axes, sets.loc[[row.Index]], [y], COLOURS.get(row.name, GREY), "D", names=ENDS)
    axes.axhline(len(sets), color=GREY, lw=0.6, ls=":")
    heights = [y for y in range(lines) if y != len(sets)]
    axes.set_yticks(heights, [*(f"set {name}" for name in sets["name"]), *single["name"]])
    low = min(0.0, float(span["si_low"].min()), float(single.get("si_paraphrase", single["si"]).min()))
    among = f"principles among {len(single)}, sets among their own {profile.principles.set_size}"
    axes.set(xlabel=f"Sufficiency Index\n({among})", xlim=(low - 0.05, 1.02), ylim=(-0.7, lines - 0.3))
    if "si_paraphrase" in single:
        axes.plot([], [], "o", mfc="white", mec=GREY, ms=4, label="read under paraphrases")
    legend(drawn, axes)
    first, last = single.iloc[-1], single.iloc[0]
    finding(
        drawn, f"{first['name']} is carried best ({short(first.si)}), {last['name']} least ({short(last.si)})"
    )
    width = (single["si_high"] - single["si_low"]).mean()
    hollow = (
        f" Hollow: read under paraphrases, on {profile.sufficiency.echo} of the questions, a lower bound, which may be negative; "
        "dotted, its interval, cut at the edges."
        if "si_paraphrase" in single
        else ""
    )
    return drawn, (
        f"Sufficiency Index of {len(single)} principles (points) and of the sets that arms are trained on (diamonds), for the "
        f"untrained model, with 95 % intervals over {int(single['questions'].iloc[0])} questions, {short(width)} wide on average. "
        f"Blue: chosen into the high-SI set; orange: into the low-SI set.{hollow}"
    )


@figure(NAME, "selection_stability", "test_retest")
def fig2_stability(profile, stability, retest):
    """How often each principle would be chosen with other questions."""
    table = stability.assign(order=stability["in_high"] - stability["in_low"]).sort_values("order")
    drawn, [axes] = panels(1, 7, 0.24 * len(table) + 0.9)
    y = np.arange(len(table))
    axes.barh(y, table["in_high"], color=BLUE, label="in the high-SI set")
    axes.barh(y, -table["in_low"], color=ORANGE, label="in the low-SI set")
    for at, row in zip(y, table.itertuples(), strict=True):
        for share, side, align in ((row.in_high, 1, "left"), (row.in_low, -1, "right")):
            if share >= 0.05:
                axes.text(side * (share + 0.01), at, f"{share:.0%}", va="center", ha=align, fontsize=7)
    axes.set_yticks(y, table["principle"])
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(xlabel="share of resamples of the questions", xlim=(-1.12, 1.12))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])
    legend(drawn, axes)
    row = retest[retest["span"] == "reasoning"].iloc[0]
    finding(
        drawn,
        f"Two halves of the questions rank the principles alike with correlation {short(row.correlation)}",
    )
    return drawn, (
        "How often each principle is in the high-SI (right) and in the low-SI set (left) when the questions are drawn again. "
        f"Spearman correlation between disjoint halves {short(row.correlation)}, central 95 % of random splits "
        f"{short(row.low)} to {short(row.high)}."
    )
