"""What all figures share: the registry, colours that stay apart without red and green, and how one is made and shown."""

import functools
import html
import re
import textwrap
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from enigma.method.stats import student_interval
from enigma.profile import BASE
from enigma.record.cells import markdown_text
from enigma.record.results import figure_label

GREY = "#6b6b6b"
BLUE, ORANGE = "#0173b2", "#de8f05"
MARKERS = "osD^vPX*<>hp"
# The first six are seaborn's "colorblind"; the others stay apart from them, and dark enough for letters.
PALETTE = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161"),
    *("#332288", "#882255", "#44aa99", "#999933", "#56b4e9", "#117733"),
)
CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"
COLUMN = 3.4  # inches: one column of a paper
SETTINGS = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
SMALL = {key: 7 for key in ("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize")}
SMALL |= {"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "lines.markersize": 3}
_in_column: ContextVar[bool] = ContextVar("in_column", default=False)


class Entry(NamedTuple):
    """A figure: how it is drawn, the stage it belongs to, and the tables that it is drawn from."""

    draw: Callable[..., tuple[Figure, str]]
    stage: str
    tables: tuple[str, ...]


FIGURES: dict[str, Entry] = {}


def figure(stage: str, *tables: str):
    """Register a function (profile, *tables) -> (Figure, caption) under its own name.

    A function may raise ValueError to say why there is nothing to draw. With `column=True` the registered function draws
    for one column of a paper: 3.4 inches wide, smaller letters, panels one below the other.
    """

    def enter(draw):
        @functools.wraps(draw)
        def styled(profile, *frames, column: bool = False):
            before = _in_column.set(column)
            try:
                with plt.rc_context():
                    matplotlib.rcdefaults()  # not a matplotlibrc of the user's or of the working directory
                    with sns.axes_style("ticks"), plt.rc_context(SETTINGS | (SMALL if column else {})):
                        return draw(profile, *frames)
            finally:
                _in_column.reset(before)

        FIGURES[draw.__name__] = Entry(styled, stage, tables)
        return styled

    return enter


def make(profile, results, name: str) -> None:
    """Draw a figure from the tables that are there, save it as PNG and PDF, and show it with its caption in a notebook.

    Its form for one column of a paper, 3.4 inches wide, is saved beside it, in figures/column. Where there is nothing to
    draw, an older figure is removed. Raises InputError for a table that is missing or of another profile.
    """
    from IPython.display import Image, Markdown, display

    entry = FIGURES[name]
    frames = [results.read_table(table) for table in entry.tables]
    try:
        drawn, caption = entry.draw(profile, *frames)
        narrow, _ = entry.draw(profile, *frames, column=True)
    except ValueError as nothing:
        results.drop_figure(name)
        display(Markdown(f"*{name}: {markdown_text(nothing)}*"))
        return
    path = results.save_figure(name, drawn, caption, entry.stage, entry.tables)
    results.save_column(name, narrow)
    plt.close(drawn)
    plt.close(narrow)
    width = min(900, int(100 * drawn.get_figwidth()))
    display(Image(filename=str(path), width=width, alt=caption), metadata={"figure": name})
    display(Markdown(f"**{figure_label(name)}** ({name}). {markdown_text(caption)}"))


# ---- what figures are put together from ------------------------------------------------------------------------------


def panels(
    count: int, width: float, height: float, columns: int = 1, xlabel: str = "", **options
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each of `width` x `height` inches, `columns` side by side, and their axes."""
    if _in_column.get():
        columns, width, height = 1, COLUMN, height * (0.75 if count > 1 else 1)
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows + 0.4)
    drawn, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axes in list(grid.flat)[count:]:
        axes.remove()
    shown = list(grid.flat)[:count]
    for axes in shown[-columns:] if options.get("sharex") else shown:  # the lowest of each column, or all
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel)
    return drawn, shown


def finding(drawn: Figure, text: str) -> None:
    """What the figure shows, in one sentence, as its title."""
    letters = int(drawn.get_figwidth() * (18 if _in_column.get() else 13))
    size = plt.rcParams["font.size"] + (0 if _in_column.get() else 1)
    drawn.suptitle(textwrap.fill(text, letters), x=0.01, ha="left", fontsize=size)


def legend(drawn: Figure, axes: Axes) -> None:
    """The names in `axes`, once each, below all panels."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    wide = max(1.5, 0.5 + 0.06 * max(map(len, named), default=0))  # inches: a mark and the longest name
    columns = max(1, int(drawn.get_figwidth() / wide))
    drawn.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(columns, len(named) or 1)
    )


def arm_styles(profile) -> dict[str, tuple[str, str]]:
    """{arm: (colour, marker)}, the same in all figures of a profile; the untrained model is grey. A pair comes once."""
    arms = {}
    for i, arm in enumerate(profile.arms):
        again, colour = divmod(i, len(PALETTE))  # a colour that comes again comes with another marker
        arms[arm] = PALETTE[colour], MARKERS[(i + again) % len(MARKERS)]
    return {BASE: (GREY, "o"), **arms}


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
    options = {"ms": 3 if _in_column.get() else 4.5, "lw": 1.2} | options
    reach = errors(frame, value, low, high)
    axes.errorbar(frame[value], y, xerr=reach, fmt=marker, color=colour, **options)


def over_seeds(rows: pd.DataFrame, names=("value", "low", "high")) -> pd.DataFrame:
    """One row: the only one as it is, or the mean over seeds with Student's t interval."""
    if len(rows) < 2:
        return rows
    interval = student_interval(rows[names[0]])
    return pd.DataFrame([dict(zip(names, interval, strict=True))])


def spread(count: int, i: int) -> float:
    """The height of the i-th of `count` points that share a line, around it."""
    return (count / 2 - i - 0.5) * 0.7 / count


def zero(axes: Axes, at: float = 0.0) -> None:
    """A thin vertical line."""
    axes.axvline(at, color=GREY, lw=0.8, zorder=0)


def short(value: float, digits: int = 2) -> str:
    """A number for a title, never "-0.00"."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"; "none" of nothing."""
    *most, last = list(names) or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def seeds_of(counts: Iterable[int]) -> str:
    """How many seeds the arms have: "1 seed", "4 seeds", or "1 to 6 seeds" where arms differ."""
    least, most = int(min(counts)), int(max(counts))
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"


def table(frame: pd.DataFrame, caption: str = "", digits: int = 3):
    """A table as a notebook shows it: a caption, rounded numbers, whole texts; no index where it only counts.

    Its looks stand in the cells, because notebooks that were run elsewhere lose their style sheets.
    """
    from IPython.display import HTML, Markdown

    if frame.empty:
        return Markdown(f"*{markdown_text(caption)}: nothing of it in this run.*")
    shown = frame.style.format(lambda cell: _cell(cell, digits)).set_caption(html.escape(caption))
    shown = shown.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    if isinstance(frame.index, pd.RangeIndex):
        shown = shown.hide(axis="index")
    text = re.sub(r"<style.*?</style>", "", shown.to_html(table_uuid="t"), flags=re.DOTALL)
    return HTML(re.sub(r"<(td|th|caption)\b", rf'<\1 style="{CELL}"', text))


def _cell(cell, digits: int) -> str:
    if pd.isna(cell):
        return ""
    return short(cell, digits) if isinstance(cell, float) else html.escape(str(cell))
