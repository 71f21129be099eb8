"""Figures of stage 1."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from enigma.figures.style import GREY, figure
from enigma.stages.select import NAME

COLOURS = {"high": "#0173b2", "low": "#de8f05", "": GREY}


@figure(NAME, "sufficiency", "selection")
def fig1_sufficiency(profile, sufficiency, selection):
    """SI of every principle, from high to low, and of the sets."""
    span = sufficiency[sufficiency["span"] == "reasoning"]
    single = span[span["level"] == "principle"].sort_values("si")
    sets = span[(span["level"] == "set") & (span["name"] != "pool")].sort_values("si")
    chosen = {row.principle: row.set for row in selection.itertuples() if row.set in ("high", "low")}
    drawn, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(7, 0.26 * (len(single) + len(sets)) + 1.6),
        height_ratios=[len(single), max(len(sets), 2)],
        sharex=True,
    )
    for y, row in enumerate(single.itertuples()):
        colour = COLOURS[chosen.get(row.name, "")]
        top.errorbar(
            row.si,
            y,
            xerr=[[row.si - row.si_low], [row.si_high - row.si]],
            fmt="o",
            color=colour,
            ms=5,
            lw=1.3,
        )
        top.plot(row.si_plain, y, "|", color=colour, ms=8)
    if "si_paraphrase" in single:
        top.plot(single["si_paraphrase"], range(len(single)), "o", mfc="white", mec=GREY, ms=4, zorder=1)
    top.set_yticks(range(len(single)), single["name"])
    first, last = single.iloc[-1], single.iloc[0]
    top.set_title(f"{first['name']} is carried best ({first.si:.2f}), {last['name']} least ({last.si:.2f})")
    y = np.arange(len(sets))
    for at, row in zip(y, sets.itertuples(), strict=True):
        bottom.errorbar(
            row.si,
            at,
            xerr=[[row.si - row.si_low], [row.si_high - row.si]],
            fmt="D",
            color=COLOURS.get(row.name, GREY),
            ms=5,
            lw=1.3,
        )
    bottom.set_yticks(y, [f"set {name}" for name in sets["name"]])
    bottom.set_ylim(-0.7, len(sets) - 0.3)
    bottom.set(xlabel="Sufficiency Index", xlim=(min(0.0, float(single["si_low"].min())), 1.02))
    width = (single["si_high"] - single["si_low"]).mean()
    caption = (
        f"Sufficiency Index of {len(single)} principles (top) and of the chosen sets (bottom) on the untrained model, with 95 % "
        f"intervals over {int(single['questions'].iloc[0])} questions, {width:.2f} wide on average. Blue: in the high-SI set; "
        "orange: in the low-SI set. Tick: the plain estimate"
    )
    caption += "; hollow: read under paraphrases." if "si_paraphrase" in single else "."
    return drawn, caption


@figure(NAME, "selection_stability", "test_retest")
def fig2_stability(profile, stability, retest):
    """How often each principle would be chosen with other questions."""
    table = stability.sort_values("in_high")
    drawn, axes = plt.subplots(figsize=(7, 0.26 * len(table) + 1.2))
    y = np.arange(len(table))
    axes.barh(y, table["in_high"], color=COLOURS["high"], label="in the high set")
    axes.barh(y, -table["in_low"], color=COLOURS["low"], label="in the low set")
    axes.set_yticks(y, table["principle"])
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(xlabel="share of resamples of the questions", xlim=(-1, 1))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])
    axes.legend(loc="lower right")
    row = retest[retest["span"] == "reasoning"].iloc[0]
    axes.set_title(f"Two halves of the questions rank alike with correlation {row.correlation:.2f}")
    return drawn, (
        "How often each principle is in the high-SI (right) and in the low-SI set (left) when the questions are drawn again. "
        f"Spearman correlation between disjoint halves {row.correlation:.2f} [{row.low:.2f}, {row.high:.2f}]."
    )
