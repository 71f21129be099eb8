"""Steadiness: closed forms, and intervals that follow the noise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from enigma.record.results import Results
from enigma.stages import steadiness
from enigma.stages.steadiness import area, drawdown, roughness, variation


def test_closed_forms():
    line = np.linspace(0, 1, 11)
    assert area(line) == pytest.approx(0.5)
    assert roughness(line) == pytest.approx(0.1)
    assert drawdown(line) == 0
    zigzag = np.array([0.0, 2, 0, 2, 0])
    assert roughness(zigzag) == pytest.approx(1)
    assert area(zigzag) == pytest.approx(1)
    assert drawdown(np.array([1.0, 5, 4, 6, 2, 3])) == pytest.approx(4)
    assert variation(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2) / 2)


def test_roughness_and_variation_know_no_unit_and_a_flat_curve_has_none():
    curve = np.random.default_rng(0).normal(size=30) + 9
    assert roughness(3 * curve + 2) == pytest.approx(roughness(curve))
    assert variation(3 * curve) == pytest.approx(variation(curve))
    assert np.isnan(roughness(np.ones(5)))
    assert np.isnan(variation(np.array([-1.0, 1.0])))


def test_many_curves_at_once_are_each_curve_alone():
    curves = np.random.default_rng(1).normal(size=(4, 20))
    for function in steadiness.FUNCTIONS.values():
        assert function(curves) == pytest.approx([float(function(curve)) for curve in curves])


def tables(noise, questions=2, principles=2, steps=20, arms=("a",), seeds=(0,)):
    random = np.random.default_rng(5)
    groups = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "question": f"q{step}.{q}",
            "principle": f"p{p}",
            "reward_graded": step / steps + noise * random.normal(),
        }
        for arm in arms
        for seed in seeds
        for step in range(steps)
        for q in range(questions)
        for p in range(principles)
    ]
    groups = pd.DataFrame(groups)
    training = groups.groupby(["arm", "seed", "step"], sort=False)["reward_graded"].mean().reset_index()
    training["kl"], training["grad_norm"] = np.nan, 1.0 + training["step"]
    return training, groups


def row(table, measure, seed=0):
    chosen = table[
        (table["measure"] == measure)
        & ((table["seed"] == seed) if seed is not None else table["seed"].isna())
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_interval_is_zero_without_noise_and_grows_with_it():
    widths = []
    for noise in (0.0, 0.01, 0.1):
        got = row(steadiness.table(*tables(noise)), "reward_area")
        assert got["over"] == "questions"
        widths.append(got["high"] - got["low"])
    assert widths[0] == pytest.approx(0, abs=1e-12)
    assert 0 < widths[1] < widths[2] / 5


def test_area_interval_has_the_width_of_theory():
    noise, steps, units = 0.1, 400, 8
    got = row(steadiness.table(*tables(noise, questions=units, principles=1, steps=steps)), "reward_area")
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 * noise / np.sqrt(units * steps), rel=0.1)


def test_one_question_a_step_falls_back_to_groups_and_one_group_has_no_interval():
    assert row(steadiness.table(*tables(0.1, questions=1)), "reward_drawdown")["over"] == "groups"
    alone = row(steadiness.table(*tables(0.1, questions=1, principles=1)), "reward_drawdown")
    assert np.isfinite(alone["value"]) and np.isnan(alone["low"])


def test_three_seeds_get_a_row_over_seeds():
    made = steadiness.table(*tables(0.1, arms=("a", "b"), seeds=(0, 1, 2)))
    a = made[made["arm"] == "a"]
    over = row(a, "reward_roughness", seed=None)
    single = a[(a["measure"] == "reward_roughness") & a["seed"].notna()]["value"]
    assert over["value"] == pytest.approx(single.mean()) and over["over"] == "seeds"
    assert over["low"] < over["value"] < over["high"]


def test_missing_kl_is_missing_and_gradient_has_a_value():
    made = steadiness.table(*tables(0.1))
    assert np.isnan(row(made, "kl_area")["value"])
    assert row(made, "grad_norm_cv")["value"] == pytest.approx(np.std(np.arange(1, 21), ddof=1) / 10.5)


def test_run_writes_the_table_also_without_groups(tmp_path):
    seeds = SimpleNamespace(bootstrap=0, model_dump=lambda: {"bootstrap": 0})
    profile = SimpleNamespace(name="tiny", hash="0", text="", seeds=seeds)
    results = Results(profile, tmp_path)
    training, groups = tables(0.1)
    results.write_table("training", training, "c")
    assert steadiness.run(profile, results)["low"].isna().all()
    results.write_table("training_groups", groups, "c")
    steadiness.run(profile, results)
    again = results.read_table("steadiness")
    assert list(again.columns) == ["arm", "seed", "measure", "value", "low", "high", "over"]
    assert row(again, "reward_area")["low"] < row(again, "reward_area")["value"]
