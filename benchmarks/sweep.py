"""`python -m benchmarks.sweep`: what the weights of the extra terms do to format, legibility and fluency.

Trains the arms of benchmarks/sweep.yaml on its high-SI set, and writes results/sweep/. An interrupted sweep goes on where
it stopped. Judged on held-out questions by the strict format rate, the row bound with
the untrained model as critic and the perplexity under it; never by a benchmark.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from enigma.profile import BASE, load_profile
from enigma.record.results import Results
from enigma.stages import legibility, select, train

WIDTH = 7.0  # inches, two columns of a paper
HELD = {"none": ("#D55E00", "o", "-"), "Sinkhorn": ("#0072B2", "s", "--"), "KL": ("#009E73", "^", "")}
# Column, label, column of the faint marks, limits. With six questions some intervals are far longer than the panel.
PANELS = (
    ("reward_strict", "strict format rate", None, (-0.03, 1)),
    ("row_bound_base_critic", "untrained critic's row bound, nats", "row_bound", (0, 1.5)),
    ("perplexity_base", "perplexity, untrained model", None, (0, 30)),
    ("drift", "Sinkhorn divergence, last step", None, (-0.005, None)),
)
CAPTION = (
    "The weights of the extra terms: each setting trained once ({steps} steps, one seed), then sampled on {questions} "
    "held-out questions. `held_by`: what bounds the drift. Bounds in nats, 95 % intervals over questions; `drift`: the "
    "Sinkhorn divergence of the last step."
)


def table(profile, results) -> pd.DataFrame:
    """One row for each arm and one for the untrained model: its settings, and how its completions turned out."""
    select.run(profile, results)
    drift = train.run(profile, results)["training"].groupby("arm").sinkhorn.last()
    frame = legibility.run(profile, results)["legibility"].drop(columns=["set", "k", "seed"])
    arms = [profile.arms.get(arm) for arm in frame.arm]
    frame.insert(1, "lambda_sami", [arm.lambda_sami if arm else np.nan for arm in arms])
    frame.insert(2, "held_by", [held_by(arm) if arm else "" for arm in arms])
    frame.insert(3, "budget", [arm.ot_budget if arm and arm.lambda_ot else np.nan for arm in arms])
    frame.insert(4, "drift", frame.arm.map(drift))
    return frame


def held_by(arm) -> str:
    return "Sinkhorn" if arm.lambda_ot else "KL" if arm.beta else "none"


def draw(frame: pd.DataFrame) -> Figure:
    """Four panels against the coefficient of the SAMI term; a line for what bounds the drift."""
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 4.4), layout="constrained", sharex=True)
    base = frame[frame.arm == BASE].iloc[0]
    trained = frame[frame.arm != BASE]
    ticks = sorted(trained.lambda_sami.unique())
    for panel, letter, (column, label, own, limits) in zip(axes.flat, "abcd", PANELS, strict=True):
        for (held_by, budget), part in trained.groupby(["held_by", "budget"], dropna=False):
            colour, marker, line = HELD[held_by]
            # A budget that never binds gives the very points of no bound: a ring around them.
            ring = dict(mfc="none", ms=8) if budget > 0.05 else {}
            part = part.sort_values("lambda_sami")
            x = [ticks.index(value) for value in part.lambda_sami]
            name = {"none": "no bound", "KL": "KL 0.1"}.get(held_by, f"Sinkhorn, budget {budget:g}")
            panel.plot(x, part[column], color=colour, marker=marker, ls=line, label=name, **ring)
            if own:
                panel.plot(x, part[own], color=colour, marker=marker, ls="", mfc="none", alpha=0.45)
            if f"{column}_low" in part:
                panel.vlines(
                    x, part[f"{column}_low"], part[f"{column}_high"], color=colour, lw=0.8, alpha=0.6
                )
        if np.isfinite(base.get(column, np.nan)):
            panel.axhline(base[column], color="#7f7f7f", lw=0.8, ls=":", label="untrained")
        panel.set(
            ylabel=label, ylim=limits, xticks=range(len(ticks)), xticklabels=[f"{value:g}" for value in ticks]
        )
        panel.set_title(rf"$\mathbf{{{letter}}}$", loc="left")
    for panel in axes[1]:
        panel.set_xlabel("coefficient of the SAMI term")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def main() -> None:
    profile = load_profile(Path(__file__).with_suffix(".yaml"))
    results = Results(profile)
    frame = table(profile, results)
    caption = CAPTION.format(steps=profile.trainer.max_steps, questions=profile.sufficiency.heldout)
    results.write_table("sweep", frame, caption, "benchmarks.sweep", ("training", "legibility"))
    faint = " Faint hollow marks in (b): the model's own critic. Intervals are cut at the panels' edges."
    results.save_figure("sweep", draw(frame), caption + faint, "benchmarks.sweep", ("sweep",))
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
