"""How much would the selection change with other questions? From the pool's values alone, no model.

`bootstrap_selection` draws the questions again and selects anew; `retest` compares two disjoint halves of the questions.
Source: our choice (METHOD.md section 6); Spearman 1910 and Brown 1910 for the step-up to the full length.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from enigma.method.stats import Interval

SPLITS = 200
RESAMPLE_SPLITS = 20  # for each resample of the questions; its own noise averages out over the resamples
CAPTIONS = {
    "selection_stability": "How stable is the selection? in_high and in_low: share of the bootstrap resamples of the "
    "questions in which a principle is in the set of highest and of lowest SI. si_first and si_second: its SI within "
    "the pool on two disjoint halves of the questions (one split of many; the table test_retest averages them).",
    "test_retest": "Spearman's rank correlation of the principles' SI between two disjoint halves of the questions, mean "
    f"over {SPLITS} random splits, with its 95 % interval over questions; full: stepped up by Spearman and Brown to "
    "what all questions would give against as many others.",
}


def bootstrap_selection(values, sets, n: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each principle is in the highest set and in the lowest set disjoint from it, (n,) shares in [0, 1] each.

    Args:
        values: (sets, questions) row bounds in nats, or SI; larger is higher.
        sets: (sets, size) indices in [0, n), the sets to choose from.
        n: principles of the pool.
        resamples, seed: of the bootstrap over questions.
    """
    questions = values.shape[1]
    weights = np.random.default_rng(seed).multinomial(questions, [1 / questions] * questions, size=resamples)
    means = values @ weights.T / questions
    member = np.zeros((len(sets), n), dtype=np.float32)
    np.put_along_axis(member, sets, 1, axis=1)
    high = means.argmax(axis=0)
    overlap = member @ member.T > 0
    low = np.where(overlap[:, high], np.inf, means).argmin(axis=0)
    return member[high].mean(axis=0), member[low].mean(axis=0)


def split_halves(values, weights, splits: int, generator) -> tuple[np.ndarray, np.ndarray]:
    """Means over the two halves of random splits, (units, splits) each.

    `values` is (units, questions); `weights` (questions,) says how often each question counts. A question, however often
    it counts, lies in one half alone.
    """
    present = np.flatnonzero(weights)
    order = generator.permuted(np.tile(present, (splits, 1)), axis=1)
    first = np.zeros((splits, len(weights)))
    np.put_along_axis(first, order[:, : len(present) // 2], 1.0, axis=1)
    halves = (first * weights, (1 - first) * weights)
    return tuple(values @ (half / half.sum(axis=1, keepdims=True)).T for half in halves)


def half_correlation(values, weights, splits: int, generator) -> float:
    """Spearman's correlation over units between the halves, mean over splits."""
    ranks = (rankdata(half, axis=0) for half in split_halves(values, weights, splits, generator))
    a, b = (rank - rank.mean(axis=0) for rank in ranks)
    return float(((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))).mean())


def retest(values, resamples: int, seed: int) -> Interval:
    """Rank correlation of (units, questions) values between disjoint halves of the questions, in [-1, 1].

    The interval takes its width alone from the bootstrap over questions, on Fisher's scale: a resample holds fewer
    distinct questions, so its own correlations are too low. For the same reason the interval is rather too wide.
    NaN ends with fewer than four questions. Needs two questions.
    """
    generator = np.random.default_rng(seed)
    questions = values.shape[1]
    value = half_correlation(values, np.ones(questions), SPLITS, generator)
    if questions < 4:
        return Interval(value, float("nan"), float("nan"))
    weights = generator.multinomial(questions, [1 / questions] * questions, size=resamples)
    drawn = [
        half_correlation(values, w, RESAMPLE_SPLITS, generator) for w in weights if np.count_nonzero(w) > 1
    ]
    reach = 1.959964 * np.std(_fisher(drawn), ddof=1)
    return Interval(value, *(float(np.tanh(_fisher(value) + side)) for side in (-reach, reach)))


def _fisher(correlation):
    return np.arctanh(np.clip(correlation, -0.999, 0.999))


def stepped_up(correlation):
    """The reliability of both halves together, from that of one: 2 r / (1 + r) (Spearman-Brown).

    Below zero, where that leaves [-1, 1] and no test gains by length, the mirror image of what it is above.
    """
    return 2 * correlation / (1 + abs(correlation))


def selection_table(names, chosen: dict, values, sets, principles, resamples: int, seed: int) -> pd.DataFrame:
    """The table `selection_stability`: a row for each principle.

    `chosen` maps high and low to indices, `values` (sets, questions) and `sets` as in `bootstrap_selection`,
    `principles` (principles, questions) SI within the pool.
    """
    in_high, in_low = bootstrap_selection(values, sets, len(names), resamples, seed)
    first, second = split_halves(principles, np.ones(principles.shape[1]), 1, np.random.default_rng(seed))
    return pd.DataFrame(
        {
            "principle": names,
            "chosen": [
                next((name for name in ("high", "low") if i in chosen[name]), "") for i in range(len(names))
            ],
            "in_high": in_high,
            "in_low": in_low,
            "resamples": resamples,
            "sets": len(sets),
            "si_first": first[:, 0],
            "si_second": second[:, 0],
        }
    )


def retest_table(by_span: dict[str, np.ndarray], resamples: int, seed: int) -> pd.DataFrame:
    """The table `test_retest`: a row for each span; values (principles, questions)."""
    rows = []
    for span, values in by_span.items():
        found = retest(values, resamples, seed)
        full = Interval(*map(stepped_up, found))
        rows.append(
            {
                "span": span,
                "principles": len(values),
                "questions_per_half": values.shape[1] // 2,
                "correlation": found.value,
                "low": found.low,
                "high": found.high,
                "full": full.value,
                "full_low": full.low,
                "full_high": full.high,
            }
        )
    return pd.DataFrame(rows)
