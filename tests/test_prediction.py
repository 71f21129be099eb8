"""Prediction: the arms that are compared, the correlation on known data, and no verdict from too few sets."""

import itertools

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from enigma.profile import BUILTIN, load_profile
from enigma.record.results import Results
from enigma.stages import prediction
from enigma.stages.claims import PRIMARY


def points(outcome, seeds=3, noise=0.0, seed=0):
    """A table of points: SI rises by 0.1 from set to set, the roughness is `outcome` and noise."""
    generator = np.random.default_rng(seed)
    rows = [
        {
            "arm": f"a{i}",
            "set": str(i),
            "seed": s,
            "si": 0.3 + 0.1 * i,
            "si_heldout": 0.2 + 0.1 * i,
            "reward_roughness": value + noise * generator.normal(),
            "benchmarks": 0.0,
        }
        for i, value in enumerate(outcome)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_only_arms_that_differ_in_their_set_are_compared():
    assert prediction.alike(load_profile("cpu")) == ["enigma_high", "enigma_middle", "enigma_low"]
    gpu = prediction.alike(load_profile("gpu"))
    assert gpu == ["enigma_high", "enigma_q80", "enigma_q60", "enigma_q40", "enigma_q20", "enigma_low"]


def test_six_sets_in_order_predict_and_the_sign_favours_steadiness():
    row = prediction.correlation(points([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), "si", "reward_roughness", 0)
    assert row["correlation"] == pytest.approx(1)
    assert row["p_value"] == pytest.approx(2 / 720)
    assert row["verdict"] == prediction.PREDICTS and (row["sets"], row["seeds"]) == (6, 3)
    row = prediction.correlation(points([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "si", "reward_roughness", 0)
    assert row["correlation"] == pytest.approx(-1) and row["verdict"] == prediction.OPPOSITE


def test_the_p_value_is_exact():
    si, outcome = np.arange(5.0), np.array([2.0, 1.0, 3.0, 5.0, 4.0])
    null = np.array([spearmanr(si, drawn).statistic for drawn in itertools.permutations(outcome)])
    rho = spearmanr(si, outcome).statistic
    expected = 2 * min((null >= rho - 1e-9).mean(), (null <= rho + 1e-9).mean())
    assert prediction.p_value(si, outcome) == pytest.approx(expected)


def test_three_sets_get_a_correlation_and_no_verdict():
    row = prediction.correlation(points([0.3, 0.2, 0.1]), "si", "reward_roughness", 0)
    assert row["correlation"] == pytest.approx(1) and row["verdict"] == prediction.TOO_FEW
    assert np.isnan([row["low"], row["high"], row["p_value"]]).all()
    assert np.isnan(prediction.correlation(points([0.3, 0.2]), "si", "reward_roughness", 0)["correlation"])


def test_what_does_not_vary_or_was_not_measured_predicts_nothing():
    assert prediction.correlation(points(np.arange(6)), "si", "benchmarks", 0)["verdict"] == prediction.NOT
    missing = points(np.arange(6)).assign(grad_norm_cv=np.nan)
    assert prediction.correlation(missing, "si", "grad_norm_cv", 0)["sets"] == 0


def test_noise_is_rarely_called_prediction():
    """Exact test on noise: at most 5 times in 100, within the error of 200 repetitions."""
    generator = np.random.default_rng(0)
    si = np.arange(6.0)
    wrong = np.mean([prediction.p_value(si, generator.normal(size=6)) <= 0.05 for _ in range(200)])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_the_interval_holds_the_estimate_and_narrows_with_order():
    loose = prediction.correlation(
        points([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], noise=0.4), "si", "reward_roughness", 0
    )
    tight = prediction.correlation(
        points([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], noise=0.01), "si", "reward_roughness", 0
    )
    assert loose["low"] <= loose["correlation"] <= loose["high"]
    assert tight["high"] - tight["low"] < loose["high"] - loose["low"]


def test_run_reads_the_tables_of_a_run(tmp_path):
    data = yaml.safe_load((BUILTIN / "cpu.yaml").read_text().replace("1e-3", "0.001"))
    data |= {"name": "toy"}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    profile = load_profile(path)
    results = Results(profile, tmp_path / "r")
    si = {"high": 0.9, "0.5": 0.7, "low": 0.5}
    results.write_yaml(
        "selection", {name: {"principles": [], "si": value} for name, value in si.items()}, "c"
    )
    bounds = [
        {"arm": "base", "seed": np.nan, "set": s, "k": 4, "row_bound": v * np.log(4)} for s, v in si.items()
    ]
    results.write_table("legibility", pd.DataFrame([*bounds, bounds[0] | {"arm": "grpo", "seed": 0}]), "c")
    steps = {"enigma_high": 0.1, "enigma_middle": 0.3, "enigma_low": 0.2, "grpo": 9.0}
    steady = [
        {"arm": a, "seed": 0, "measure": m, "value": v}
        for a, v in steps.items()
        for m in ("reward_roughness", "kl_area")
    ]
    results.write_table("steadiness", pd.DataFrame(steady), "c")
    scores = [
        {
            "arm": arm,
            "seed": 0,
            "versus": versus,
            "task": task,
            "metric": metric,
            "difference": i + (versus == "grpo"),
        }
        for arm in steps
        for versus in ("base", "grpo")
        for i, (task, metric) in enumerate(PRIMARY.values())
    ]
    results.write_table("benchmark_differences", pd.DataFrame(scores), "c")
    tables = prediction.run(profile, results)
    assert tables["prediction_points"]["reward_roughness"].tolist() == [0.1, 0.3, 0.2]
    assert tables["prediction_points"]["si_heldout"].tolist() == pytest.approx([0.9, 0.7, 0.5], rel=1e-5)
    assert tables["prediction_points"]["benchmarks"].tolist() == [1.0] * 3
    assert tables["prediction_points"]["grad_norm_cv"].isna().all()
    row = results.read_table("prediction").iloc[0]
    assert (row["predictor"], row["outcome"], row["verdict"]) == (
        "si",
        "reward_roughness",
        prediction.TOO_FEW,
    )
    assert row["correlation"] == pytest.approx(0.5)
