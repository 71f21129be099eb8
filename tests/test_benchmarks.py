"""The measurements beside the stages: their arithmetic on cases with a known answer, and their settings."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import coverage, growth, placement, rates, sweep
from enigma.profile import load_profile


def test_placement_counts_what_each_contrast_tells_apart():
    """Two principles that are certain against everything, except that principle 1 reads as its antithesis does."""
    scores = np.full((4, 4), -50.0)
    np.fill_diagonal(scores, 0)
    scores[1, 3] = scores[3, 1] = 0
    found = {
        row["contrast"]: row
        for row in placement.rows([scores.tolist()] * 3, [[0, 1, 2, 3]] * 3, 2, "question")
    }
    assert found["others"]["si"] == pytest.approx(1) and found["others"]["carried"] == 2
    assert found["antithesis"]["si"] == pytest.approx(0.5) and found["antithesis"]["carried"] == 1
    assert found["both"]["row_bound"] == pytest.approx(math.log(4) - math.log(2) / 2)


def test_the_interval_of_si_holds_near_a_ceiling_where_students_t_does_not():
    """Most questions carry all there is, and a rare one far less: the spread that t goes by is too small."""
    row = coverage.cell("SI", 16, 0.95, 12, repetitions=80)
    assert row["information"] == pytest.approx(0.95 * math.log(16), rel=0.01)
    assert row["student"] < 0.85 and row["coverage"] > 0.9 and 0 < row["width"] < 1


def test_the_sweep_is_a_profile_and_names_what_holds_each_arm():
    profile = load_profile(Path(sweep.__file__).with_suffix(".yaml"))
    assert {sweep.held_by(arm) for arm in profile.arms.values()} == set(sweep.HELD)
    assert growth.VARIED.keys() == growth.BASE.keys()


def test_each_optimiser_has_three_rates_and_the_one_of_highest_reward_is_chosen():
    profile = load_profile(Path(rates.__file__).with_suffix(".yaml"))
    checks = pd.DataFrame(
        {"arm": list(profile.arms), "reward_end": [0.1, 0.3, 0.2, 0.4, 0.1, np.nan, 0.1, 0.2, 0.3]}
    )
    frame = rates.table(profile, checks.assign(reward_start=0.0, gain=0.0, gain_low=0.0, gain_high=0.0))
    assert list(frame.groupby("optimizer").learning_rate.count()) == [3, 3, 3]
    assert set(frame[frame.chosen].learning_rate) == {1e-3, 2e-3, 1e-2}
