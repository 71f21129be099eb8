"""Stability of the selection and of the ranking: where the answer is known, and where there is nothing to find."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from enigma.method import stability

SETS = np.array(list(itertools.combinations(range(6), 2)))


def set_values(principles):
    """(sets, questions): a set is worth the mean of its members."""
    return principles[SETS].mean(1)


def noisy(truth, questions, noise, seed=0):
    return np.asarray(truth)[:, None] + noise * np.random.default_rng(seed).normal(
        size=(len(truth), questions)
    )


def test_without_noise_the_same_sets_are_chosen_every_time():
    high, low = stability.bootstrap_selection(set_values(noisy(range(6), 8, 0.0)), SETS, 6, 50, 0)
    assert high.tolist() == [0, 0, 0, 0, 1, 1] and low.tolist() == [1, 1, 0, 0, 0, 0]


def test_shares_agree_with_a_plain_loop():
    values = set_values(noisy([0, 0.2, 0.4, 0.6, 0.8, 1.0], 8, 1.0))
    high, low = stability.bootstrap_selection(values, SETS, 6, 200, 3)
    weights = np.random.default_rng(3).multinomial(8, [1 / 8] * 8, size=200)
    counts = np.zeros((2, 6))
    for draw in weights:
        means = values @ draw
        best = set(SETS[int(np.argmax(means))].tolist())
        worst = min((m for m in range(len(SETS)) if not best & set(SETS[m].tolist())), key=lambda m: means[m])
        counts[0, list(best)] += 1
        counts[1, SETS[worst]] += 1
    np.testing.assert_allclose([high, low], counts / 200)
    assert high.sum() == pytest.approx(2) and low.sum() == pytest.approx(2)


def test_noise_alone_prefers_nobody():
    """Averaged over many data sets of pure noise every principle is in the high set one time in three."""
    shares = [
        stability.bootstrap_selection(set_values(noisy([0] * 6, 12, 1.0, seed)), SETS, 6, 100, seed)[0]
        for seed in range(200)
    ]
    np.testing.assert_allclose(np.mean(shares, axis=0), 1 / 3, atol=0.07)


def test_halves_are_disjoint_and_complete():
    """The values are one-hot, so that a half's mean shows which questions are in it, also where some count twice."""
    weights = np.array([1, 0, 2, 1, 1, 3])
    first, second = stability.split_halves(np.eye(6), weights, 30, np.random.default_rng(0))
    assert not ((first > 0) & (second > 0)).any()
    assert (((first > 0) | (second > 0)) == (weights > 0)[:, None]).all()
    np.testing.assert_allclose(first.sum(0), 1)


def test_the_correlation_is_spearmans():
    values = noisy(range(8), 10, 3.0)
    generator = np.random.default_rng(1)
    found = stability.half_correlation(values, np.ones(10), 25, generator)
    halves = stability.split_halves(values, np.ones(10), 25, np.random.default_rng(1))
    expected = [spearmanr(a, b).statistic for a, b in zip(*(half.T for half in halves), strict=True)]
    assert found == pytest.approx(np.mean(expected))


def test_retest_tells_signal_from_noise_and_is_cut_nowhere():
    signal = stability.retest(noisy(range(16), 12, 0.5), 100, 0)
    noise = stability.retest(noisy([0] * 16, 12, 1.0), 100, 0)
    assert signal.low > 0.8 and signal.high <= 1
    assert noise.low < 0 < noise.high
    assert noise.low < noise.value < noise.high


def test_retest_covers():
    """The interval holds the mean correlation over many data sets: nine times in ten or oftener (it is rather wide)."""
    truth = np.linspace(0, 1, 16)
    believed = np.mean(
        [
            stability.half_correlation(
                noisy(truth, 12, 1.0, 1000 + s), np.ones(12), 20, np.random.default_rng(s)
            )
            for s in range(200)
        ]
    )
    intervals = [stability.retest(noisy(truth, 12, 1.0, s), 40, s) for s in range(40)]
    assert np.mean([i.low <= believed <= i.high for i in intervals]) >= 0.9


def test_few_questions_have_no_interval_and_doubling_a_test_is_as_spearman_and_brown_say():
    assert np.isnan(stability.retest(noisy(range(6), 2, 0.1), 20, 0).low)
    assert stability.stepped_up(0.5) == pytest.approx(2 / 3)
    assert stability.stepped_up(0.0) == 0 and stability.stepped_up(1.0) == 1
    assert (
        stability.stepped_up(-0.4) == pytest.approx(-stability.stepped_up(0.4))
        and stability.stepped_up(-1.0) == -1
    )


def test_tables():
    principles = noisy(range(6), 8, 0.1)
    chosen = {"high": (4, 5), "low": (0, 1), "0.5": (0, 5)}
    table = stability.selection_table(list("abcdef"), chosen, set_values(principles), SETS, principles, 50, 0)
    assert table.chosen.tolist() == ["low", "low", "", "", "high", "high"]
    np.testing.assert_allclose((table.si_first + table.si_second) / 2, principles.mean(1))
    retest = stability.retest_table({"reasoning": principles}, 50, 0).iloc[0]
    assert retest.full == pytest.approx(2 * retest.correlation / (1 + retest.correlation))
    assert (retest.principles, retest.questions_per_half) == (6, 4)
