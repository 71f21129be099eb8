"""What the log-probabilities of an item's choices say about the right one. Equations 25 to 27 of docs/method.md."""

import math
from collections.abc import Sequence

import numpy as np


def marks(
    logps: np.ndarray, prior: np.ndarray, texts: Sequence[str], gold: Sequence[int]
) -> dict[str, float]:
    """What the log-probabilities (nats) of an item's choices say about the right ones (docs/method.md, eq. 25 to 27).

    margin: mean over the right choices minus mean over the others of log-probability per character. margin_prior: the
    same after the choice's log-probability without the question is taken away. gold_bits_per_byte: of the right choices,
    lower is better. gold_probability: of the right choices among all, in [0, 1].
    """
    right = np.isin(np.arange(len(texts)), gold)
    characters = np.array([max(len(text.strip()), 1) for text in texts])
    size = sum(len(texts[i].encode()) for i in gold)
    share = np.exp(logps - logps.max())
    per_character, informed = logps / characters, (logps - prior) / characters
    return {
        "margin": float(per_character[right].mean() - per_character[~right].mean()),
        "margin_prior": float(informed[right].mean() - informed[~right].mean()),
        "gold_bits_per_byte": float(-logps[right].sum() / math.log(2) / size),
        "gold_probability": float(share[right].sum() / share.sum()),
    }
