"""`python -m benchmarks.coverage`: does the 95 % interval of a mean over questions hold the truth 95 times in 100?

A toy whose information is known: a completion under principle k is a point in K dimensions, normal with variance 1 around
strength x e_k, and its scores are its exact log-likelihoods. Questions differ in strength (log-normal), so the mean over
questions has the sampling error that a real pool's has, down to its tail: near log K most questions carry all there is and
a rare one far less. Each cell draws 500 times that many questions and asks whether the interval of
`enigma.method.stats.mean_interval` holds the true information; for comparison the percentile bootstrap, and for SI Student's
t. Writes results/coverage/. Some minutes.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import brentq
from scipy.special import log_softmax

from enigma.method.stats import influence, mean_interval, student_interval
from enigma.method.sufficiency import principle_information
from enigma.profile import load_profile
from enigma.record.progress import track
from enigma.record.results import Results

REPETITIONS, RESAMPLES, SAMPLES = 500, 500, 2
WIDTH = 7.0  # inches, two columns of a paper
SPREAD = 0.4  # standard deviation of the logarithm of a question's strength
TRUTH_QUESTIONS = 20_000
SHARES = (0.05, 0.5, 0.95)
UNITS = ("set", "principle", "SI")
QUESTIONS = (6, 8, 12, 24, 48)
KS = (4, 16)
COLOURS = {4: "#0072B2", 16: "#D55E00"}
CAPTION = (
    f"Coverage of the 95 % interval over {REPETITIONS} simulated repetitions, of which the Monte-Carlo error is `error`. "
    f"`of`: a set's bound (K x {SAMPLES} completions of each question), one principle's ({SAMPLES} completions), or SI of a "
    "principle among K (one completion each, Rao-Blackwell, influence values). `share`: the true information over log K. The "
    "studentised bootstrap, its ends cut to [0, log K]; `uncut_width` is without the cut, `percentile` the percentile bootstrap on "
    "the same draws, `student` Student's t. Widths are medians, in units of log K."
)


def row_values(
    strength: float, k: int, questions: int, source: np.ndarray, generator
) -> tuple[np.ndarray, np.ndarray]:
    """(questions, completions) row bounds in nats, and their expectation given the completion, log K minus the
    posterior's entropy.

    Their true means agree, and the second varies less. `source` is the principle of each completion.
    """
    strengths = strength * np.exp(SPREAD * generator.normal(size=(questions, 1, 1)))
    points = strengths * np.eye(k)[source] + generator.normal(size=(questions, len(source), k))
    posterior = log_softmax(strengths * points, axis=-1)
    row = math.log(k) + posterior[:, np.arange(len(source)), source]
    return row, math.log(k) + (np.exp(posterior) * posterior).sum(-1)


def influenced(strength: float, k: int, questions: int, generator) -> np.ndarray:
    """(questions,) numbers in nats whose mean is the information about the first of K principles, and whose spread is that of
    its influence values: what SI's interval is taken over."""
    strengths = strength * np.exp(SPREAD * generator.normal(size=(questions, 1, 1)))
    found = principle_information(
        list(strengths * (strengths * np.eye(k) + generator.normal(size=(questions, k, k))))
    )
    value, influences = influence(*found.at(0))
    return value + influences


def information(strength: float, k: int) -> float:
    """True information in nats, by `TRUTH_QUESTIONS` draws that are the same for every strength."""
    generator, source = np.random.default_rng(1), np.arange(SAMPLES) % k
    # All principles are alike in this toy, so those of `source` stand for all.
    return float(row_values(strength, k, TRUTH_QUESTIONS, source, generator)[1].mean())


