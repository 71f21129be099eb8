"""`python -m benchmarks.placement`: where should a principle stand, and against what should it be told apart?

Eight principles and their antitheses on the untrained embedded model, under each placement. One score matrix for each
placement holds all three contrasts, since a subset of its columns needs no new forward. Writes results/placement/.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from enigma.figures.all import WIDTH, styled
from matplotlib.figure import Figure

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.llm.loading import load_model
from enigma.llm.prompts import PLACEMENTS
from enigma.method.stats import mean_interval
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages.select import Pool, Values, bound_values, measure

PRINCIPLES, QUESTIONS, SAMPLES = 8, 12, 1
COLOURS = {"system": "#7f7f7f", "question": "#0072B2", "restated": "#D55E00"}
CAPTION = (
    "Stage 1 under each placement and contrast: {principles} principles and their antitheses, {questions} questions, "
    "{samples} completions each, reasoning span. SI = row bound / log K with 95 % intervals over questions; `carried`: "
    "principles whose own interval lies above zero; `spread`: standard deviation of SI over principles."
)


def contrasts(n: int) -> dict[str, list[list[int]]]:
    """The columns that compete, block by block; column n + i is the antithesis of i."""
    return {
        "others": [list(range(n))],
        "antithesis": [[i, n + i] for i in range(n)],
        "both": [list(range(2 * n))],
    }


def rows(pool: Pool, placement: str, boot: dict) -> list[dict]:
    """One row for each contrast."""
    n = len(pool.principles)
    scores, source = pool.matrices("reasoning", 0)
    made = []
    for contrast, blocks in contrasts(n).items():
        limit = math.log(len(blocks[0]))
        whole = np.mean([bound_values(scores, source, keep=keep).row for keep in blocks], axis=0)
        each = [_principle(scores, source, blocks, i) for i in range(n)]
        si, own = mean_interval(whole / limit, **boot), [mean_interval(v.row / limit, **boot) for v in each]
        made.append(
            {
                "placement": placement,
                "contrast": contrast,
                "k": len(blocks[0]),
                "questions": len(scores),
                "row_bound": si.value * limit,
                "si": si.value,
                "si_low": si.low,
                "si_high": si.high,
                "carried": sum(interval.low > 0 for interval in own),
                "spread": float(np.std([v.value for v in own], ddof=1)),
            }
        )
    return made


def _principle(scores, source, blocks: list[list[int]], i: int) -> Values:
    keep = next(block for block in blocks if i in block)
    return bound_values(scores, source, principle=keep.index(i), keep=keep)


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """SI with its interval for each contrast, one colour for each placement."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.6, 2.2), layout="constrained")
    names = list(dict.fromkeys(frame.contrast))
    for shift, (placement, part) in zip((0.2, 0, -0.2), frame.groupby("placement", sort=False), strict=True):
        y = [-names.index(name) + shift for name in part.contrast]
        errors = [part.si - part.si_low, part.si_high - part.si]
        axes.errorbar(
            part.si, y, xerr=errors, fmt="o", color=COLOURS[placement], label=placement, elinewidth=0.9
        )
    axes.set_yticks(
        [-i for i in range(len(names))], [f"against {name}" if name != "both" else name for name in names]
    )
    axes.set(xlabel="SI of the set (row bound / log K)", xlim=(min(0, axes.get_xlim()[0]), 1))
    axes.legend(title="principle stands in", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    profile = load_profile("cpu")
    results = Results(profile.model_copy(update={"name": "placement"}))
    principles = [p for p in load_pool(profile.principles.pool) if p.antithesis][:PRINCIPLES]
    questions = load_questions(profile.questions, "select", QUESTIONS, profile.seeds.data)
    spec = profile.sufficiency.model_copy(update={"contrast": "both", "samples": SAMPLES, "batch_size": 96})
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    boot = dict(resamples=spec.resamples, seed=profile.seeds.bootstrap)
    made = []
    for placement in PLACEMENTS:
        pool = measure(
            model,
            tokenizer,
            principles,
            questions,
            spec=spec,
            placement=placement,
            demonstration=profile.prompts.demonstration,
            seed=profile.seeds.sampling,
            folder=results.runs / placement,
            key=f"{profile.hash}-{placement}",
        )
        made += rows(pool, placement, boot)
    frame = pd.DataFrame(made)
    caption = CAPTION.format(principles=len(principles), questions=len(questions), samples=SAMPLES)
    results.write_table("placement", frame, caption)
    results.save_figure("placement", draw(frame), caption, inputs=("placement",))
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
