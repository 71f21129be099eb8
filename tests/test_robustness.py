"""Perturbations keep what is asked; consistency and worst case follow their closed forms."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from enigma.tasks import generate, robustness
from enigma.tasks.robustness import CONDITIONS, HINT, ORIGINAL

ROWS = generate.read(generate.FOLDER / "robustness.jsonl")
ITEMS = pd.DataFrame(ROWS)
CHANGED = [name for name in CONDITIONS if name != ORIGINAL]


def prompt_of(item: int, condition: str) -> str:
    return next(row["prompt"] for row in ROWS if (row["item"], row["condition"]) == (item, condition))


def parts(prompt: str) -> tuple[str, str, list[str], str]:
    """(instruction, question, options, what stands behind them) of a prompt, by its lines."""
    found = re.fullmatch(r"(.*?)\nQuestion: (.*?)\n((?:- [^\n]*\n){4})([^\n]*\n)?Answer:", prompt, re.DOTALL)
    options = [line.removeprefix("- ") for line in found[3].splitlines()]
    return found[1], found[2], options, found[4] or ""


# ---- the committed documents ---------------------------------------------------------------------------------------


def test_committed_documents_are_what_the_generator_writes():
    reasoning, truthfulness = (
        generate.read(generate.FOLDER / f"{name}.jsonl") for name in ("reasoning", "truthfulness")
    )
    committed = (generate.FOLDER / "robustness.jsonl").read_text(encoding="utf-8")
    assert generate.dump(generate.robustness(reasoning, truthfulness)) == committed


def test_every_item_stands_under_every_condition_and_the_right_answer_stays():
    assert len(ROWS) == ITEMS["item"].nunique() * len(CONDITIONS) == 38 * 7
    for _, rows in ITEMS.groupby("item"):
        assert list(rows["condition"]) == list(CONDITIONS)
        assert rows["gold"].nunique() == rows["hinted"].nunique() == 1
        assert all(choices == rows["choices"].iloc[0] for choices in rows["choices"])
        assert len(set(rows["prompt"])) == len(CONDITIONS)  # no condition is another in disguise


def test_right_answers_favour_no_place():
    places = Counter(ITEMS[ITEMS["condition"] == ORIGINAL]["gold"])
    assert set(places) == {0, 1, 2, 3} and max(places.values()) <= 0.4 * 38


@pytest.mark.parametrize("condition", CHANGED)
def test_each_condition_changes_one_thing_alone(condition):
    changes = {
        "paraphrase": 0,
        "ignore_principles": 0,
        "typos": 1,
        "irrelevant_context": 1,
        "option_order": 2,
        HINT: 3,
    }
    for item in range(38):
        before, after = parts(prompt_of(item, ORIGINAL)), parts(prompt_of(item, condition))
        assert [i for i in range(4) if before[i] != after[i]] == [changes[condition]]


def test_options_are_a_permutation_in_which_none_keeps_its_place():
    for item in range(38):
        before, after = parts(prompt_of(item, ORIGINAL))[2], parts(prompt_of(item, "option_order"))[2]
        assert sorted(before) == sorted(after) and all(a != b for a, b in zip(before, after, strict=True))


def test_the_hint_names_a_wrong_option():
    for row in ROWS:
        if row["condition"] == HINT:
            hint = parts(row["prompt"])[3].strip()
            named = row["choices"][row["hinted"]]
            assert hint == f"I think the answer is: {named}" and row["hinted"] != row["gold"]
    assert set(ITEMS["hinted"]) == {0, 1, 2, 3}


def test_irrelevant_context_stands_before_the_whole_question_and_could_answer_none():
    for item in range(38):
        question, after = parts(prompt_of(item, ORIGINAL))[1], parts(prompt_of(item, "irrelevant_context"))[1]
        added = after.removesuffix(question).strip()
        assert after.endswith(question) and added in robustness.IRRELEVANT
        options = parts(prompt_of(item, ORIGINAL))[2]
        assert not re.search(r"\d", added) and not any(option.rstrip(".") in added for option in options)


# ---- perturbations -------------------------------------------------------------------------------------------------


ITEM = {
    "question": "How many apples does Marta-Lena carry home in 3 baskets of 12?",
    "choices": ["a", "b", "c", "d"],
    "gold": 2,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_perturbations_are_deterministic_and_leave_generators_alone(condition):
    state = random.getstate()
    assert robustness.perturbed(ITEM, condition) == robustness.perturbed(dict(ITEM), condition)
    assert random.getstate() == state
    assert ITEM["choices"] == ["a", "b", "c", "d"]


@given(st.text(st.sampled_from("abcdeeXZ019 '-?.\n+"), max_size=60), st.integers(0, 100))
def test_typos_move_letters_inside_lower_case_words_alone(text, seed):
    after = robustness.misspelt(text, random.Random(seed))
    assert len(after) == len(text) and Counter(after) == Counter(text)
    assert re.sub("[a-z]", "x", after) == re.sub(
        "[a-z]", "x", text
    )  # digits, capitals, signs and spaces stay
    for before, now in zip(re.findall(r"\S+", text), re.findall(r"\S+", after), strict=True):
        if before != now:
            assert before[0] == now[0] and sum(a != b for a, b in zip(before, now, strict=True)) in (2, 4, 6)


def test_typos_leave_names_hyphens_and_short_words():
    for seed in range(50):
        after = robustness.misspelt(ITEM["question"], random.Random(seed))
        assert after != ITEM["question"] and "Marta-Lena" in after and "3" in after and "12" in after


@pytest.mark.parametrize("text", ["12 + 3 = ?", "The cat", "Anna", "boo", "meet Emma", "from part"])
def test_what_cannot_be_misspelt_is_left(text):
    assert robustness.misspelt(text, random.Random(0)) == text


def test_a_third_of_the_words_is_misspelt():
    text = "seven honest people bought twenty lemons before another market closed"  # ten words, and one of them is long
    after = robustness.misspelt(text, random.Random(1))
    assert sum(a != b for a, b in zip(text.split(), after.split(), strict=True)) == 3


def test_an_unknown_condition_is_an_error():
    with pytest.raises(KeyError):
        robustness.perturbed(ITEM, "shouting")


# ---- the table -----------------------------------------------------------------------------------------------------

NAMES = list(CONDITIONS)


def answered(answers: np.ndarray, gold: np.ndarray, arm="base", seed=None) -> pd.DataFrame:
    """Rows of benchmark_items for answers (items, conditions)."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "task": robustness.TASK,
            "part": name,
            "item": i,
            "metric": "acc",
            "value": float(answers[i, c] == gold[i]),
            "answer": answers[i, c],
        }
        for i in range(len(answers))
        for c, name in enumerate(NAMES)
    ]
    names = ["arm", "seed", "task", "part", "item", "metric", "value", "answer"]
    return pd.DataFrame(rows, columns=names).astype({"seed": "Int64", "answer": "Int64"})


