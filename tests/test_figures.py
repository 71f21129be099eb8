"""Figures: drawn from synthetic frames, whole or with things missing; what they say is checked, not their pixels."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from enigma.errors import InputError
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import claims, prediction
from enigma.tasks import robustness

THREE = ["grpo", "enigma_high", "enigma_low"]
FIVE = ["grpo", "grpo_sami", "grpo_ot", "enigma_high", "enigma_low"]
LEVELS = {"grpo": 0.0, "grpo_sami": 0.3, "grpo_ot": -0.2, "enigma_high": 0.6, "enigma_low": 0.1, "base": -0.5}
NAMES = [
    "admit-uncertainty",
    "avoid-flattery",
    "check-evidence",
    "suggest-a-test",
    "weigh-harm",
    "show-sympathy",
    "hear-both-sides",
    "same-rule-for-all",
    "simple-words",
    "define-terms",
    "give-an-example",
    "be-brief",
    "number-the-steps",
    "compare-with-familiar",
    "long-term-view",
    "cost-and-benefit",
    "ask-a-question",
    "quote-source",
    "name-assumptions",
    "keep-to-the-question",
]
FAMILIES = ["honesty", "evidence", "care", "fairness", "clarity", "style", "prudence"]


def sufficiency():
    random = np.random.default_rng(0)
    rows = []
    for span, scale in (("reasoning", 1.0), ("completion", 1.15)):
        for i, name in enumerate(NAMES):
            si = scale * (0.02 * i - 0.05 + 0.01 * random.normal())
            rows.append(["principle", name, FAMILIES[i // 3], name, span, si, 0.03 + 0.03 * random.random()])
        for name, si, members in (("high", 0.5, NAMES[-4:]), ("low", 0.05, NAMES[:4]), ("pool", 0.2, NAMES)):
            rows.append(["set", name, None, ";".join(members), span, scale * si, 0.06])
    frame = pd.DataFrame(rows, columns=["level", "name", "family", "members", "span", "si", "width"])
    return frame.assign(
        si_low=frame["si"] - frame["width"], si_high=frame["si"] + frame["width"], k=20, questions=24
    )


def training(arms, seeds, steps=24):
    random = np.random.default_rng(0)
    rows = []
    for arm in arms:
        for seed in range(seeds):
            for step in range(1, steps + 1):
                rise = 1 / (1 + np.exp(-(step / steps - 0.4) * 8))
                noise = random.normal(size=4)
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "step": step,
                        "reward_graded": np.clip(0.15 + 0.7 * rise + 0.07 * noise[0], 0, 1),
                        "reward_strict": np.clip(0.6 * rise + 0.06 * noise[1], 0, 1),
                        "zero_spread": np.clip(0.5 * (1 - rise) + 0.1 * noise[2], 0, 1),
                        "row_bound": 0.4 + 0.2 * LEVELS[arm] * rise + 0.05 * noise[3],
                        "sinkhorn": (0.4 + 0.3 * LEVELS[arm]) * rise,
                        "grad_norm": 1 + 0.2 * abs(noise[1]),
                        "kl": 0.0,
                    }
                )
    return pd.DataFrame(rows)


TASKS = [
    ("enigma_reasoning", "acc", 0.25),
    ("enigma_reasoning", "acc_norm", 0.25),
    ("enigma_truthfulness", "mc1", 0.25),
    ("enigma_truthfulness", "mc2", 0.4),
    ("enigma_format", "graded_format", 0),
    ("enigma_format", "strict_format", 0),
]


def benchmarks(arms, seeds):
    rows, differences = [], []
    for arm in ["base", *arms]:
        for seed in [np.nan] if arm == "base" else range(seeds):
            for task, metric, chance in TASKS:
                value = chance + 0.02 if "reasoning" in task else 0.4 + 0.2 * LEVELS[arm]
                rows.append([arm, seed, task, metric, value, 0.03, 128, chance, "reasoning" in task])
                for versus in ("base", "grpo"):
                    if arm not in ("base", versus):
                        d = 0.0 if "reasoning" in task else 0.2 * (LEVELS[arm] - LEVELS[versus])
                        differences.append([arm, seed, versus, task, metric, d, d - 0.05, d + 0.05, 128, 0.5])
    head = ["arm", "seed", "task", "metric", "value", "stderr", "n", "chance", "at_chance"]
    names = ["arm", "seed", "versus", "task", "metric", "difference", "low", "high", "n", "p_value"]
    return pd.DataFrame(rows, columns=head), pd.DataFrame(differences, columns=names)


def geometry(arms, seeds, layers=range(3, 31, 3)):
    rows = []
    shapes = {
        "displacement": 0.1,
        "sinkhorn": 0.02,
        "cka": 0.9,
        "principal_angle": 0.15,
        "effective_rank": 40,
        "participation_ratio": 10,
        "anisotropy": 0.5,
        "intrinsic_dimension": 12,
        "separability": 0.3,
        "probe_accuracy": 0.6,
    }
    for arm in arms:
        for seed in range(seeds):
            rows.append([arm, seed, max(layers), "fisher_rao", 0.6 + 0.3 * LEVELS[arm], 0.05])
            for name, size in shapes.items():
                for layer in layers:
                    value = size * (1 + 0.1 * LEVELS[arm] * layer / 30 + 0.01 * layer)
                    rows.append(
                        [arm, seed, layer, name, min(value, 0.999) if name == "cka" else value, 0.02 * size]
                    )
                    if size > 0.2 and name != "cka":
                        lift = (
                            0.05 if arm == "enigma_low" and name in ("separability", "probe_accuracy") else 0
                        )
                        rows.append(
                            [arm, seed, layer, name + "_base", size * (1 + lift + 0.008 * layer), 0.02 * size]
                        )
    frame = pd.DataFrame(rows, columns=["arm", "seed", "layer", "measure", "value", "width"])
    return frame.assign(low=frame["value"] - frame["width"], high=frame["value"] + frame["width"])


def directions(arms, seeds, layers=range(3, 31, 3)):
    rows = [
        [
            arm,
            seed,
            layer,
            0.01 + 0.05 * max(LEVELS[arm], 0) * layer / 30 + 0.002 * seed,
            0.012,
            0.005,
            0.025,
            0.001 if LEVELS[arm] > 0.2 and layer > 6 else 0.4,
        ]
        for arm in arms
        for seed in range(seeds)
        for layer in layers
    ]
    names = ["arm", "seed", "layer", "observed", "null_mean", "null_low", "null_high", "p_value"]
    return pd.DataFrame(rows, columns=names)


def legibility(arms, seeds):
    rows = []
    for arm, seed, name in [("base", np.nan, "high"), ("base", np.nan, "low")] + [
        (arm, seed, "low" if arm == "enigma_low" else "high") for arm in arms for seed in range(seeds)
    ]:
        own, critic = 0.5 + 0.3 * LEVELS[arm], 0.5 + 0.1 * LEVELS[arm]
        perplexity = 4 + 2 * LEVELS[arm]
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "set": name,
                "k": 4,
                "completions": 96,
                "row_bound": own,
                "row_bound_low": own - 0.1,
                "row_bound_high": own + 0.1,
                "row_bound_base_critic": critic,
                "row_bound_base_critic_low": critic - 0.1,
                "row_bound_base_critic_high": critic + 0.1,
                "perplexity_base": perplexity,
                "perplexity_base_low": 0.9 * perplexity,
                "perplexity_base_high": 1.1 * perplexity,
                "reward_graded": 0.6 + 0.2 * LEVELS[arm],
                "reward_strict": 0.4 + 0.2 * LEVELS[arm],
            }
        )
    return pd.DataFrame(rows)


def claims_table(tmp_path, profile):
    table = claims.judge(profile, Results(profile, tmp_path / "none"))
    values = [(0.05, 0.01, 0.09), (-0.2, -0.3, -0.1), (0.4, 0.3, 0.5), (np.nan,) * 3, (0.001, -0.02, 0.02)]
    for i, (value, low, high) in enumerate(values):
        table.loc[i, ["value", "low", "high"]] = value, low, high
        table.loc[i, "verdict"] = claims.decide(claims.Interval(value, low, high))
    return table


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.fixture
def profile():
    return load_profile("cpu")


def all_tables(arms, seeds, tmp_path, profile):
    rows, differences = benchmarks(arms, seeds)
    return {
        "sufficiency": sufficiency(),
        "training": training(arms, seeds),
        "benchmarks": rows,
        "benchmark_differences": differences,
        "geometry": geometry(arms, seeds),
        "directions": directions(arms, seeds),
        "legibility": legibility(arms, seeds),
        "claims": claims_table(tmp_path, profile),
        "creation": creation(),
        **stability(),
        **prediction_tables(min(len(arms), 3) if seeds == 1 else 6, seeds),
        "robustness": robustness_table(arms, seeds),
    }


def robustness_table(arms, seeds):
    """Forty items answered at random, with an accuracy that grows with the arm's level, by the stage's own summary."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "arm": arm,
            "seed": None if arm == "base" else seed,
            "task": robustness.TASK,
            "part": name,
            "item": item,
            "metric": "acc",
            "value": float(answer == 0),
            "answer": answer,
        }
        for arm in ["base", *arms]
        for seed in range(1 if arm == "base" else seeds)
        for name in robustness.CONDITIONS
        for item in range(40)
        for answer in [0 if rng.random() < 0.4 + 0.5 * max(LEVELS[arm], 0) else int(rng.integers(1, 4))]
    ]
    frame = pd.DataFrame(rows).astype({"seed": "Int64", "answer": "Int64"})
    return robustness.summary(frame, dict.fromkeys(range(40), 1), seed=0)


