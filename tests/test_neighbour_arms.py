"""The neighbours as arms of one small run: what each is made from, what counts as changed, and the table of all."""

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from enigma.errors import InputError
from enigma.figures import claims as drawn
from enigma.profile import BUILTIN, load_profile
from enigma.record.results import Results
from enigma.stages import claims, comparison, geometry, legibility, select, train

PLAIN = {"set": "high", "lambda_sami": 0.0, "lambda_ot": 0.0}
# What the trainer itself is told: three neighbours in one run.
TOLD = {"optimizer": "scion", "learning_rate": 0.004, "reward": "salmon", "drift": "l2", "lambda_ot": 1.0}
ARMS = {
    "grpo": PLAIN,
    "scion": PLAIN | TOLD | {"control": "grpo"},
    "steered": PLAIN | {"steering": {"reference": "grpo", "tau": 0.1}, "control": "grpo"},
    "merged": PLAIN | {"merge": {"arms": ["grpo", "scion"], "steps": 2}, "control": "grpo"},
    "dpo": PLAIN | {"lambda_sami": 0.1, "preference": {"beta": 0.1}, "control": "grpo"},
}


def profile_with(folder, arms, **sections):
    data = yaml.safe_load((BUILTIN / "smoke.yaml").read_text().replace("3e-4", "0.0003"))
    data |= {"name": "tiny", "arms": arms}
    data["trainer"]["max_steps"] = 2
    for section, changes in sections.items():
        data[section] |= changes
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return load_profile(folder / "tiny.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stages 1, 2, 4 and 5 of all arms."""
    folder = tmp_path_factory.mktemp("neighbours")
    profile = profile_with(folder, ARMS, geometry={"infomec": True, "permutations": 19})
    results = Results(profile, folder / "results")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "INFOMEC_DRAWS", 1)
        for stage in (select, train, legibility, geometry):
            made |= stage.run(profile, results)
    made["neighbours"] = comparison.table(profile, claims.Tables(profile, made))
    return profile, results, made


def test_every_arm_has_an_adapter_of_its_own(run):
    profile, results, made = run
    folders = {arm: train.adapter(profile, results.store, arm, 0) for arm in ARMS}
    adapters = {arm: load_file(folder / "adapter_model.safetensors") for arm, folder in folders.items()}
    name = next(key for key in adapters["grpo"] if "lora_B" in key)
    # The format reward of a random model has no spread: plain GRPO learns nothing, and is reported so.
    assert not adapters["grpo"][name].any() and not adapters["dpo"][name].any()
    assert adapters["scion"][name].any()
    checks = made["training_checks"].set_index("arm")["status"]
    assert checks["grpo"] == checks["dpo"] == "no signal"
    # The ranks of both teachers side by side.
    assert adapters["merged"][name].shape[1] == 2 * adapters["grpo"][name].shape[1]
    assert adapters["merged"].keys() == adapters["grpo"].keys()


def test_what_is_made_from_another_run_changes_with_it(run, tmp_path):
    results = run[1]
    other = profile_with(tmp_path, ARMS | {"grpo": PLAIN | {"lambda_ot": 0.5}})
    new = {arm for arm in ARMS if results.store.kept(train.piece(other, results.store, arm, 0)) is None}
    assert new == {"grpo", "steered", "merged"}
    # A default and a control are no part of what a run is known by.
    spoken = {"optimizer": "adamw", "drift": "sinkhorn", "control": "scion", "steering": None}
    same = profile_with(tmp_path, ARMS | {"grpo": PLAIN | spoken})
    assert results.store.kept(train.piece(same, results.store, "grpo", 0))


def test_the_tables_have_every_arm_beside_its_control(run):
    profile, _, made = run
    table = made["neighbours"]
    assert table["arm"].tolist() == ["grpo", *(arm for arm in ARMS if arm != "grpo" for _ in range(2))]
    own = table[table["versus"] == ""].set_index("arm")
    assert own[["reward", "drift", "untrained_bound", "perplexity", "bits", "seconds"]].notna().all(axis=None)
    difference = table[(table["arm"] == "scion") & (table["versus"] == "grpo")].iloc[0]
    assert difference["bits"] == pytest.approx(own.loc["scion", "bits"] - own.loc["grpo", "bits"])
    assert own.loc["steered", "drift"] >= 0 and np.isnan(own["arc_easy"]).all()
    rows = [("grpo", "base", 0.1), ("scion", "base", 0.4), ("scion", "grpo", 9.0)]
    margins = pd.DataFrame(rows, columns=["arm", "versus", "difference"])
    asked = made | {"benchmark_differences": margins.assign(seed=0, task="arc_easy", metric="margin")}
    judged = comparison.table(profile, claims.Tables(profile, asked)).set_index(["arm", "versus"])
    assert judged.loc[("scion", "grpo"), "arc_easy"] == pytest.approx(0.3)
    read = table.replace({"versus": {"": None}})
    figure, caption = drawn.fig12_neighbours(profile, read, made["complexity"])
    assert "control" in caption
    [bits] = [axes for axes in figure.axes if axes.get_title(loc="left") == "bits"]
    same_length = made["complexity"].set_index("arm")["base"]
    assert bits.lines[-1].get_xdata().tolist() == same_length[own.index[::-1]].tolist()
    base = made["complexity"].query("arm == 'base'").iloc[0]
    assert base["difference"] == 0 and base["bits"] == base["base"] > 0
    found = made["infomec"].groupby("measure").size()
    assert len(found) == 6 and set(found) == {len(ARMS)} and made["infomec"]["p_value"].between(0.01, 1).all()