def cell(of: str, k: int, share: float, questions: int, repetitions: int = REPETITIONS) -> dict:
    """One row of the table."""
    limit = math.log(k)
    strength = brentq(lambda s: information(s, k) / limit - share, 0.01, 20.0, xtol=1e-3)
    truth = information(strength, k)
    source = np.repeat(np.arange(k), SAMPLES) if of == "set" else np.zeros(SAMPLES, dtype=int)
    generator = np.random.default_rng([k, questions, len(source) if of != "SI" else 0])
    ends = []
    for repetition in range(repetitions):
        if of == "SI":
            values = influenced(strength, k, questions, generator)
        else:
            values = row_values(strength, k, questions, source, generator)[0].mean(1)
        boot = dict(resamples=RESAMPLES, seed=repetition)
        drawn = values[np.random.default_rng(repetition).integers(0, questions, (RESAMPLES, questions))].mean(
            1
        )
        ends.append(
            [
                *mean_interval(values, support=(0.0, limit), **boot)[1:],
                *mean_interval(values, **boot)[1:],
                *np.quantile(drawn, [0.025, 0.975]),
                *student_interval(values)[1:],
            ]
        )
    low, high = np.array(ends).reshape(repetitions, 4, 2).transpose(2, 1, 0)
    inside = ((low <= truth) & (truth <= high)).mean(1)
    width = np.median(high - low, axis=1) / limit
    return {
        "of": of,
        "k": k,
        "share": share,
        "information": truth,
        "questions": questions,
        "coverage": inside[0],
        "error": math.sqrt(max(inside[0] * (1 - inside[0]), 1e-4) / repetitions),
        "width": width[0],
        "uncut_width": width[1],
        "percentile": inside[2],
        "percentile_width": width[2],
        "student": inside[3],
    }


def draw(frame: pd.DataFrame) -> Figure:
    """Coverage against the number of questions, one panel for each unit and share of log K."""
    figure, grid = plt.subplots(
        len(UNITS), len(SHARES), figsize=(WIDTH, 5.6), layout="constrained", sharex=True, sharey=True
    )
    ticks = list(QUESTIONS)
    places = [(of, share) for of in UNITS for share in SHARES]
    for axes, letter, (of, share) in zip(grid.flat, "abcdefghi", places, strict=True):
        axes.axhspan(0.93, 0.97, color="#dddddd", lw=0)
        for k, part in frame[(frame.of == of) & (frame.share == share)].groupby("k"):
            x = [ticks.index(n) + (0.06 if k == 16 else -0.06) for n in part.questions]
            errors = 1.96 * part.error
            axes.errorbar(
                x, part.coverage, yerr=errors, color=COLOURS[k], marker="o", elinewidth=0.9, label=f"K = {k}"
            )
            axes.plot(x, part.percentile, color=COLOURS[k], marker="o", mfc="white", ls=":", lw=0.8)
        axes.set_title(rf"$\mathbf{{{letter}}}$  {of}, {share:g} log K", loc="left", fontsize=9)
        axes.set(xticks=range(len(ticks)), xticklabels=ticks, ylim=(0.4, 1.005))
    for axes in grid[-1]:
        axes.set_xlabel("questions")
    for axes in grid[:, 0]:
        axes.set_ylabel("coverage")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    percentile = plt.Line2D([], [], color="#555555", marker="o", mfc="white", ls=":", lw=0.8)
    figure.legend(
        [*handles, percentile], [*labels, "percentile bootstrap"], loc="outside upper center", ncols=3
    )
    return figure


def main() -> None:
    results = Results(load_profile("cpu").model_copy(update={"name": "coverage"}))
    cells = [(of, k, share, n) for of in UNITS for k in KS for share in SHARES for n in QUESTIONS]
    frame = pd.DataFrame([cell(*case) for case in track(cells, "coverage", unit="cell")])
    results.write_table("coverage", frame, CAPTION, "benchmarks.coverage")
    seen = " Panels: what the interval is of, and its true information. Grey band: 93 to 97 %. Filled: the studentised bootstrap, bars its Monte-Carlo error; hollow: percentile."
    results.save_figure("coverage", draw(frame), CAPTION + seen, "benchmarks.coverage", ("coverage",))
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