def test_robustness_shows_every_condition_and_what_independence_would_give():
    table = robustness_table(THREE, 1)
    figure = figures.fig9_robustness(table)
    drawn = texts(figure).replace("\n", "_")
    assert all(name in drawn for name in table["condition"])
    marks = [line for line in figure.axes[2].lines if line.get_marker() == "|"]
    hinted = table[table["condition"] == "follows_hint"]
    expected = [*table["independent"].dropna(), *(hinted["value"] - hinted["difference"])]
    assert sorted(float(line.get_xdata()[0]) for line in marks) == pytest.approx(sorted(expected))
    worst = table[(table["condition"] == "worst_case") & (table["arm"] == "base")].iloc[0]
    assert f"worst case: base {worst['value']:.2f} ({worst['independent']:.2f})" in figures.fig9_caption(
        table
    )
    assert texts(figures.fig9_robustness(table.iloc[:0])).count("not measured") == 3
    assert "not measured" in figures.fig9_caption(table.iloc[:0])


def stability():
    random = np.random.default_rng(0)
    chosen = ["high"] * 4 + ["low"] * 4 + [""] * (len(NAMES) - 8)
    si = random.uniform(0.3, 0.9, len(NAMES))
    table = pd.DataFrame(
        {
            "principle": NAMES,
            "chosen": chosen,
            "in_high": random.uniform(0, 0.6, len(NAMES)),
            "in_low": random.uniform(0, 0.4, len(NAMES)),
            "resamples": 200,
            "sets": 4845,
            "si_first": si,
            "si_second": si + 0.1 * random.normal(size=len(NAMES)),
        }
    )
    retest = {
        "span": "reasoning",
        "principles": len(NAMES),
        "questions_per_half": 6,
        "correlation": 0.28,
        "low": -0.02,
        "high": 0.53,
        "full": 0.44,
        "full_low": -0.04,
        "full_high": 0.69,
    }
    return {"selection_stability": table, "test_retest": pd.DataFrame([retest])}