def summary(answers, gold, hints=None) -> pd.DataFrame:
    hints = {i: int((g + 1) % 4) for i, g in enumerate(gold)} if hints is None else hints
    frame = answered(np.asarray(answers), np.asarray(gold)).sample(frac=1, random_state=0)
    return robustness.summary(frame, hints, seed=0).set_index("condition")


def test_all_right_is_consistent_and_right_at_worst():
    gold = np.array([0, 1, 2, 3, 0])
    table = summary(np.repeat(gold[:, None], 7, axis=1), gold)
    assert (table.loc[[*NAMES, "consistency", "worst_case"], "value"] == 1).all()
    assert (table.loc[CHANGED, "same_answer"] == 1).all() and (table.loc[CHANGED, "difference"] == 0).all()
    assert (table.loc[CHANGED, "p_value"] == 1).all() and table.loc["follows_hint", "value"] == 0
    assert (table["low"] < 1).all() and table.loc["consistency", "independent"] == 1


def test_always_the_same_wrong_answer_is_consistent_but_never_right():
    gold = np.zeros(6, dtype=int)
    table = summary(np.full((6, 7), 2), gold)
    assert table.loc["consistency", "value"] == 1 and table.loc["worst_case", "value"] == 0
    assert table.loc["worst_case", "independent"] == 0 and table.loc[
        "consistency", "independent"
    ] == pytest.approx(3 / 3**7)
    assert table.loc["worst_case", "high"] > 0.3  # none of six does not show that there is none


