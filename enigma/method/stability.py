"""How much would SI and the selection change with other questions? From the pool's own sums, no model.

Source: our choice [D]; Spearman 1910 and Brown 1910 for the step-up to the full length.
"""

import numpy as np
from scipy.stats import rankdata

from enigma.method.stats import Interval
from enigma.method.sufficiency import Ratio


def selection_shares(
    ratio: Ratio, sets: np.ndarray, n: int, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n principles is in the highest set, and in the lowest disjoint from it, (n,) shares in [0, 1].

    The questions are drawn again `resamples` times and the sets chosen anew. `ratio`: (sets, questions) of
    `set_information`; `sets`: (sets, size) indices in [0, n).
    """
    questions = ratio.weight.shape[1]
    weights = (
        np.random.default_rng(seed).multinomial(questions, [1 / questions] * questions, size=resamples).T
    )
    values = (ratio.information @ weights) / (ratio.weight @ weights)
    member = np.zeros((len(sets), n), dtype=np.float32)
    np.put_along_axis(member, sets, 1, axis=1)
    high = values.argmax(axis=0)
    overlap = member @ member.T > 0
    low = np.where(overlap[:, high], np.inf, values).argmin(axis=0)
    return member[high].mean(axis=0), member[low].mean(axis=0)


def split_halves(ratio: Ratio, splits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (principles, splits) on the two halves of random splits of the questions."""
    questions = ratio.weight.shape[1]
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(questions), (splits, 1)), axis=1)
    first = np.zeros((questions, splits))
    np.put_along_axis(first, order[:, : questions // 2].T, 1.0, axis=0)
    return tuple((ratio.information @ half) / (ratio.weight @ half) for half in (first, 1 - first))


def test_retest(ratio: Ratio, splits: int = 200, seed: int = 0) -> Interval:
    """Spearman's correlation of the principles' SI between two disjoint halves of the questions, in [-1, 1].

    Mean over random splits; the ends are the central 95 % of the splits, so they speak for the split and not for other
    principles. NaN with fewer than four questions. `ratio`: (principles, questions).
    """
    if ratio.weight.shape[1] < 4:
        return Interval(float("nan"), float("nan"), float("nan"))
    a, b = (rankdata(half, axis=0) for half in split_halves(ratio, splits, seed))
    a, b = a - a.mean(0), b - b.mean(0)
    found = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(found.mean()), float(low), float(high))


def stepped_up(correlation):
    """The reliability of both halves together, from that of one: 2 r / (1 + |r|) (eq. 29), in [-1, 1].

    Below zero, where no test gains by length, the mirror image of what it is above.
    """
    return 2 * correlation / (1 + abs(correlation))