def prediction_tables(sets, seeds, slope=-1.0):
    """`sets` sets in order of SI; roughness falls by `slope`, the other outcomes are noise."""
    random = np.random.default_rng(1)
    rows = [
        {
            "arm": f"enigma_q{i}",
            "set": str(i),
            "seed": seed,
            "si": 0.5 + 0.08 * i,
            "si_heldout": 0.4 + 0.08 * i,
            "reward_roughness": 0.3 + slope * 0.04 * i + 0.005 * random.normal(),
            **{name: random.normal() for name in ("benchmarks", "reward_drawdown", "grad_norm_cv")},
        }
        for i in range(sets)
        for seed in range(seeds)
    ]
    points = pd.DataFrame(rows)
    found = [
        prediction.correlation(points, p, o, 0) for p in prediction.PREDICTORS for o in prediction.OUTCOMES
    ]
    return {"prediction_points": points, "prediction": pd.DataFrame(found)}


def test_prediction_says_in_its_title_whether_it_predicts():
    few, six, against = prediction_tables(3, 1), prediction_tables(6, 3), prediction_tables(6, 3, slope=1.0)
    assert "3 sets are too few to tell" in texts(figures.fig11_prediction(**few))
    drawn = texts(figures.fig11_prediction(**six))
    assert "steadiness: SI predicts;" in drawn and "benchmarks: SI does not predict" in drawn
    assert all(drawn.count(f"enigma_q{i}") == 4 for i in range(6))
    assert "steadiness: SI predicts the opposite" in texts(figures.fig11_prediction(**against))
    assert "p = 0.0028" in figures.fig11_caption(**six)
    drawn = figures.fig11_prediction(**six)
    assert [axes.yaxis_inverted() for axes in drawn.axes] == [
        sign < 0 for sign in prediction.OUTCOMES.values()
    ]
    unmeasured = six["prediction_points"].assign(grad_norm_cv=np.nan)
    assert texts(figures.fig11_prediction(unmeasured, six["prediction"])).count("not measured") == 1


