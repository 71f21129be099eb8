"""Coverage of the interval: what it promises, on data as skewed as bounds over questions are."""

import numpy as np
import pytest

from enigma.method.stats import mean_interval, own_label_test


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_coverage(shape):
    """The true mean lies inside 93 to 97 times in 100, within the error of 500 repetitions."""
    n, generator = 12, np.random.default_rng(12)
    draw = {
        "normal": lambda: generator.normal(1.0, 1.0, n),
        # A bound is at most log K and has a tail below, as this has.
        "skewed": lambda: 2.0 - generator.gamma(2.0, 0.5, n),
    }[shape]
    inside = sum(
        interval.low <= 1.0 <= interval.high
        for interval in (mean_interval(draw(), resamples=600, seed=i) for i in range(500))
    )
    assert 0.92 <= inside / 500 <= 0.98


def test_the_ends_are_cut_to_what_the_mean_can_be_and_hold_the_estimate():
    """Five questions at the ceiling and one below: uncut, the lower end runs away."""
    values = [1.385, 1.3852, 1.3855, 1.3856, 1.386, 1.2]
    free = mean_interval(values)
    cut = mean_interval(values, support=(0.0, np.log(4)))
    assert free.low < 0 and (cut.low, cut.value) == (0.0, free.value)
    assert cut.high == min(free.high, np.log(4))
    assert mean_interval([1.0, 2.0, 1.5, 1.2], support=(0.0, 9.0)) == mean_interval([1.0, 2.0, 1.5, 1.2])
    below = mean_interval([-0.2, -0.1, -0.3, -0.25], support=(0.0, 1.0))
    # What lies wholly outside is still seen to: a bound significantly below zero is a fault of the scoring.
    assert below.low == below.value and below.high < 0


def test_degenerate_samples():
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert np.isnan(mean_interval([1.0]).low)
    assert np.isnan(mean_interval([]).value)


def test_a_matrix_with_a_bright_diagonal_has_the_smallest_p_value_and_a_flat_one_none():
    values, p_value = own_label_test(np.eye(7), seed=0)
    assert values == pytest.approx(np.ones(7))
    assert p_value == pytest.approx(1 / 5040, abs=3e-4)  # one of 7! assignments
    assert own_label_test(np.ones((7, 7)), seed=0)[1] == 1.0
