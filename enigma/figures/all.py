"""The figures: data frames in, a matplotlib Figure out; captions beside the code, with facts computed from the frames.

One style, at print size (7 inches wide, 8 point), colours that colour-blind people tell apart, one fixed colour and
marker for each arm in every figure. What was not measured is said in its panel. `make` reads the tables a figure
needs, draws it, saves it with its caption and returns it. Source: our choice [D].
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from enigma.record.results import interval_text
from enigma.stages.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, joint_p_value
from enigma.stages.prediction import OUTCOMES, TOO_FEW

WIDTH = 7.0  # inches, two columns of a paper
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "axes.formatter.useoffset": False,
    "mathtext.fontset": "dejavusans",
    "figure.dpi": 150,
}
# Okabe and Ito's palette.
ARMS = {
    "base": ("#7f7f7f", "o"),
    "grpo": ("#0072B2", "s"),
    "grpo_sami": ("#E69F00", "^"),
    "grpo_ot": ("#009E73", "v"),
    "enigma_high": ("#D55E00", "D"),
    "enigma_low": ("#CC79A7", "P"),
}
OTHER_ARMS = (("#56B4E9", "X"), ("#000000", "*"), ("#8C6D31", "<"), ("#5254A3", ">"))
VERDICT = {SUPPORTED: ("#009E73", "●"), NOT_SUPPORTED: ("#D55E00", "✖"), UNDECIDED: ("#7f7f7f", "○")}
FAINT = 0.35
INTERVAL = dict(elinewidth=0.9, capsize=0)
GREY = "#555555"


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each arm: fixed for the known ones, by order for others."""
    arms = list(dict.fromkeys(arms))
    others = [arm for arm in arms if arm not in ARMS]
    return {arm: ARMS.get(arm) or OTHER_ARMS[others.index(arm) % len(OTHER_ARMS)] for arm in arms}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the one style, and take the figure out of pyplot, so that a notebook shows it once."""

    @functools.wraps(draw)
    def wrapper(*arguments, **options) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*arguments, **options)
        plt.close(figure)
        return figure

    return wrapper


# ---------------------------------------------------------------- pieces


def _title(axes: Axes, letter: str, text: str) -> None:
    axes.set_title(rf"$\mathbf{{{letter}}}$  {text}", loc="left")


def _not_measured(axes: Axes) -> None:
    axes.text(
        0.5,
        0.5,
        "not measured",
        ha="center",
        va="center",
        transform=axes.transAxes,
        color=GREY,
        style="italic",
    )
    axes.set(xticks=[], yticks=[])


def _has(frame: pd.DataFrame, column: str) -> bool:
    return column in frame.columns and bool(frame[column].notna().any())


def _errors(value, low, high) -> np.ndarray:
    """(2, n) lengths for matplotlib; an end that is NaN is not drawn."""
    value, low, high = (np.atleast_1d(np.asarray(part, dtype=float)) for part in (value, low, high))
    return np.nan_to_num(np.clip([value - low, high - value], 0, None))


def _point(
    axes: Axes, x, y, low, high, colour: str, marker: str, *, hollow=False, faint=False, size=4.0
) -> None:
    """One estimate on a horizontal scale with its interval."""
    face = "white" if hollow else colour
    axes.errorbar(
        [x],
        [y],
        xerr=_errors(x, low, high),
        fmt=marker,
        color=colour,
        mfc=face,
        mec=colour,
        mew=0.8,
        ms=size,
        alpha=FAINT if faint else 1.0,
        **INTERVAL,
    )


def _arm_legend(figure: Figure, styles: dict, line: bool, extra: Sequence = ()) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="-" if line else "", label=arm)
        for arm, (colour, marker) in styles.items()
    ]
    handles += extra
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 7), handlelength=1.6)


def _over_seeds(frame: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Mean of `columns` over seeds, keys in order of appearance."""
    return frame.groupby(keys, sort=False, dropna=False)[columns].mean().reset_index()


# ---------------------------------------------------------------- 1 sufficiency


@styled
def fig1_sufficiency(sufficiency: pd.DataFrame) -> Figure:
    """SI of every principle, sorted, and of the sets. `sufficiency`: the table of that name."""
    principles = sufficiency[sufficiency["level"] == "principle"]
    sets = sufficiency[sufficiency["level"] == "set"].set_index(["name", "span"])
    order = principles[principles["span"] == "reasoning"].sort_values("si")["name"].tolist()
    families = list(dict.fromkeys(principles["family"].fillna("other")))
    colours = dict(zip(families, sns.color_palette("colorblind", len(families)).as_hex(), strict=True))

    figure = plt.figure(figsize=(WIDTH, 1.3 + 0.19 * max(len(order), 12)), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 1], height_ratios=[1, 1.1])
    left, right, key = (figure.add_subplot(place) for place in (grid[:, 0], grid[0, 1], grid[1, 1]))

    marks = _set_marks(sufficiency)
    for row in principles.itertuples():
        y, colour = order.index(row.name), colours[row.family if isinstance(row.family, str) else "other"]
        whole = row.span != "reasoning"
        y += -0.22 if whole else 0.12
        _point(left, row.si, y, row.si_low, row.si_high, colour, "o", hollow=whole, size=3 if whole else 4.5)
    left.axvline(0, color=GREY, lw=0.7, ls=":", zorder=0)
    left.set_yticks(range(len(order)), [f"{name} {marks.get(name, '   ')}" for name in order])
    left.set(xlabel="Sufficiency Index (share of log K)", ylim=(-0.8, len(order) - 0.2))
    _title(left, "a", "Principles")

    labels = _set_labels(name for name, span in sets.index if span == "reasoning")
    names = list(labels)
    for y, name in enumerate(names):
        for span, shift in (("reasoning", 0.1), ("completion", -0.15)):
            if (name, span) in sets.index:
                row = sets.loc[(name, span)]
                ends = (row["si_low"], row["si_high"])
                _point(right, row["si"], y + shift, *ends, "black", "o", hollow=span != "reasoning", size=4.5)
    right.axvline(0, color=GREY, lw=0.7, ls=":", zorder=0)
    right.set_yticks(range(len(names)), labels.values())
    right.set(xlabel="Sufficiency Index", ylim=(-0.6, len(names) - 0.4))
    _title(right, "b", "Sets")

    key.axis("off")
    handles = [Patch(color=colours[family], label=family.replace("$", r"\$")) for family in families]
    handles += [
        Line2D([], [], color="black", marker="o", ls="", label="reasoning span"),
        Line2D([], [], color="black", marker="o", mfc="white", ls="", ms=3, label="whole completion"),
        Line2D([], [], color="none", label="▲ in the high set, ▼ in the low set"),
    ]
    key.legend(handles=handles, loc="upper left", title="Family of the principle", alignment="left")
    return figure