def test_every_set_is_drawn_in_order_of_si():
    table = sufficiency()
    high = table[(table["level"] == "set") & (table["name"] == "high")]
    more = pd.concat([table, *(high.assign(name=name) for name in ("0.8", "0.25"))])
    sets = figures.fig1_sufficiency(more).axes[1]
    named = [label.get_text() for label in sets.get_yticklabels()]
    assert named == ["whole pool", "low set ▼", "set at 0.25", "set at 0.8", "high set ▲"]


def test_stability_shows_the_chosen_and_the_retest():
    tables = stability()
    drawn = texts(figures.fig10_stability(**tables))
    assert "Retest: 0.28 [-0.02, 0.53]" in drawn and all(name in drawn for name in NAMES)
    share = tables["selection_stability"].in_high[:4].mean()
    assert f"{share:.0%} (high)" in figures.fig10_caption(**tables)


def creation():
    """Two seeds, one with an accepted proposal; a third text was dropped before it saw fresh questions."""
    measured = {"si_seed": 0.2, "si_proposal": 0.4, "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    rows = [
        {"seed": "be-brief", "origin": "concrete", **measured, "accepted": True},
        {"seed": "be-honest", "origin": "rewrite", **measured, "gain_low": -0.1, "accepted": False},
        {"seed": "be-honest", "origin": "explicit", "accepted": False},
    ]
    return pd.DataFrame(rows)


def test_creation_tells_accepted_from_not_and_survives_an_empty_search():
    drawn = texts(figures.fig8_creation(creation()))
    assert "concrete, accepted" in drawn and "rewrite, not accepted" in drawn and "explicit" not in drawn
    assert "3 proposals for 2 seed principles, 1 accepted" in figures.fig8_caption(creation())
    assert "not measured" in texts(figures.fig8_creation(creation().iloc[2:]))


def test_every_figure_is_made_from_its_tables_with_a_caption_of_facts(tmp_path, profile):
    results = Results(profile, tmp_path)
    for name, table in all_tables(FIVE, 3, tmp_path, profile).items():
        results.write_table(name, table, "c")
    for name in figures.FIGURES:
        figure = figures.make(profile, results, name)
        assert figure.get_size_inches()[0] == figures.WIDTH
        for suffix in (".png", ".pdf", ".json"):
            assert (results.figures / (name + suffix)).stat().st_size > 500
        assert "nan" not in results.cite(name).split("file:")[0]
    assert plt.get_fignums() == []


def test_one_seed_and_three_arms_leave_nothing_unmeasured(tmp_path, profile):
    tables = all_tables(THREE, 1, tmp_path, profile)
    for name, entry in figures.FIGURES.items():
        frames = [tables[table] for table in entry.tables]
        figure = entry.draw(*frames, **entry.options(profile))
        assert "not measured" not in texts(figure) or name == "fig7_claims"
        assert "nan" not in entry.caption(*frames, **entry.options(profile))


def test_arms_keep_colour_and_marker_whatever_else_is_drawn():
    assert figures.arm_styles(["enigma_high"])["enigma_high"] == figures.arm_styles(FIVE)["enigma_high"]
    assert len(set(figures.arm_styles([*FIVE, "base", "mine", "yours"]).values())) == 8


