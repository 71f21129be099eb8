"""What all figures share: the registry, colours that stay apart without red and green, and how one is made and shown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from enigma.profile import BASE

GREY = "#6b6b6b"
MARKERS = "osD^vPX*<>hp"
SETTINGS = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
}


class Entry(NamedTuple):
    """A figure: how it is drawn, the stage it belongs to, and the tables that it is drawn from."""

    draw: Callable[..., tuple[Figure, str]]
    stage: str
    tables: tuple[str, ...]


FIGURES: dict[str, Entry] = {}


def figure(stage: str, *tables: str):
    """Register a function (profile, *tables) -> (Figure, caption) under its own name.

    A function may raise ValueError to say why there is nothing to draw.
    """

    def enter(draw):
        @functools.wraps(draw)
        def styled(profile, *frames):
            with sns.axes_style("ticks"), plt.rc_context(SETTINGS):
                return draw(profile, *frames)

        FIGURES[draw.__name__] = Entry(styled, stage, tables)
        return styled

    return enter


def make(profile, results, name: str) -> None:
    """Draw a figure from the tables that are there, save it as PNG and PDF, and show it with its caption in a notebook."""
    from IPython.display import Image, Markdown, display

    entry = FIGURES[name]
    try:
        drawn, caption = entry.draw(profile, *(results.read_table(table) for table in entry.tables))
    except ValueError as nothing:
        display(Markdown(f"*{name}: {nothing}*"))
        return
    path = results.save_figure(name, drawn, caption, entry.stage, entry.tables)
    plt.close(drawn)
    display(Image(filename=str(path), width=900, alt=caption))
    display(Markdown(f"**{name}.** {caption}"))


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{arm: (colour, marker)}; the untrained model is grey."""
    named = [arm for arm in dict.fromkeys(arms) if arm != BASE]
    colours = sns.color_palette("colorblind", max(len(named), 1)).as_hex()
    styles = {arm: (colours[i], MARKERS[i % len(MARKERS)]) for i, arm in enumerate(named)}
    return {BASE: (GREY, "o"), **styles}


def errors(frame: pd.DataFrame, value: str, low: str, high: str) -> np.ndarray:
    """(2, n) distances from the value to its interval's ends; 0 where there is none."""
    ends = np.stack([frame[value] - frame[low], frame[high] - frame[value]])
    return np.nan_to_num(ends.astype(float)).clip(min=0)


def forest(
    axes: Axes,
    frame: pd.DataFrame,
    y,
    colour: str,
    marker: str = "o",
    names=("value", "low", "high"),
    **options,
):
    """Points with intervals at the heights `y`."""
    value, low, high = names
    axes.errorbar(
        frame[value],
        y,
        xerr=errors(frame, value, low, high),
        fmt=marker,
        color=colour,
        ms=4.5,
        lw=1.2,
        **options,
    )


def zero(axes: Axes, at: float = 0.0) -> None:
    """A thin vertical line."""
    axes.axvline(at, color=GREY, lw=0.8, zorder=0)
