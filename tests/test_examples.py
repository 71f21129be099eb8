"""What the README shows for a user's own things works: principles, model, reward, task, and the trainer in a script."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from enigma.__main__ import main
from enigma.data.principles import load_pool
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import benchmark, select, train

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "tests" / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def mine(tmp_path, toy_model, toy_tokenizer, monkeypatch):
    """The examples with a model of one's own beside them, far from the working directory."""
    shutil.copytree(EXAMPLES, tmp_path / "mine")
    path = tmp_path / "mine" / "my_profile.yaml"
    text = path.read_text(encoding="utf-8").replace("source: embedded", "source: local\n  id: my_model\n  #")
    path.write_text(text, encoding="utf-8")
    toy_model().save_pretrained(tmp_path / "mine" / "my_model")
    toy_tokenizer.save_pretrained(tmp_path / "mine" / "my_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENIGMA_ALLOW_CODE", raising=False)
    return tmp_path / "mine" / "my_profile.yaml"


def test_own_model_principles_reward_and_task_are_measured_and_trained(mine, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_ALLOW_CODE", "")  # the option sets it, and the test puts it back
    assert main(["check", str(mine), "--allow-code"]) == 0
    profile = load_profile(mine)
    results = Results(profile, tmp_path / "results")
    chosen = select.run(profile, results)["selection"]
    assert set(chosen["principle"]) <= {one.name for one in load_pool(mine.parent / "my_principles.yaml")}
    steps = train.run(profile, results)["training"].query("arm == 'mine'")
    assert len(steps) == 2 and steps["reward_principle"].between(0, 1).all()
    store = results.store
    monkeypatch.setattr(sys, "argv", ["", str(train.adapter(profile, store, "mine", 0))])
    runpy.run_path(mine.parent / "my_answer.py")
    assert len(capsys.readouterr().out) > 1
    reward, trained = mine.parent / "my_reward.py", train.piece(profile, store, "mine", 0)
    text = reward.read_text(encoding="utf-8")
    reward.write_text(text + "\n", encoding="utf-8")
    assert store.kept(trained) and "code" in store.why(train.piece(profile, store, "mine", 0))
    reward.write_text(text, encoding="utf-8")
    scores = benchmark.run(profile, results)["benchmarks"].query("task == 'my_task'")
    assert set(scores["arm"]) == {"base", "grpo", "mine"} and {"acc", "margin"} <= set(scores["metric"])


@pytest.mark.parametrize(
    ("reward", "missing"), [("my_rewards:short", "no such module"), ("my_reward:shrt", "no function 'shrt'")]
)
def test_a_misspelt_reward_is_told_before_anything_is_trained(mine, monkeypatch, capsys, reward, missing):
    monkeypatch.setenv("ENIGMA_ALLOW_CODE", "")
    mine.write_text(mine.read_text(encoding="utf-8").replace("my_reward:short", reward), encoding="utf-8")
    assert main(["check", str(mine), "--allow-code"]) == 2
    assert f"reward: {reward}: found {missing}" in capsys.readouterr().err


def test_own_principles_are_ranked_in_one_command(tmp_path, capsys):
    command = re.search(r"enigma (select \S+)", README)[1].split()
    assert main([command[0], str(ROOT / command[1]), "--profile", "smoke", "--results", str(tmp_path)]) == 0
    assert "count-the-cost" in capsys.readouterr().out


def test_the_trainer_runs_in_the_script_of_the_readme(mine):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    Path("script.py").write_text(code.replace("embedded_folder()", "'mine/my_model'"), encoding="utf-8")
    logged = runpy.run_path("script.py")["trainer"].state.log_history[0]
    assert {"loss/grpo", "loss/sami", "loss/ot", "ot/divergence"} <= logged.keys()


def test_every_command_of_the_readme_is_one(capsys):
    assert main(["--help"]) == 0
    there = set(re.findall(r"^  (\w+) ", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE))
    named = set(re.findall(r"(?:^|`|-m )enigma (\w+)", README, re.MULTILINE))
    assert named and named <= there