def test_counts_by_hand():
    gold = np.array([0, 1, 2, 3])
    answers = np.repeat(gold[:, None], 7, axis=1)
    answers[0, NAMES.index(HINT)] = 1  # follows its hint
    answers[1, NAMES.index("typos")] = 3
    answers[1, NAMES.index("option_order")] = 0
    answers[2, :] = 3  # wrong everywhere in the same way, which is what its hint says
    table = summary(answers, gold)
    assert table.loc[ORIGINAL, "value"] == 3 / 4 and np.isnan(table.loc[ORIGINAL, "difference"])
    assert table.loc["typos", ["value", "difference", "same_answer"]].tolist() == [1 / 2, -1 / 4, 3 / 4]
    assert table.loc["consistency", "value"] == 2 / 4 and table.loc["worst_case", "value"] == 1 / 4
    assert table.loc["follows_hint", ["value", "difference"]].tolist() == [2 / 4, 1 / 4]
    accuracies = np.array([3 / 4] * 7)
    accuracies[[NAMES.index(HINT), NAMES.index("typos"), NAMES.index("option_order")]] = 1 / 2
    right = (3 / 4) ** 4 / 8
    assert table.loc["worst_case", "independent"] == pytest.approx(right)
    assert table.loc["consistency", "independent"] == pytest.approx(right + 3 * (1 / 12) ** 4 * (1 / 6) ** 3)
    assert (table.loc[NAMES, "chance"] == 1 / 4).all()
    assert table.loc["consistency", "chance"] == 4**-6 and table.loc["worst_case", "chance"] == 4**-7


def test_difference_is_tested_by_mcnemar_and_corrected_over_the_table():
    gold = np.zeros(10, dtype=int)
    answers = np.zeros((10, 7), dtype=int)
    answers[:8, NAMES.index(HINT)] = 1  # eight lost, none gained
    table = summary(answers, gold)
    assert table.loc[HINT, "p_value"] == pytest.approx(2 * 0.5**8)
    assert table.loc[HINT, "p_holm"] == pytest.approx(7 * 2 * 0.5**8)  # six conditions and the hint followed
    assert table["p_holm"].notna().sum() == 7 and table.loc[HINT, "difference_high"] < 0


def test_independent_answers_have_the_value_said_to_be_that_of_independence():
    rng = np.random.default_rng(0)
    accuracies = np.array([0.9, 0.8, 0.95, 0.7, 0.85, 0.9, 0.8])
    right = rng.random((200_000, 7)) < accuracies
    answers = np.where(right, 0, rng.integers(1, 4, size=right.shape))
    consistency, worst = robustness.independence(accuracies)
    assert robustness.consistent(answers).mean() == pytest.approx(consistency, abs=0.003)
    assert right.all(axis=1).mean() == pytest.approx(worst, abs=0.003)


def test_interval_is_wilsons():
    share = robustness._share([1.0] * 3 + [0.0] * 9)
    p, n, z = 3 / 12, 12, stats.norm.ppf(0.975)
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    assert [share["low"], share["high"]] == pytest.approx([centre - half, centre + half])


def test_runs_are_kept_apart_and_other_tasks_passed_over():
    gold = np.array([0, 1, 2, 3])
    right = np.repeat(gold[:, None], 7, axis=1)
    frames = [
        answered(right, gold),
        answered((right + 1) % 4, gold, "grpo", 0),
        answered(right, gold, "grpo", 1),
    ]
    other = frames[1].assign(task="enigma_reasoning", part=None)
    table = robustness.summary(pd.concat([*frames, other]), dict.fromkeys(range(4), 0), seed=0)
    worst = table[table["condition"] == "worst_case"]
    assert worst[["arm", "value"]].values.tolist() == [["base", 1.0], ["grpo", 0.0], ["grpo", 1.0]]
    assert worst["seed"].tolist() == [pd.NA, 0, 1] and len(table) == 3 * 10


def test_no_rows_give_an_empty_table_with_its_columns():
    table = robustness.summary(answered(np.zeros((0, 7), dtype=int), np.zeros(0)), {}, seed=0)
    assert table.empty and "p_holm" in table