def test_missing_columns_are_said_in_the_panel():
    table = training(THREE, 1).drop(columns="sinkhorn").assign(row_bound=np.nan)
    assert texts(figures.fig2_training(table, 2)).count("not measured") == 2
    assert texts(figures.fig2_training(training(THREE, 1), 2)).count("not measured") == 0
    table = geometry(THREE, 1)
    kept = table[~table["measure"].isin(["anisotropy", "fisher_rao"])]
    assert texts(figures.fig4_geometry(kept)).count("not measured") == 2
    assert "not measured" in figures.fig4_caption(kept)
    rows, differences = benchmarks(["enigma_high"], 1)
    assert (
        texts(figures.fig3_benchmarks(rows, differences[differences["versus"] == "base"])).count(
            "not measured"
        )
        == 1
    )
    table = directions(THREE, 1)
    table.loc[table["arm"] == "grpo", ["observed", "null_mean", "null_low", "null_high", "p_value"]] = np.nan
    assert texts(figures.fig5_directions(table)).count("not measured") == 1
    table = legibility(THREE, 1).drop(
        columns=["perplexity_base", "perplexity_base_low", "perplexity_base_high"]
    )
    assert texts(figures.fig6_legibility(table)).count("not measured") == 1


def test_missing_table_names_the_notebook(tmp_path, profile):
    with pytest.raises(InputError, match="04_geometry"):
        figures.make(profile, Results(profile, tmp_path), "fig4_geometry")


def test_kl_is_drawn_where_there_is_one():
    assert "Gradient norm" in texts(figures.fig2_training(training(THREE, 1)))
    assert "KL to base" in texts(figures.fig2_training(training(THREE, 1).assign(kl=0.1)))


def test_log_k_line_is_where_it_belongs():
    axes = figures.fig2_training(training(THREE, 1), 2).axes[3]
    assert any(np.allclose(line.get_ydata(), np.log(2)) for line in axes.lines)


def test_tasks_at_chance_are_labelled_and_faint():
    rows, differences = benchmarks(THREE, 1)
    figure = figures.fig3_benchmarks(rows, differences)
    assert texts(figure).count("at chance") == 2
    alphas = [container.lines[0].get_alpha() for container in figure.axes[0].containers]
    assert alphas.count(figures.FAINT) == 2 * 4 and len(alphas) == 6 * 4
    assert "reasoning acc, reasoning acc_norm" in figures.fig3_caption(rows, differences)
    unsure = rows.assign(at_chance=rows["at_chance"] & (rows["arm"] != "grpo"))
    assert "at chance" not in texts(figures.fig3_benchmarks(unsure, differences))


def test_seed_band_is_a_t_interval_from_three_seeds_and_a_range_below():
    runs = pd.DataFrame([[1.0, 2.0, 3.0]])
    low, high = figures.seed_band(runs)
    assert (low[0], high[0]) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    assert [end[0] for end in figures.seed_band(runs[[0, 1]])] == [1, 2]


def test_captions_state_the_facts_of_the_tables():
    caption = figures.fig1_caption(sufficiency())
    table = sufficiency().query("level == 'principle' and span == 'reasoning'").sort_values("si")
    assert (
        f"Best: {table['name'].iloc[-1]}" in caption
        and "do not overlap" in caption
        and "24 questions" in caption
    )
    assert "One seed" in figures.fig2_caption(training(THREE, 1))
    assert "3 seeds" in figures.fig2_caption(training(THREE, 3))
    flat = training(THREE, 1).assign(reward_graded=0.25)
    assert "grpo 0.25 -> 0.25" in figures.fig2_caption(flat)


def test_a_single_layer_and_an_unknown_arm_can_be_drawn():
    table = directions(["grpo"], 1, layers=[30]).assign(arm="mine")
    assert "mine" in texts(figures.fig5_directions(table))
    figures.fig4_geometry(geometry(["grpo"], 1, layers=[30]).assign(arm="mine")).canvas.draw()


def test_verdicts_are_told_by_symbol_and_by_colour(tmp_path, profile):
    table = claims_table(tmp_path, profile)
    shown = texts(figures.fig7_claims(table))
    for verdict, (_, symbol) in figures.VERDICT.items():
        assert shown.count(f"{symbol} {verdict}") == (table["verdict"] == verdict).sum()
    assert "[0.3, 0.5]" in shown
