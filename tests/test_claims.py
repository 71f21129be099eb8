"""Claims: every rule can come out all three ways, and nothing missing breaks the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from enigma.method.stats import Interval
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import claims
from enigma.stages.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, average, decide, difference

IDS = ["C1", "C2", "C3a", "C3b", "C4", "C5", "C6", "H", "L"]
PROFILE = load_profile("cpu")


@pytest.fixture
def results(tmp_path):
    return Results(PROFILE, tmp_path)


def verdict(results, which):
    return claims.judge(PROFILE, results).set_index("id").loc[which]


def write(results, **tables):
    for name, rows in tables.items():
        results.write_table(name, pd.DataFrame(rows), "caption")


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 0.3, 0.0, SUPPORTED),
        (0.001, 0.3, 0.5, SUPPORTED),
        (-0.3, -0.1, 0.0, NOT_SUPPORTED),
        (-0.004, 0.004, 0.01, NOT_SUPPORTED),
        (-0.02, 0.004, 0.01, UNDECIDED),
        (-0.1, 0.1, 0.0, UNDECIDED),
        (0.0, 0.0, 0.0, UNDECIDED),
        (np.nan, np.nan, 0.01, UNDECIDED),
    ],
)
def test_general_rule(low, high, margin, expected):
    assert decide(Interval((low + high) / 2, low, high), margin) == expected


def test_difference_of_normal_intervals_is_that_of_the_difference():
    got = difference(Interval(5, 5 - 0.3, 5 + 0.3), Interval(2, 2 - 0.4, 2 + 0.4))
    assert got == pytest.approx((3, 2.5, 3.5))


def test_average_shrinks_for_runs_and_not_for_layers():
    four = [Interval(value, value - 0.2, value + 0.2) for value in (1.0, 2, 3, 4)]
    assert average(four, independent=True) == pytest.approx((2.5, 2.4, 2.6))
    assert average(four, independent=False) == pytest.approx((2.5, 2.3, 2.7))


def test_widened_covers_all_comparisons():
    one = claims.widened(Interval(0, -1.959964, 1.959964), 1)
    assert one == pytest.approx((0, -1.959964, 1.959964), abs=1e-5)
    assert claims.widened(Interval(0, -1.959964, 1.959964), 10).high == pytest.approx(2.807, abs=1e-3)


# ---------------------------------------------------------------- nothing there


def test_without_any_table_every_claim_is_undecided_and_says_why(results):
    table = claims.judge(PROFILE, results)
    assert table["id"].tolist() == IDS
    assert list(table.columns) == claims.COLUMNS
    assert set(table["verdict"]) == {UNDECIDED}
    assert table["note"].str.contains("not measured: table ").all()
    assert table["value"].isna().all()
    assert not results.root.joinpath("cpu").exists()


def test_missing_arms_are_named(results):
    write(
        results,
        benchmark_items=items({"grpo": 0.5, "base": 0.5}),
        geometry=geometry({"grpo": 1.0}),
        directions=directions({"grpo": 0.5}),
        legibility=legibility(grpo=(0.1, 0.1, 5)),
        training=training({"grpo": 0.0}),
    )
    table = claims.judge(PROFILE, results).set_index("id")
    assert set(table["verdict"]) == {UNDECIDED}
    for name in ("C1", "C2", "C4", "C5", "C6", "L"):
        assert "enigma_high" in table.loc[name, "note"].split("not measured", 1)[1] or name == "C1"
    assert "enigma_low" in table.loc["C1", "note"]


# ---------------------------------------------------------------- C1


def training(noise, seeds=(0,), steps=20, key="training", groups=4):
    random = np.random.default_rng(0)
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "question": f"q{group}",
            "principle": "p",
            "reward_graded": 0.3 + 0.02 * step + size * (-1) ** step + 0.01 * random.normal(),
        }
        for arm, size in noise.items()
        for seed in seeds
        for step in range(steps)
        for group in range(groups)
    ]
    if key == "training_groups":
        return rows
    steps = (
        pd.DataFrame(rows).groupby(["arm", "seed", "step"], sort=False)["reward_graded"].mean().reset_index()
    )
    return steps.assign(kl=np.nan, grad_norm=1.0)


@pytest.mark.parametrize(
    ("high", "low", "expected"), [(0.0, 0.2, SUPPORTED), (0.2, 0.0, NOT_SUPPORTED), (0.1, 0.1, UNDECIDED)]
)
def test_c1_steadiness(results, high, low, expected):
    noise = {"enigma_high": high, "enigma_low": low}
    write(results, training=training(noise), training_groups=training(noise, key="training_groups"))
    row = verdict(results, "C1")
    assert row["verdict"] == expected
    assert "questions of each step, not over seeds" in row["note"]


def test_c1_with_seeds_says_so_and_without_groups_or_seeds_is_undecided(results):
    noise = {"enigma_high": 0.0, "enigma_low": 0.2}
    write(results, training=training(noise))
    row = verdict(results, "C1")
    assert row["verdict"] == UNDECIDED and "no interval" in row["note"] and np.isfinite(row["value"])
    write(results, training=training(noise, seeds=(0, 1, 2)))
    row = verdict(results, "C1")
    assert row["verdict"] == SUPPORTED and "interval over 3 seeds" in row["note"]


# ---------------------------------------------------------------- C2, C6, H


OWN = tuple(claims.PRIMARY.values())
ROBUST = ("enigma_robustness", "acc")


def items(means, tasks=OWN, n=200, shift=None, seeds=(0,)):
    """Items whose arms differ by fixed amounts, plus a small paired noise of mean zero."""
    noise = np.tile([-0.05, 0.05], n // 2)
    return [
        {
            "arm": arm,
            "seed": np.nan if arm == "base" else seed,
            "task": task,
            "item": item,
            "metric": metric,
            "value": mean
            + (shift or {}).get((arm, task), 0.0)
            + (0 if arm == "base" else noise[item] * (1 + seed)),
        }
        for arm, mean in means.items()
        for seed in (seeds if arm != "base" else (0,))
        for task, metric in tasks
        for item in range(n)
    ]


@pytest.mark.parametrize(
    ("grpo", "low", "expected"),
    [
        (0.4, 0.4, SUPPORTED),
        (0.4, 0.6, NOT_SUPPORTED),
        (0.6, 0.6, NOT_SUPPORTED),
        (0.5, 0.5, NOT_SUPPORTED),  # no difference, and items enough to say so
    ],
)
def test_c2_benchmarks(results, grpo, low, expected):
    write(results, benchmark_items=items({"grpo": grpo, "enigma_high": 0.5, "enigma_low": low}))
    row = verdict(results, "C2")
    assert row["verdict"] == expected
    assert "600 items" in row["note"]


def test_c2_few_noisy_items_are_undecided(results):
    random = np.random.default_rng(0)
    rows = pd.DataFrame(items({"grpo": 0.5, "enigma_high": 0.5, "enigma_low": 0.5}, n=20))
    rows["value"] = random.integers(0, 2, size=len(rows))
    write(results, benchmark_items=rows)
    assert verdict(results, "C2")["verdict"] == UNDECIDED


def test_c2_does_not_depend_on_the_order_of_rows(results):
    rows = pd.DataFrame(items({"grpo": 0.4, "enigma_high": 0.5, "enigma_low": 0.3}, seeds=(0, 1)))
    write(results, benchmark_items=rows)
    first = verdict(results, "C2")
    write(results, benchmark_items=rows.sample(frac=1, random_state=1))
    assert verdict(results, "C2")["note"] == first["note"]


def test_chance_is_told(results):
    chance = [
        {"arm": arm, "task": task, "metric": metric, "at_chance": task == "enigma_reasoning"}
        for arm in ("grpo", "enigma_high", "base")
        for task, metric in OWN
    ]
    write(results, benchmarks=chance, benchmark_items=items({"base": 0.5, "enigma_high": 0.5}))
    assert "reasoning is at chance for grpo, enigma_high" in verdict(results, "C2")["note"]
    assert "reasoning is at chance for enigma_high, base" in verdict(results, "C6")["note"]


def test_c6_needs_every_part(results):
    means = {"base": 0.4, "enigma_high": 0.5}
    write(results, benchmark_items=items(means))
    row = verdict(results, "C6")
    assert row["verdict"] == UNDECIDED and row["measure"].startswith("robustness")
    assert row["note"].count(", supported") == 3
    write(results, benchmark_items=items(means, (*OWN, ROBUST)))
    assert verdict(results, "C6")["verdict"] == SUPPORTED
    write(results, benchmark_items=items(means, shift={("enigma_high", "enigma_truthfulness"): -0.3}))
    row = verdict(results, "C6")
    assert row["verdict"] == NOT_SUPPORTED and row["measure"].startswith("truthfulness")
    assert row["value"] == pytest.approx(-0.2)


EXTERNAL = (("gpqa_main_zeroshot", "acc"), ("truthfulqa_mc2", "acc"))


@pytest.mark.parametrize(("high", "expected"), [(0.5, SUPPORTED), (0.3, NOT_SUPPORTED)])
def test_h_stands_beside_the_papers_numbers(results, high, expected):
    write(results, benchmark_items=items({"base": 0.4, "enigma_high": high}, EXTERNAL))
    row = verdict(results, "H")
    assert row["verdict"] == expected
    assert "20.54" in row["paper"] and "40.00%" in row["note"] and "model embedded" in row["note"]


def test_h_with_one_benchmark_is_undecided(results):
    write(results, benchmark_items=items({"base": 0.4, "enigma_high": 0.5}, EXTERNAL[1:]))
    row = verdict(results, "H")
    assert row["verdict"] == UNDECIDED and "not measured: a gpqa task" in row["note"]


# ---------------------------------------------------------------- C3


def sufficiency(best, width, high=0.6, low=0.2):
    rows = [
        {"level": "principle", "name": f"p{i}", "span": span, "si": si if span == "reasoning" else 0.0}
        for span in ("reasoning", "completion")
        for i, si in enumerate(np.linspace(0.1, best, 5))
    ] + [
        {"level": "set", "name": name, "span": "reasoning", "si": si}
        for name, si in (("high", high), ("low", low))
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(si_low=frame["si"] - width, si_high=frame["si"] + width)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (sufficiency(0.6, 0.1), SUPPORTED),
        (sufficiency(0.6, 0.4), UNDECIDED),
        (sufficiency(0.6, 0.1, high=0.2, low=0.6), NOT_SUPPORTED),
        (sufficiency(0.102, 0.001), NOT_SUPPORTED),
    ],
)
def test_c3_selection(results, frame, expected):
    write(results, sufficiency=frame, legibility=legibility(base=(0.9, 0, 1), base_low=(0.4, 0, 1)))
    row = verdict(results, "C3a")
    assert row["verdict"] == expected
    assert "p4 against p0, of 5" in row["note"]


def test_c3_holds_only_if_the_sets_differ_on_held_out_questions(results):
    write(results, sufficiency=sufficiency(0.6, 0.1))
    assert verdict(results, "C3a")["verdict"] == UNDECIDED
    write(results, legibility=legibility(base=(0.3, 0, 1), base_low=(0.4, 0, 1)))
    row = verdict(results, "C3a")
    assert row["verdict"] == NOT_SUPPORTED and row["value"] == pytest.approx(-0.1 / np.log(4), rel=1e-4)


def test_c3_allows_for_the_choice_of_the_extremes(results):
    # One difference of this size would exclude zero; the largest of ten does not.
    frame = sufficiency(0.6, 0.3)
    assert difference(Interval(0.6, 0.3, 0.9), Interval(0.1, -0.2, 0.4)).low > 0
    write(results, sufficiency=frame, legibility=legibility(base=(0.9, 0, 1), base_low=(0.4, 0, 1)))
    row = verdict(results, "C3a")
    assert row["verdict"] == UNDECIDED and row["measure"] == "SI, best - worst principle"


@pytest.mark.parametrize(
    ("accepted", "low", "expected"),
    [(True, 0.04, SUPPORTED), (True, 0.015, UNDECIDED), (False, 0.04, NOT_SUPPORTED)],
)
def test_c3_creation(results, accepted, low, expected):
    rows = [{"accepted": accepted, "gain": 0.1, "gain_low": low, "gain_high": 0.2 - low}] * 2
    rows += [{"accepted": False, "gain": 0.5, "gain_low": 0.4, "gain_high": 0.6}]
    write(results, creation=rows)
    # An interval from 0.015 excludes zero alone, and for two edits; widened for the three that were tried it does not.
    assert verdict(results, "C3b")["verdict"] == expected


# ---------------------------------------------------------------- C4, C5


def geometry(values, width=0.05, seeds=(0,), layers=(0, 1, 2)):
    return [
        {
            "arm": arm,
            "seed": seed,
            "layer": layer,
            "measure": measure,
            "value": value + 0.1 * layer + 0.01 * seed,
            "low": value + 0.1 * layer - width,
            "high": value + 0.1 * layer + width,
        }
        for arm, value in values.items()
        for seed in seeds
        for measure in ("sinkhorn", "cka")
        for layer in layers
    ]


@pytest.mark.parametrize(("grpo", "expected"), [(1.0, SUPPORTED), (0.2, NOT_SUPPORTED), (0.52, UNDECIDED)])
def test_c4_drift(results, grpo, expected):
    write(results, geometry=geometry({"grpo": grpo, "enigma_high": 0.5}))
    row = verdict(results, "C4")
    assert row["verdict"] == expected and row["value"] == pytest.approx(grpo - 0.5)
    assert "differ in the SAMI term too" in row["note"]


def test_c4_prefers_the_pair_that_differs_in_one_term(results):
    write(results, geometry=geometry({"grpo": 0.4, "grpo_ot": 0.1, "enigma_high": 0.9}))
    row = verdict(results, "C4")
    assert row["verdict"] == SUPPORTED and row["measure"] == "Sinkhorn divergence, grpo - grpo_ot"


def test_c4_one_isolating_pair_that_fails_is_enough(results):
    write(results, geometry=geometry({"grpo": 0.4, "grpo_ot": 0.1, "grpo_sami": 0.4, "enigma_high": 0.9}))
    assert verdict(results, "C4")["verdict"] == NOT_SUPPORTED


def test_c4_takes_seeds_for_the_interval_where_there_are_three(results):
    rows = pd.DataFrame(geometry({"grpo": 0.6, "enigma_high": 0.5}, width=5.0, seeds=(0, 1, 2)))
    rows["value"] += np.random.default_rng(0).normal(size=len(rows)) * 0.001
    write(results, geometry=rows)
    row = verdict(results, "C4")
    assert row["verdict"] == SUPPORTED and "3 seeds" in row["note"]


def directions(excess, p_values=(0.001, 0.02, 0.9), width=0.01):
    return [
        {
            "arm": arm,
            "seed": 0,
            "layer": layer,
            "observed": 0.1 + value,
            "null_mean": 0.1,
            "null_low": 0.1 - width,
            "null_high": 0.1 + width,
            "p_value": p,
        }
        for arm, value in excess.items()
        for layer, p in enumerate(p_values)
    ]


@pytest.mark.parametrize(
    ("excess", "p_values", "width", "expected"),
    [
        (0.2, (0.001, 0.02, 0.9), 0.01, SUPPORTED),
        (0.2, (0.001, 0.03, 0.03), 0.01, UNDECIDED),
        (-0.05, (0.9, 0.9, 0.9), 0.01, NOT_SUPPORTED),
        (0.001, (0.5, 0.5, 0.5), 0.001, NOT_SUPPORTED),
        (0.01, (0.2, 0.2, 0.2), 0.05, UNDECIDED),
    ],
)
def test_c5_directions(results, excess, p_values, width, expected):
    write(results, directions=directions({"grpo": 0.0, "enigma_high": excess}, p_values, width))
    row = verdict(results, "C5")
    assert row["verdict"] == expected and row["value"] == pytest.approx(excess)
    assert "grpo, for contrast: 0" in row["note"]


# ---------------------------------------------------------------- L


def legibility(**arms):
    names = ("row_bound", "row_bound_base_critic", "perplexity_base")
    rows = []
    for arm, values in arms.items():
        row = {"arm": arm.removesuffix("_low"), "seed": np.nan if arm.startswith("base") else 0, "k": 4}
        row["set"] = "low" if arm.endswith("_low") else "high"
        for name, value in zip(names, values, strict=True):
            row |= {name: value, f"{name}_low": value - 0.02, f"{name}_high": value + 0.02}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("high", "expected", "words"),
    [
        ((0.6, 0.6, 5.0), SUPPORTED, "carried legibly"),
        ((0.6, 0.2, 5.0), NOT_SUPPORTED, "a private code"),
        ((0.6, 0.6, 50.0), NOT_SUPPORTED, "a private code"),
        ((0.6, 0.42, 5.0), UNDECIDED, "undecided which"),
    ],
)
def test_legibility_tells_a_private_code(results, high, expected, words):
    # The base row of the low set must not count: these arms' prompts hold the high set.
    arms = {
        "base": (0.4, 0.4, 5.0),
        "base_low": (0.0, 0.0, 5.0),
        "grpo": (0.4, 0.4, 5.0),
        "enigma_high": high,
    }
    write(results, legibility=legibility(**arms))
    row = verdict(results, "L")
    assert row["verdict"] == expected and f"it rises: {words}" in row["note"]
    assert row["source"] == "this project"


# ---------------------------------------------------------------- writing


def test_run_writes_the_table_and_can_be_repeated(results):
    noise = {"enigma_high": 0.0, "enigma_low": 0.2}
    write(
        results,
        training=training(noise),
        training_groups=training(noise, key="training_groups"),
        benchmark_items=items({"base": 0.4, "grpo": 0.4, "enigma_high": 0.5, "enigma_low": 0.4}),
    )
    claims.run(PROFILE, results)
    first = {path: path.read_bytes() for path in results.tables.iterdir()}
    assert {"claims.csv", "claims.tex", "claims.json", "steadiness.csv"} <= {path.name for path in first}
    claims.run(PROFILE, results)
    assert first == {path: path.read_bytes() for path in results.tables.iterdir()}
    assert results.read_table("claims")["id"].tolist() == IDS


def test_markdown_and_latex_have_every_claim_and_no_raw_signs(results):
    write(results, benchmark_items=items({"base": 0.4, "enigma_high": 0.5}, EXTERNAL))
    results.write_table("claims", claims.judge(PROFILE, results), "c")
    table = results.read_table("claims")
    markdown, latex = claims.to_markdown(table), claims.to_latex(table)
    for name in IDS:
        assert f"| {name} |" in markdown and f"\n{name} & " in latex
    lines = markdown.splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    body = latex.replace(r"\%", "").replace(r"\_", "")
    assert "%" not in body and "_" not in body and "nan" not in body and "nan" not in markdown
    assert r"13.62 \% -> 20.54 \%" in latex


def test_every_rule_is_written_before_the_run_and_names_its_effects():
    for entry in claims.REGISTRY:
        assert entry.rule.startswith("Effect") and entry.text.endswith(".")
        assert entry.source in (claims.ABSTRACT, claims.SECONDARY, claims.OURS)
