"""Model steering: prompts drawn by how much a reference model does better on them. Source: DRRho, arXiv 2505.06699.

    p_q proportional to exp((l_q - l_ref,q) / tau),   l = 1 - mean graded reward under prompt q's principles

The untrained model's loss is high and the reference's low where something can be learned. Departures [D]: the loss is of a
reward and not of a likelihood; l_q is the model's before training, measured once, where the paper takes the current
model's at each step; the weights choose what is sampled, where the paper weighs the loss.
"""

from collections.abc import Sequence

import numpy as np

from enigma.method.rewards import graded_format


def steering_weights(loss, reference, tau: float) -> np.ndarray:
    """(n,) weights that sum to 1, from the losses of the model and of the reference, both in [0, 1]; tau > 0."""
    logits = (np.asarray(loss, float) - np.asarray(reference, float)) / tau
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def draw(items: Sequence, weights, seed: int, shuffled: bool = False) -> list:
    """As many of `items` as there are, drawn with replacement; `shuffled`, the control: each weight at another's place."""
    generator = np.random.default_rng(seed)
    weights = generator.permutation(weights) if shuffled else weights
    return [items[i] for i in generator.choice(len(items), size=len(items), p=weights)]


def question_losses(rows: Sequence[dict]) -> dict[str, float]:
    """{question: 1 - mean graded reward} of the rows of `enigma.llm.sampling.sampled_rows`, in [0, 1]."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["question"], []).append(1 - graded_format(row["completion"]))
    return {question: float(np.mean(losses)) for question, losses in found.items()}