def test_a_longer_arm_has_questions_of_its_own_and_begins_as_the_others_do(tmp_path):
    short = train.training_questions(profile_with(tmp_path, {"grpo": {**PLAIN}}))
    longer = profile_with(tmp_path, {"grpo": {**PLAIN}, "longer": PLAIN | {"max_steps": 4}})
    found = train.training_questions(longer)
    assert len(set(found)) == 2 * len(short) and found[: len(short)] == short


def test_reward_is_compared_where_both_have_drifted_as_far():
    """The second arm drifts to 2 at most, which the first one reaches at its second step."""
    training = pd.DataFrame({"arm": [*"aaaabbbb"], "seed": 0, "step": [1, 2, 3, 4] * 2})
    training["sinkhorn"] = [0, 3, 4, 5, 0, 1, 1, 2]
    training["reward_graded"] = [0.1, 0.5, 0.8, 1.0, 0.0, 0.2, 0.3, 0.4]
    assert comparison.at_equal_drift(training, "a", "b").tolist() == pytest.approx([0.3 - 0.3])
    assert comparison.at_equal_drift(training, "a", "c").empty
    training.loc[6, "sinkhorn"] = np.nan  # a step without drift counts in the mean reward all the same
    assert comparison.at_equal_drift(training, "a", "b").tolist() == pytest.approx([0.3 - 0.3])


def test_drift_is_compared_where_both_have_earned_as_much():
    """The second arm earns 0.4 at most (a mean of three steps), which the first one has at its third step."""
    training = pd.DataFrame({"arm": [*"aaaabbbb"], "seed": 0, "step": [1, 2, 3, 4] * 2})
    training["sinkhorn"] = [0, 3, 4, 5, 0, np.nan, 1, 2]
    training["reward_graded"] = [0.1, 0.6, 0.8, 1.0, 0.4, 0.4, 0.4, 0.4]
    assert comparison.at_equal_reward(training, "a", "b").empty  # the second has it before anything moved
    training["reward_graded"] = [0.1, 0.6, 0.8, 1.0, 0.0, 0.2, 0.4, 0.6]
    assert comparison.at_equal_reward(training, "a", "b").tolist() == pytest.approx([np.log(4 / 2)])
    assert comparison.at_equal_reward(training, "a", "c").empty
    training.loc[4:, "sinkhorn"] = np.nan  # never measured
    assert comparison.at_equal_reward(training, "a", "b").empty


PREFERENCE = {"preference": {"beta": 0.1}}
MERGE = {"merge": {"arms": ["grpo", "scion"], "steps": 0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steering": {"reference": "later", "tau": 1.0}}, ": found later; expected an arm that stands"),
        ({"merge": {"arms": ["grpo"], "steps": 2}}, "at least 2"),
        ({"control": "nobody"}, ".control: found nobody"),
        (PREFERENCE | MERGE, "one of steering"),
        ({"optimizer": "sgd"}, "'adamw', 'scion' or 'muon'"),
        (PREFERENCE | {"lambda_ot": 5}, ".lambda_ot: found 5.0; expected 0.0 where .* preference"),
        (PREFERENCE | {"optimizer": "muon"}, ".optimizer: found 'muon'; expected 'adamw'"),
        (MERGE | {"max_steps": 3}, ".max_steps: found 3; expected null"),
    ],
)
def test_impossible_arms_are_refused(tmp_path, changes, message):
    # Copies: the same object twice would be written as an alias, which profiles refuse.
    arms = {"grpo": {**PLAIN}, "scion": ARMS["scion"], "odd": PLAIN | changes, "later": {**PLAIN}}
    with pytest.raises(InputError, match=f"arms.odd.*{message}"):
        profile_with(tmp_path, arms)


def test_a_profile_without_controls_has_an_empty_table(tmp_path):
    profile = profile_with(tmp_path, {"grpo": PLAIN})
    assert comparison.table(profile, claims.Tables(profile, {})).empty
