"""`python -m benchmarks.placement`: where should a principle stand, and with what should it be compared?

Eight principles and their antitheses on the untrained embedded model, under each placement. One score matrix for each
placement holds all three contrasts, since a subset of its columns needs no new forward. Writes results/placement/.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.llm.loading import load_model
from enigma.llm.matched import sample_and_score
from enigma.llm.prompts import PLACEMENTS
from enigma.method import sufficiency as si
from enigma.profile import load_profile
from enigma.record.results import Results

PRINCIPLES, QUESTIONS, SAMPLES = 8, 12, 1
WIDTH = 7.0  # inches, two columns of a paper
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


def rows(scores: list, source: list, n: int, placement: str) -> list[dict]:
    """One row for each contrast, from the (N, 2n) matrices of n principles and their antitheses."""
    made = []
    for contrast, blocks in contrasts(n).items():
        parts = [si.sampled_information(*si.within(scores, source, block)) for block in blocks]
        k = len(blocks[0])
        whole = si.Ratio(*(sum(getattr(p, name).sum(0) for p in parts) for name in si.Ratio._fields))
        each = [next(p.at(block.index(i)) for p, block in zip(parts, blocks) if i in block) for i in range(n)]
        found = whole.interval(k)
        made.append(
            {
                "placement": placement,
                "contrast": contrast,
                "k": k,
                "questions": len(scores),
                "row_bound": found.value * math.log(k),
                "si": found.value,
                "si_low": found.low,
                "si_high": found.high,
                "carried": sum(one.interval(k).low > 0 for one in each),
                "spread": float(np.std([one.sufficiency(k) for one in each], ddof=1)),
            }
        )
    return made


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
    spec, texts = profile.sufficiency, [*(p.text for p in principles), *(p.antithesis for p in principles)]
    options = {"samples": SAMPLES, "max_tokens": spec.max_tokens, "batch_size": spec.batch_size}
    options["seed"] = profile.seeds.sampling
    loaded = load_model(profile.model, profile.seeds.initialisation)
    made = []
    for placement in PLACEMENTS:
        style = {"placement": placement, "demonstration": profile.prompts.demonstration}
        found = sample_and_score(*loaded, questions, texts, style, **options)
        scores, source = [row["reasoning"] for row in found], [row["source"] for row in found]
        made += rows(scores, source, len(principles), placement)
    frame = pd.DataFrame(made)
    caption = CAPTION.format(principles=len(principles), questions=len(questions), samples=SAMPLES)
    results.write_table("placement", frame, caption, "benchmarks.placement")
    results.save_figure("placement", draw(frame), caption, "benchmarks.placement", ("placement",))
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