def _set_labels(names: Iterable[str]) -> dict[str, str]:
    """{set: label} of those named, the whole pool first, then the sets from low to high."""
    fixed = {"pool": "whole pool", "low": "low set ▼", "high": "high set ▲"}
    names = set(names)
    between = {name: f"set at {name}" for name in sorted(names - fixed.keys(), key=float)}
    return {name: (fixed | between)[name] for name in ("pool", "low", *between, "high") if name in names}


def _set_marks(sufficiency: pd.DataFrame) -> dict[str, str]:
    """{principle: "▲" or "▼"} for members of the high and the low set."""
    sets = sufficiency[(sufficiency["level"] == "set") & sufficiency["name"].isin(["high", "low"])]
    pairs = zip(sets["name"], sets["members"], strict=True)
    return {
        member: "▲" if name == "high" else "▼"
        for name, members in pairs
        for member in str(members).split(";")
    }


def fig1_caption(sufficiency: pd.DataFrame) -> str:
    rows = sufficiency[
        (sufficiency["level"] == "principle") & (sufficiency["span"] == "reasoning")
    ].sort_values("si")
    best, worst = rows.iloc[-1], rows.iloc[0]
    apart = best["si_low"] > worst["si_high"]
    return (
        f"Sufficiency Index (row bound over log K, K = {int(best['k'])}) on the untrained model, from "
        f"{int(best['questions'])} questions. (a) {len(rows)} principles, coloured by family; filled: reasoning span, "
        "hollow: whole completion. (b) The pool, and the sets, which were chosen on the same questions; a number is the set's "
        "quantile of SI among all sets. Bars: 95% intervals over questions. "
        f"Best: {best['name']} {_effect(best, 'si')}; worst: {worst['name']} {_effect(worst, 'si')}; "
        f"their intervals {'do not overlap' if apart else 'overlap'}."
    )


def _effect(row, column: str) -> str:
    return interval_text(float(row[column]), float(row[f"{column}_low"]), float(row[f"{column}_high"]))


# ---------------------------------------------------------------- 2 training


@styled
def fig2_training(training: pd.DataFrame, k: int | None = None, budget: float = 0.0) -> Figure:
    """Six curves against the step for every arm. `k`: matched principles, for the line at log K; `budget`: of the hinge."""
    last = ("kl", "KL to base (nats/token)") if _positive(training, "kl") else ("grad_norm", "Gradient norm")
    shown = [
        ("reward_graded", "Graded format reward"),
        ("reward_strict", "Strict format reward"),
        ("zero_spread", "Share of zero-spread groups"),
        ("row_bound", "Row bound (nats)"),
        ("sinkhorn", "Sinkhorn divergence"),
        last,
    ]
    styles = arm_styles(training["arm"])
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH, 4.1), layout="constrained")
    for letter, axes, (column, text) in zip("abcdef", grid.flat, shown, strict=True):
        _title(axes, letter, text)
        if not _has(training, column):
            _not_measured(axes)
            continue
        for arm, (colour, _) in styles.items():
            _curve(axes, training[training["arm"] == arm], column, colour)
        axes.margins(x=0.02)
        if column in ("reward_graded", "reward_strict", "zero_spread"):
            axes.set_ylim(-0.04, 1.04)
        if column == "row_bound" and _has(training, "row_bound_base_critic"):
            for arm, (colour, marker) in styles.items():
                read = (
                    training[training["arm"] == arm].groupby("step")["row_bound_base_critic"].mean().dropna()
                )
                axes.plot(read.index, read, ls="", marker=marker, mfc="white", mec=colour, mew=0.8)
        if column == "row_bound" and k:
            _level(axes, math.log(k), f"log {k}")
        if column == "sinkhorn" and budget:
            _level(axes, budget, "budget")
    for axes in grid[1]:
        axes.set_xlabel("Step")
    handles = [Line2D([], [], color=colour, label=arm) for arm, (colour, _) in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _level(axes: Axes, value: float, text: str) -> None:
    axes.axhline(value, color=GREY, lw=0.7, ls="--")
    axes.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color=GREY,
    )
    axes.set_ylim(top=max(axes.get_ylim()[1], value * 1.12))


def _positive(frame: pd.DataFrame, column: str) -> bool:
    return _has(frame, column) and bool((frame[column].abs() > 0).any())


def smoothing_window(steps: int) -> int:
    """Steps of the centred moving average: a tenth of the run, odd, at least 3."""
    return max(3, steps // 10 | 1)


def _curve(axes: Axes, arm: pd.DataFrame, column: str, colour: str) -> None:
    runs = arm.pivot_table(index="step", columns="seed", values=column, dropna=False).sort_index()
    if runs.isna().all(axis=None):
        return
    smooth = runs.rolling(smoothing_window(len(runs)), center=True, min_periods=1).mean()
    axes.plot(runs.index, runs, color=colour, lw=0.5, alpha=FAINT / runs.shape[1])
    axes.plot(smooth.index, smooth.mean(axis=1), color=colour)
    if runs.shape[1] > 1:
        axes.fill_between(smooth.index, *seed_band(smooth), color=colour, alpha=0.18, lw=0)


def seed_band(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a band over seeds (columns): 95% t interval of the mean with three seeds or more, else the range."""
    n = runs.shape[1]
    if n < 3:
        return runs.min(axis=1).to_numpy(), runs.max(axis=1).to_numpy()
    width = stats.t.ppf(0.975, n - 1) * runs.std(axis=1, ddof=1) / math.sqrt(n)
    return (runs.mean(axis=1) - width).to_numpy(), (runs.mean(axis=1) + width).to_numpy()


def fig2_caption(training: pd.DataFrame, k: int | None = None, budget: float = 0.0) -> str:
    seeds, steps = training["seed"].nunique(), training["step"].nunique()
    bands = {1: "One seed, so no band.", 2: "Bands: range of two seeds."}
    band = bands.get(seeds, f"Bands: 95% t intervals over {seeds} seeds.")
    spread = (
        training.groupby("arm", sort=False)["zero_spread"].mean() if _has(training, "zero_spread") else {}
    )
    shares = ", ".join(f"{arm} {share:.0%}" for arm, share in spread.items())
    ends = ", ".join(f"{arm} {start:.2f} -> {end:.2f}" for arm, start, end in reward_ends(training))
    read = (
        "(d) Hollow marks: the bound with the untrained model as critic. "
        if _has(training, "row_bound_base_critic")
        else ""
    )
    return (
        f"Training: thin lines every step, thick lines a centred mean over {smoothing_window(steps)} steps. {band} {read}Sinkhorn "
        "divergence of hidden states to the untrained model before the hinge, in units of the reference's mean cost. "
        f"Graded reward, mean of the first and the last fifth of the steps: {ends}. Groups of zero spread teach nothing: "
        f"{shares or 'share not measured'}."
    )


def reward_ends(training: pd.DataFrame) -> list[tuple[str, float, float]]:
    """(arm, mean graded reward over the first fifth of the steps, over the last fifth)."""
    ends = []
    for arm, rows in training.groupby("arm", sort=False):
        curve = rows.groupby("step")["reward_graded"].mean().to_numpy()
        fifth = max(1, len(curve) // 5)
        ends.append((arm, float(curve[:fifth].mean()), float(curve[-fifth:].mean())))
    return ends


# ---------------------------------------------------------------- 3 benchmarks


@styled
def fig3_benchmarks(benchmarks: pd.DataFrame, benchmark_differences: pd.DataFrame) -> Figure:
    """Scores of base and arms, and paired differences to base and to grpo, one row for each task and metric."""
    rows = list(dict.fromkeys(zip(benchmarks["task"], benchmarks["metric"], strict=True)))
    arms = list(dict.fromkeys(benchmarks["arm"]))
    styles = arm_styles(arms)
    guessed = _at_chance(benchmarks)
    height = 1.0 + len(rows) * (0.16 + 0.1 * len(arms))
    figure, (scores, to_base, to_grpo) = plt.subplots(
        1, 3, figsize=(WIDTH, height), sharey=True, layout="constrained", width_ratios=[1.25, 1, 1]
    )

    means = _over_seeds(benchmarks, ["arm", "task", "metric"], ["value", "stderr", "chance"])
    for row in means.itertuples():
        key = (row.task, row.metric)
        y = _row_place(rows, key, arms, row.arm)
        faint = (row.arm, *key) in guessed
        width = 1.96 * row.stderr
        _point(scores, row.value, y, row.value - width, row.value + width, *styles[row.arm], faint=faint)
    _chance_lines(scores, rows, benchmarks)
    for y, key in enumerate(rows):
        if all((arm, *key) in guessed for arm in arms):
            scores.annotate(
                "at chance",
                (1, -y),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=7,
                style="italic",
                color=GREY,
            )
    scores.set(xlabel="Score", xlim=(-0.03, 1.03), ylim=(-len(rows) + 0.5, 0.5))
    scores.set_yticks(
        [-y for y in range(len(rows))], [f"{_short_task(task)}\n{metric}" for task, metric in rows]
    )
    _title(scores, "a", "Scores")

    for axes, letter, versus in ((to_base, "b", "base"), (to_grpo, "c", "grpo")):
        _title(axes, letter, f"Difference to {versus}")
        _differences(axes, benchmark_differences, versus, rows, arms, styles, guessed)
    for axes in (scores, to_base, to_grpo):
        for y in range(1, len(rows)):
            axes.axhline(0.5 - y, color="#dddddd", lw=0.6, zorder=0)
        axes.tick_params(axis="y", length=0)
    chance = Line2D([], [], color="black", ls=":", lw=1, label="chance")
    _arm_legend(figure, styles, line=False, extra=[chance])
    return figure


def _differences(axes: Axes, table, versus: str, rows, arms, styles, guessed) -> None:
    chosen = table[table["versus"] == versus]
    axes.axvline(0, color=GREY, lw=0.7, ls=":", zorder=0)
    if chosen.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=GREY, style="italic")
        axes.set_xticks([])
        return
    for row in _over_seeds(chosen, ["arm", "task", "metric"], ["difference", "low", "high"]).itertuples():
        key = (row.task, row.metric)
        y = _row_place(rows, key, arms, row.arm)
        faint = (row.arm, *key) in guessed and (versus, *key) in guessed
        _point(axes, row.difference, y, row.low, row.high, *styles[row.arm], faint=faint)
    limit = max(abs(end) for end in axes.get_xlim())
    axes.set(xlim=(-limit, limit), xlabel="Difference in score")


def _row_place(rows: list, key: tuple | str, arms: list[str], arm: str) -> float:
    """Rows go down by one; the arms of a row are spread over two thirds of it, first arm on top."""
    return -rows.index(key) + 0.66 * (0.5 - (arms.index(arm) + 0.5) / len(arms))


def _at_chance(benchmarks: pd.DataFrame) -> set[tuple[str, str, str]]:
    """(arm, task, metric) that are at chance for all of the arm's seeds."""
    grouped = benchmarks.assign(guess=benchmarks["at_chance"].astype(bool)).groupby(
        ["arm", "task", "metric"]
    )["guess"]
    return {key for key, guess in grouped.all().items() if guess}


def _chance_lines(axes: Axes, rows: list, benchmarks: pd.DataFrame) -> None:
    chances = benchmarks.groupby(["task", "metric"])["chance"].mean()
    for y, key in enumerate(rows):
        if chances[key] > 0:
            axes.plot([chances[key]] * 2, [-y - 0.42, -y + 0.42], color="black", ls=":", lw=1, zorder=0)


def _short_task(task: str) -> str:
    return task.removeprefix("enigma_")


def fig3_caption(benchmarks: pd.DataFrame, benchmark_differences: pd.DataFrame) -> str:
    guessed, arms = _at_chance(benchmarks), list(dict.fromkeys(benchmarks["arm"]))
    keys = list(dict.fromkeys(zip(benchmarks["task"], benchmarks["metric"], strict=True)))
    chance = [f"{_short_task(t)} {m}" for t, m in keys if all((arm, t, m) in guessed for arm in arms)]
    counts = ", ".join(
        f"{_short_task(task)} {n}" for task, n in benchmarks.groupby("task", sort=False)["n"].max().items()
    )
    seeds = benchmarks["seed"].nunique()
    return (
        "(a) Benchmark scores with 95% intervals over items; dotted: chance. (b, c) Paired differences to base and to grpo "
        f"on the same items, 95% bootstrap intervals, not corrected for the number of comparisons. Items: {counts}. "
        + (f"Means over {seeds} seeds, whose spread the intervals do not hold. " if seeds > 1 else "")
        + "Faint: not told from chance, so a difference there says little. "
        + (
            f"At chance for every model: {', '.join(chance)}."
            if chance
            else "No task is at chance for every model."
        )
    )


# ---------------------------------------------------------------- 4 geometry


@styled
def fig4_geometry(geometry: pd.DataFrame) -> Figure:
    """Fisher-Rao distance, and curves over layers of ten measures: between the models, of each cloud, of principles."""
    styles = arm_styles(geometry["arm"])
    shown = [
        ("displacement", "Displacement / state norm"),
        ("sinkhorn", "Sinkhorn divergence"),
        ("cka_distance", "1 − linear CKA"),
        ("principal_angle", "Largest principal angle (rad)"),
        ("effective_rank", "Effective rank"),
        ("participation_ratio", "Participation ratio"),
        ("intrinsic_dimension", "Intrinsic dimension (TwoNN)"),
        ("anisotropy", "Anisotropy (mean cosine)"),
        ("separability", "Principles: between / within"),
        ("probe_accuracy", "Principles: probe accuracy"),
    ]
    table = pd.concat([geometry, _cka_distance(geometry)], ignore_index=True)
    figure, grid = plt.subplots(4, 3, figsize=(WIDTH, 6.8), layout="constrained")
    first, *others, rest = grid.flat
    _title(first, "a", "Fisher-Rao distance (rad)")
    _distances(first, geometry[geometry["measure"] == "fisher_rao"], styles)
    for letter, axes, (measure, text) in zip("bcdefghijk", others, shown, strict=True):
        _title(axes, letter, text)
        chosen = table[(table["measure"] == measure) & table["value"].notna()]
        if chosen.empty:
            _not_measured(axes)
            continue
        for base in _base_curves(table, measure):
            _layer_curve(axes, base, *ARMS["base"])
        for arm, of_arm in chosen.groupby("arm", sort=False):
            _layer_curve(axes, of_arm, *styles[arm])
        if measure in ("displacement", "sinkhorn", "principal_angle"):
            axes.set_ylim(bottom=0)
        elif measure == "separability":  # a ratio, with its interval on the logarithm
            axes.set_yscale("log")
        elif measure == "probe_accuracy":
            axes.set_ylim(0, 1.05)
    for axes in others[-3:]:  # the lowest of each column
        axes.set_xlabel("Layer")
    rest.axis("off")
    if geometry["measure"].str.endswith("_base").any():
        styles = {"base": ARMS["base"]} | styles
    _arm_legend(figure, styles, line=True)
    return figure


def _base_curves(table: pd.DataFrame, measure: str) -> list[pd.DataFrame]:
    """The untrained model's curves, each once: arms that share a principle set share the curve."""
    rows = table[(table["measure"] == f"{measure}_base") & table["value"].notna()]
    curves = {tuple(run["value"]): run for _, run in rows.groupby(["arm", "seed"], sort=False)}
    return list(curves.values())


def _cka_distance(geometry: pd.DataFrame) -> pd.DataFrame:
    cka = geometry[geometry["measure"] == "cka"]
    ends = {"value": 1 - cka["value"], "low": 1 - cka["high"], "high": 1 - cka["low"]}
    return cka.assign(measure="cka_distance", **ends)


def _distances(axes: Axes, table: pd.DataFrame, styles: dict) -> None:
    table = table[table["value"].notna()]
    if table.empty:
        _not_measured(axes)
        return
    means = _over_seeds(table, ["arm"], ["value", "low", "high"])
    for y, row in enumerate(means.itertuples()):
        _point(axes, row.value, -y, row.low, row.high, *styles[row.arm])
    axes.set(ylim=(-len(means) + 0.4, 0.6), yticks=[], xlabel="Distance to base (0 to π)")
    axes.set_xlim(left=0)


def _layer_curve(axes: Axes, table: pd.DataFrame, colour: str, marker: str) -> None:
    """Mean over seeds with its band; markers where there are few layers."""
    means = _over_seeds(table, ["layer"], ["value", "low", "high"]).sort_values("layer")
    few = len(means) <= 10
    axes.plot(means["layer"], means["value"], color=colour, marker=marker if few else None, ms=3)
    if means["low"].notna().any() and len(means) > 1:
        axes.fill_between(
            means["layer"].astype(float), means["low"], means["high"], color=colour, alpha=0.18, lw=0
        )
    elif means["low"].notna().any():
        axes.errorbar(
            means["layer"],
            means["value"],
            yerr=_errors(means["value"], means["low"], means["high"]),
            color=colour,
            **INTERVAL,
        )


def fig4_caption(geometry: pd.DataFrame) -> str:
    distances = geometry[geometry["measure"] == "fisher_rao"].dropna(subset=["value"])
    means = _over_seeds(distances, ["arm"], ["value", "low", "high"])
    facts = "; ".join(
        f"{row.arm} {interval_text(row.value, row.low, row.high)}" for row in means.itertuples()
    )
    return (
        "Geometry of trained arms against the untrained model, same held-out prompts and token ids. (a) Fisher-Rao distance "
        "between next-token distributions, at most π. (b) to (e) between the two models' states, by layer; (f) to (i) of "
        "each model's states; (j, k) how well principles in the prompt can be told from the states. Grey: the untrained "
        "model, one curve for each principle set where that matters. Bands and bars: 95% intervals over prompts (bootstrap "
        "for means, jackknife for measures of a cloud), seeds averaged. All arms read the same prompts, so bands that "
        "overlap do not by themselves mean that arms agree. "
        f"Fisher-Rao distance: {facts or 'not measured'}."
    )


# ---------------------------------------------------------------- 5 directions


@styled
def fig5_directions(directions: pd.DataFrame) -> Figure:
    """One panel for each arm: share of the displacement's energy along the principle directions, by layer, and null."""
    styles = arm_styles(directions["arm"])
    columns = min(3, len(styles))
    rows = math.ceil(len(styles) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, 0.7 + 1.9 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for letter, axes, (arm, (colour, marker)) in zip("abcdefghij", grid.flat, styles.items(), strict=False):
        table = directions[(directions["arm"] == arm) & directions["observed"].notna()]
        _title(axes, letter, arm if table.empty else f"{arm}, joint p = {joint_p_value(table):.2g}")
        if table.empty:
            axes.text(
                0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=GREY, style="italic"
            )
            continue
        _direction_panel(axes, table, colour, marker)
    for axes in list(grid.flat)[len(styles) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel("Share of displacement energy")
    for axes in list(grid.flat)[: len(styles)][-columns:]:  # the lowest panel of each column
        axes.set_xlabel("Layer")
        axes.tick_params(labelbottom=True)
    handles = [
        Line2D([], [], color=GREY, marker="o", ls="", label="observed, p < 0.05"),
        Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="observed, p ≥ 0.05"),
        Patch(color="#cccccc", label="as many principles drawn from the pool, 95%"),
        Line2D([], [], color="black", ls="--", lw=0.8, label="their mean"),
    ]
    if _has(directions, "isotropic"):
        handles.append(Line2D([], [], color="black", ls=":", lw=0.8, label="any directions"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, handlelength=1.4, columnspacing=1.2)
    return figure


def _direction_panel(axes: Axes, table: pd.DataFrame, colour: str, marker: str) -> None:
    means = _over_seeds(table, ["layer"], ["observed", "null_mean", "null_low", "null_high"]).sort_values(
        "layer"
    )
    layers = means["layer"].astype(float).to_numpy()
    if len(layers) == 1:  # a band needs a width
        axes.errorbar(
            layers,
            means["null_mean"],
            color="#bbbbbb",
            lw=0,
            elinewidth=8,
            zorder=0,
            yerr=_errors(means["null_mean"], means["null_low"], means["null_high"]),
        )
    axes.fill_between(layers, means["null_low"], means["null_high"], color="#cccccc", lw=0)
    axes.plot(layers, means["null_mean"], color="black", ls="--", lw=0.8)
    if _has(table, "isotropic"):
        axes.plot(layers, table.groupby("layer")["isotropic"].mean(), color="black", ls=":", lw=0.8)
    axes.plot(layers, means["observed"], color=colour, lw=0.8)
    if _has(table, "observed_low"):
        ends = _errors(table["observed"], table["observed_low"], table["observed_high"])
        axes.errorbar(table["layer"], table["observed"], yerr=ends, fmt="none", color=colour, **INTERVAL)
    for row in table.itertuples():
        face = colour if row.p_value < 0.05 else "white"
        axes.plot(row.layer, row.observed, marker, color=colour, mfc=face, ms=3.5, mew=0.8)


def fig5_caption(directions: pd.DataFrame) -> str:
    measured = directions.dropna(subset=["observed"])
    facts = ", ".join(f"{arm} {joint_p_value(rows):.2g}" for arm, rows in measured.groupby("arm", sort=False))
    return (
        "Principles as directions: share of the energy of the displacement (trained minus untrained hidden states, held-out "
        "prompts) in the span of the arm's principle directions, by layer, with 95% intervals over prompts. The direction of "
        "a principle is what being told it does to the untrained model's states. Null, by permutation: the spans of as many "
        "principles drawn from the whole pool. Dotted: what a span of directions without any preference would hold. "
        f"Joint p, twice the median over layers and the largest over seeds: {facts}."
    )


# ---------------------------------------------------------------- 6 legibility


@styled
def fig6_legibility(legibility: pd.DataFrame) -> Figure:
    """Bound with own and with untrained critic, perplexity under the untrained model, format, for base and arms."""
    keys = [column for column in ("arm", "set") if column in legibility.columns]
    cases = legibility[keys].drop_duplicates().reset_index(drop=True)
    names = [_case_name(row, cases) for row in cases.itertuples()]
    styles = arm_styles(cases["arm"])
    figure, (bounds, surprise, rewards) = plt.subplots(
        1,
        3,
        figsize=(WIDTH, 1.25 + 0.26 * len(cases)),
        sharey=True,
        layout="constrained",
        width_ratios=[1.2, 1, 0.9],
    )
    kinds = [
        (bounds, "row_bound", False),
        (bounds, "row_bound_base_critic", True),
        (surprise, "perplexity_base", False),
        (rewards, "reward_graded", False),
        (rewards, "reward_strict", True),
    ]
    for axes, column, hollow in kinds:
        for y, case in cases.iterrows():
            chosen = legibility[(legibility[keys] == case).all(axis=1)].mean(numeric_only=True)
            value, low, high = (
                chosen.get(name, np.nan) for name in (column, f"{column}_low", f"{column}_high")
            )
            if np.isfinite(value):
                shift = 0.0 if axes is surprise else (-0.14 if hollow else 0.14)
                _point(axes, value, -y + shift, low, high, *styles[case["arm"]], hollow=hollow)
    for axes, columns in ((bounds, kinds[:2]), (surprise, kinds[2:3]), (rewards, kinds[3:])):
        if not any(_has(legibility, column) for _, column, _ in columns):
            axes.text(
                0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=GREY, style="italic"
            )
    if _has(legibility, "k"):
        for k in sorted(legibility["k"].dropna().unique()):
            bounds.axvline(math.log(k), color=GREY, lw=0.7, ls="--", zorder=0)
            bounds.annotate(
                f"log {k:g}",
                (math.log(k), 0),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=7,
                color=GREY,
            )
    bounds.axvline(0, color=GREY, lw=0.7, ls=":", zorder=0)
    bounds.set_yticks([-y for y in range(len(cases))], names)
    bounds.set(ylim=(-len(cases) + 0.4, 0.6), xlabel="Row bound (nats)")
    surprise.set_xlabel("Perplexity under base")
    rewards.set(xlabel="Format reward", xlim=(-0.05, 1.05))
    for axes, letter, text in (
        (bounds, "a", "Principle in the text"),
        (surprise, "b", "Fluency"),
        (rewards, "c", "Format"),
    ):
        _title(axes, letter, text)
        axes.tick_params(axis="y", length=0)
    filled, hollow = ({"color": GREY, "marker": "o", "ls": "", "mfc": face} for face in (GREY, "white"))
    handles = [
        Line2D([], [], label="own critic (a), graded (c)", **filled),
        Line2D([], [], label="untrained critic (a), strict (c)", **hollow),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _case_name(case, cases: pd.DataFrame) -> str:
    """The arm; with its set where the arm was measured under more than one."""
    return f"{case.arm}, {case.set} set" if (cases["arm"] == case.arm).sum() > 1 else case.arm


def fig6_caption(legibility: pd.DataFrame) -> str:
    counts = ""
    if _has(legibility, "completions"):
        counts = f", {int(legibility['completions'].max())} completions a model"
    return (
        f"Is the principle legible after training? Held-out questions{counts}. (a) Row bound of each model's completions "
        "with its own critic (filled) and with the untrained model as critic (hollow). A bound that rises for the model's "
        "own critic alone is a private code. (b) Perplexity of the completions under the untrained model. (c) Graded "
        "(filled) and strict (hollow) format reward. Bars: 95% intervals over questions; seeds averaged."
    )


# ---------------------------------------------------------------- 7 claims


@styled
def fig7_claims(claims: pd.DataFrame) -> Figure:
    """The claims table as a picture: claim, deciding effect on a scale of its own, numbers, verdict."""
    wrapped = [textwrap.wrap(row.claim, 44) for row in claims.itertuples()]
    measures = [textwrap.wrap(row.measure, 36) for row in claims.itertuples()]
    heights = [0.17 + 0.125 * max(len(a), len(b) + 1) for a, b in zip(wrapped, measures, strict=True)]
    figure = plt.figure(figsize=(WIDTH, sum(heights) + 0.42))
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set(xlim=(0, WIDTH), ylim=(-sum(heights) - 0.1, 0.32))
    axes.axis("off")
    for x, text in ((0.05, "Claim"), (3.0, "Effect (own scale; above 0 favours)"), (6.0, "Verdict")):
        axes.text(x, 0.12, text, weight="bold", va="center")
    top = 0.0
    for row, claim, measure, height in zip(claims.itertuples(), wrapped, measures, heights, strict=True):
        axes.axhline(top, color="#bbbbbb", lw=0.5)
        _claim_row(axes, row, claim, measure, top - height / 2)
        top -= height
    axes.axhline(top, color="#bbbbbb", lw=0.5)
    return figure


def _claim_row(axes: Axes, row, claim: list[str], measure: list[str], y: float) -> None:
    colour, symbol = VERDICT[row.verdict]
    centre, reach = 3.33, 0.33
    axes.text(0.05, y, row.id, weight="bold", va="center")
    axes.text(0.42, y, "\n".join(claim), va="center", fontsize=7, linespacing=1.15)
    text = "\n".join([*measure, interval_text(row.value, row.low, row.high)])
    axes.text(3.85, y, text, va="center", fontsize=6.5, linespacing=1.15)
    axes.text(6.0, y, f"{symbol} {row.verdict}", va="center", color=colour, weight="bold", fontsize=7)
    axes.plot([centre] * 2, [y - 0.13, y + 0.13], color=GREY, lw=0.7, ls=":")
    if math.isnan(row.value):
        return
    ends = [end for end in (row.value, row.low, row.high) if not math.isnan(end)]
    scale = reach / (max(abs(end) for end in ends) or 1.0)
    at = [centre + scale * end for end in (row.value, row.low, row.high)]
    _point(axes, at[0], y, at[1], at[2], colour, "o", hollow=row.verdict == UNDECIDED)


def fig7_caption(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts()
    tally = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICT)
    return (
        f"The paper's claims (C, from its abstract; H, from a secondary account) and a check of our own (L), as judged "
        f"here: {tally}. Each row shows the part that decided, with its 95% interval on a scale "
        "of its own; effects are signed so that above zero favours the claim. Rules were written before the run and stand "
        "in the claims table, with all parts in its notes. A verdict is about this model, data and budget."
    )


# ---------------------------------------------------------------- 8 creation


@styled
def fig8_creation(creation: pd.DataFrame) -> Figure:
    """SI of each seed and of its last proposal, and the gain. `creation`: the table of that name."""
    last = creation[creation["gain"].notna()].reset_index(drop=True)
    figure, (before, gain) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.1 + 0.24 * max(len(last), 4)), sharey=True, layout="constrained"
    )
    _title(before, "a", "SI: seed (hollow), last proposal (filled)")
    _title(gain, "b", "Gain on fresh questions")
    if last.empty:
        for axes in (before, gain):
            _not_measured(axes)
        return figure
    for y, row in enumerate(last.itertuples()):
        colour, marker = (VERDICT[SUPPORTED][0], "D") if row.accepted else (GREY, "o")
        before.plot([row.si_seed, row.si_proposal], [y, y], color=colour, lw=0.9, alpha=FAINT)
        _point(before, row.si_seed, y, row.si_seed, row.si_seed, colour, "o", hollow=True)
        _point(before, row.si_proposal, y, row.si_proposal, row.si_proposal, colour, marker)
        _point(gain, row.gain, y, row.gain_low, row.gain_high, colour, marker, hollow=not row.accepted)
        note = f"{row.origin}, {'accepted' if row.accepted else 'not accepted'}"
        gain.annotate(
            note, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5, color=colour
        )
    gain.axvline(0, color=GREY, lw=0.7, ls=":")
    before.set(yticks=range(len(last)), yticklabels=last["seed"], ylim=(len(last) - 0.5, -0.5), xlabel="SI")
    gain.set(xlabel="SI of the proposal - SI of the seed")
    return figure


def fig8_caption(creation: pd.DataFrame) -> str:
    last = creation[creation["gain"].notna()]
    return (
        f"Creating principles before training: {len(creation)} proposals for {creation['seed'].nunique()} seed principles, "
        f"{int(creation['accepted'].sum())} accepted. Successive halving left one proposal of each seed, measured here on "
        f"fresh questions that chose nothing. (a) SI within the set of seeds, the proposal in its seed's place. (b) The gain, "
        f"paired by question, with its 95% interval; accepted (diamonds) only where it lies above zero, "
        f"which chance alone achieves about once in forty tests; here there were {len(last)}."
    )


# ---------------------------------------------------------------- 9 robustness

WHOLE = (
    "consistency",
    "worst_case",
    "follows_hint",
)  # rows of the table that belong to all conditions together


@styled
def fig9_robustness(robustness: pd.DataFrame) -> Figure:
    """Accuracy by condition, its paired difference to the original, and what holds over all conditions, for each arm."""
    numbers = [
        "value",
        "low",
        "high",
        "chance",
        "independent",
        "difference",
        "difference_low",
        "difference_high",
    ]
    means = _over_seeds(robustness, ["arm", "condition"], numbers)
    arms = list(dict.fromkeys(means["arm"]))
    styles = arm_styles(arms)
    conditions = [name for name in dict.fromkeys(means["condition"]) if name not in WHOLE]
    height = 1.1 + max(len(conditions), 4) * (0.16 + 0.1 * len(arms))
    figure, panels = plt.subplots(
        1, 3, figsize=(WIDTH, height), layout="constrained", width_ratios=[1.1, 1, 1]
    )
    scores, changes, whole = panels
    for axes, letter, text in (
        (scores, "a", "Accuracy"),
        (changes, "b", "Difference to original"),
        (whole, "c", "All conditions"),
    ):
        _title(axes, letter, text)
    if means.empty:
        for axes in panels:
            _not_measured(axes)
        return figure
    for row in means.itertuples():
        style = styles[row.arm]
        if row.condition in WHOLE:
            y = _row_place(list(WHOLE), row.condition, arms, row.arm)
            _point(whole, row.value, y, row.low, row.high, *style)
            expected = row.value - row.difference if row.condition == "follows_hint" else row.independent
            whole.plot(expected, y, "|", color="black", ms=7)
            continue
        y = _row_place(conditions, row.condition, arms, row.arm)
        _point(scores, row.value, y, row.low, row.high, *style, faint=row.low <= row.chance <= row.high)
        if math.isfinite(row.difference):
            _point(changes, row.difference, y, row.difference_low, row.difference_high, *style)
    scores.axvline(float(means.iloc[0]["chance"]), color="black", ls=":", lw=1, zorder=0)
    changes.axvline(0, color=GREY, lw=0.7, ls=":", zorder=0)
    limit = max(abs(end) for end in changes.get_xlim())
    changes.set(xlim=(-limit, limit), xlabel="Difference in accuracy")
    for axes in (scores, whole):
        axes.set(xlim=(-0.03, 1.03), xlabel="Share of items")
    for axes, names in ((scores, conditions), (changes, []), (whole, WHOLE)):
        axes.set_yticks([-y for y in range(len(names))], [name.replace("_", "\n", 1) for name in names])
        count = len(names) or len(conditions)
        axes.set_ylim(-count + 0.5, 0.5)
        axes.tick_params(axis="y", length=0)
        for y in range(1, count):
            axes.axhline(0.5 - y, color="#dddddd", lw=0.6, zorder=0)
    extra = [
        Line2D([], [], color="black", ls=":", lw=1, label="chance"),
        Line2D([], [], color="black", marker="|", ls="", ms=7, label="expected (c)"),
    ]
    _arm_legend(figure, styles, line=False, extra=extra)
    return figure


def fig9_caption(robustness: pd.DataFrame) -> str:
    if robustness.empty:
        return "Robustness was not measured: the profile does not name the task enigma_robustness."
    rows = robustness[robustness["condition"].isin(WHOLE[:2])].groupby(["condition", "arm"], sort=False)
    facts = {name: [] for name in WHOLE[:2]}
    for (name, arm), values in rows[["value", "independent"]].mean().iterrows():
        facts[name].append(f"{arm} {values['value']:.2f} ({values['independent']:.2f})")
    return (
        f"The same {int(robustness['n'].max())} items under seven conditions. (a) Accuracy with Wilson's 95% intervals; dotted: "
        "chance; faint: not told from it. (b) Differences to the original prompt, paired by item, 95% bootstrap intervals, not "
        "corrected (the table has Holm's p-values). (c) consistency: answered alike under all conditions; worst case: right "
        "under all; follows hint: answered with the wrong option that the hint names. Upright marks: what answers "
        "of the same accuracies would give if conditions had nothing to do with each other; for follows hint, the share that "
        f"chose this option without the hint. Consistency (if independent): "
        f"{', '.join(facts['consistency'])}; worst case: {', '.join(facts['worst_case'])}."
    )


# ---------------------------------------------------------------- 10 stability of the selection


@styled
def fig10_stability(selection_stability: pd.DataFrame, test_retest: pd.DataFrame) -> Figure:
    """How often each principle is selected when the questions are drawn again, and SI on two halves of the questions."""
    table = selection_stability.assign(
        si=(selection_stability["si_first"] + selection_stability["si_second"]) / 2
    )
    table = table.sort_values("si").reset_index(drop=True)
    figure, (shares, halves) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.3 + 0.16 * max(len(table), 10)), layout="constrained", width_ratios=[1.25, 1]
    )
    sides = {"high": (ARMS["enigma_high"][0], 1), "low": (ARMS["enigma_low"][0], -1)}
    for name, (colour, sign) in sides.items():
        for y, row in table.iterrows():
            chosen = row["chosen"] == name
            shares.barh(
                y, sign * row[f"in_{name}"], color=colour if chosen else "white", edgecolor=colour, height=0.7
            )
    shares.axvline(0, color=GREY, lw=0.7)
    shares.set_yticks(range(len(table)), table["principle"])
    shares.set(
        xlim=(-1, 1),
        xticks=(-1, -0.5, 0, 0.5, 1),
        xlabel="Share of resamples: in the low set | in the high set",
    )
    shares.set_xticklabels(["1", "0.5", "0", "0.5", "1"])
    _title(shares, "a", "Selection, questions drawn again")

    for row in table.itertuples():
        colour = sides[row.chosen][0] if row.chosen in sides else GREY
        marker = {"high": "^", "low": "v"}.get(row.chosen, "o")
        halves.plot(row.si_first, row.si_second, marker, color=colour)
    ends = (min(halves.get_xlim()[0], halves.get_ylim()[0]), max(halves.get_xlim()[1], halves.get_ylim()[1]))
    halves.plot(ends, ends, color=GREY, lw=0.7, ls=":", zorder=0)
    halves.set(
        xlim=ends, ylim=ends, aspect="equal", xlabel="SI, half of the questions", ylabel="SI, other half"
    )
    row = test_retest[test_retest["span"] == "reasoning"].iloc[0]
    _title(halves, "b", f"Retest: {interval_text(row['correlation'], row['low'], row['high'])}")
    handles = [
        Patch(facecolor=colour, edgecolor=colour, label=f"in the {name} set")
        for name, (colour, _) in sides.items()
    ]
    handles.append(Patch(facecolor="white", edgecolor=GREY, label="not chosen"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def fig10_caption(selection_stability: pd.DataFrame, test_retest: pd.DataFrame) -> str:
    row = test_retest[test_retest["span"] == "reasoning"].iloc[0]
    kept = [
        f"{selection_stability.loc[selection_stability['chosen'] == name, f'in_{name}'].mean():.0%} ({name})"
        for name in ("high", "low")
    ]
    return (
        f"Would other questions select the same principles? (a) Share of {int(selection_stability['resamples'].iloc[0])} bootstrap "
        "resamples of the questions in which each principle is in the set of highest or lowest SI; filled: in the set that was "
        f"chosen. Its members return in {' and '.join(kept)} of the resamples on average. (b) SI of each principle on two "
        f"disjoint halves of {int(row['questions_per_half'])} questions, one split. Rank correlation over all splits, with its "
        f"95% interval: {interval_text(row['correlation'], row['low'], row['high'])}; stepped up to all questions "
        f"(Spearman-Brown): {interval_text(row['full'], row['full_low'], row['full_high'])}."
    )


# ---------------------------------------------------------------- 11 does SI predict?

OUTCOME_LABELS = {
    "reward_roughness": "Roughness of the reward",
    "benchmarks": "Benchmarks, gain over base",
    "reward_drawdown": "Drawdown of the reward",
    "grad_norm_cv": "Variation of gradient norm",
}


@styled
def fig11_prediction(prediction_points: pd.DataFrame, prediction: pd.DataFrame) -> Figure:
    """Each set's SI against what its arm's training did, every point named, the verdict in the title."""
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.6), layout="constrained")
    styles = arm_styles(prediction_points["arm"])
    rows = prediction[prediction["predictor"] == "si"].set_index("outcome")
    for letter, axes, (outcome, label) in zip("abcd", grid.flat, OUTCOME_LABELS.items(), strict=True):
        if not _has(prediction_points, outcome):
            _title(axes, letter, label)
            _not_measured(axes)
            continue
        for arm, part in prediction_points.groupby("arm", sort=False):
            colour, marker = styles[arm]
            if len(part) > 1:
                axes.plot(part["si"], part[outcome], ".", color=colour, alpha=FAINT)
            centre = (part["si"].iloc[0], part[outcome].mean())
            axes.plot(*centre, marker, color=colour, ms=5)
            axes.annotate(arm, centre, xytext=(4, 4), textcoords="offset points", fontsize=6.5, color=colour)
        found = rows.loc[outcome]
        text = interval_text(found["correlation"], found["low"], found["high"])
        _title(
            axes,
            letter,
            f"rank correlation {text}" if np.isfinite(found["correlation"]) else "no rank correlation",
        )
        axes.set(xlabel="SI of the set, untrained model", ylabel=label)
        axes.margins(x=0.22, y=0.18)
        if OUTCOMES[outcome] < 0:  # so that what the claim favours is up in every panel
            axes.invert_yaxis()
            axes.set_ylabel(f"{label} (down)")
    figure.suptitle(prediction_title(prediction), fontsize=9)
    return figure


def prediction_title(prediction: pd.DataFrame) -> str:
    """What the two deciding outcomes say, in one line."""
    rows = prediction[prediction["predictor"] == "si"].set_index("outcome")
    deciding = {"steadiness": rows.loc["reward_roughness"], "benchmarks": rows.loc["benchmarks"]}
    if all(row["verdict"] == TOO_FEW for row in deciding.values()):
        return (
            f"Does SI predict? {int(max(row['sets'] for row in deciding.values()))} sets are too few to tell"
        )
    return "; ".join(f"{name}: SI {row['verdict']}" for name, row in deciding.items()).replace(
        f"SI {TOO_FEW}", TOO_FEW
    )


def fig11_caption(prediction_points: pd.DataFrame, prediction: pd.DataFrame) -> str:
    texts = []
    for row in prediction[prediction["predictor"] == "si"].itertuples():
        p = f", p = {row.p_value:.2g}" if np.isfinite(row.p_value) else ""
        found = interval_text(row.correlation, row.low, row.high)
        texts.append(
            f"{OUTCOME_LABELS[row.outcome].lower()} {found.replace('not measured', 'none')}{p}, {row.verdict}"
        )
    return (
        f"{prediction_title(prediction)}. Arms that differ in their principles alone ({prediction_points['set'].nunique()} sets, "
        f"seeds: {prediction_points['seed'].nunique()}, the small points). SI of the set on the questions that chose it. "
        "What the claim favours is up in every panel, so less is up where the axis points down, and above zero in Spearman's "
        "correlation over sets: " + "; ".join(texts) + "."
    )


# ---------------------------------------------------------------- reading, drawing, saving


@dataclass(frozen=True)
class Entry:
    """How a figure is made: from which tables, and with which facts of the profile."""

    draw: Callable[..., Figure]
    caption: Callable[..., str]
    tables: tuple[str, ...]
    options: Callable[[object], dict] = lambda profile: {}


FIGURES = {
    "fig1_sufficiency": Entry(fig1_sufficiency, fig1_caption, ("sufficiency",)),
    "fig2_training": Entry(
        fig2_training,
        fig2_caption,
        ("training",),
        lambda profile: {"k": profile.trainer.num_principles, "budget": profile.trainer.ot_budget},
    ),
    "fig3_benchmarks": Entry(fig3_benchmarks, fig3_caption, ("benchmarks", "benchmark_differences")),
    "fig4_geometry": Entry(fig4_geometry, fig4_caption, ("geometry",)),
    "fig5_directions": Entry(fig5_directions, fig5_caption, ("directions",)),
    "fig6_legibility": Entry(fig6_legibility, fig6_caption, ("legibility",)),
    "fig7_claims": Entry(fig7_claims, fig7_caption, ("claims",)),
    "fig8_creation": Entry(fig8_creation, fig8_caption, ("creation",)),
    "fig9_robustness": Entry(fig9_robustness, fig9_caption, ("robustness",)),
    "fig10_stability": Entry(fig10_stability, fig10_caption, ("selection_stability", "test_retest")),
    "fig11_prediction": Entry(fig11_prediction, fig11_caption, ("prediction_points", "prediction")),
}


def make(profile, results, name: str) -> Figure:
    """Draw the figure `name` from its tables, save it with its caption and return it.

    Raises KeyError for an unknown name, InputError naming the notebook to run first when a table is missing.
    """
    entry = FIGURES[name]
    frames = [results.read_table(table) for table in entry.tables]
    options = entry.options(profile)
    figure = entry.draw(*frames, **options)
    results.save_figure(name, figure, entry.caption(*frames, **options), inputs=entry.tables)
    return figure
