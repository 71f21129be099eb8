"""What the README shows works, and its numbers are those of the committed tables."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from enigma.__main__ import main
from enigma.profile import load_profile
from enigma.record.report import render
from enigma.record.results import Results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_tables():
    rendered = render(README, Results(load_profile("cpu"), ROOT / "results"))
    assert rendered == README, "run: python -m enigma readme"
    assert README.count("<!-- measured:") == 9


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_trl_script_runs(tmp_path, toy_model, toy_tokenizer, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    toy_model().save_pretrained(tmp_path / "model")
    toy_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("embedded_folder())", "'model')"), namespace)  # noqa: S102
    logged = namespace["trainer"].state.log_history
    assert {"loss/sami", "loss/ot", "ot/divergence"} <= logged[0].keys()
    assert namespace["trainer"].state.global_step == 2


def test_own_principles_are_ranked_in_one_command(tmp_path, capsys):
    command = re.search(r"```bash\n.*?-m enigma (.*?)\n```", README, re.DOTALL)[1].split()
    command[1] = str(ROOT / command[1])
    assert main([*command, "--profile", "smoke", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "count-the-cost" in printed and "si_low" in printed
    assert (tmp_path / "sufficiency" / "my_principles" / "sufficiency.csv").exists()


@pytest.mark.parametrize("name", ["fig1_sufficiency", "fig2"])
def test_cite(name, capsys):
    assert main(["cite", name, "--results", str(ROOT / "results")]) == 0
    printed = capsys.readouterr().out
    assert "2510.11278" in printed and name in printed


def test_smoke_profile_through_papermill(tmp_path):
    """All five notebooks, headless, from another working directory; then a second run that keeps what is done."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "enigma", "run", "smoke", "--results", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "out" / "smoke"
    assert len(list((folder / "notebooks").glob("*.ipynb"))) == 5
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert len(figures) == 10 == len(list((folder / "figures").glob("*.pdf")))
    index = (folder / "README.md").read_text()
    tables = [path.stem for path in (folder / "tables").glob("*.csv")]
    assert all(name in index for name in [*figures, *tables])
    results = Results(load_profile("smoke"), tmp_path / "out")
    training = results.read_table("training")
    assert len(training) == 3 * 3 and (training.arm.unique() == ["grpo", "enigma_high", "enigma_low"]).all()
    assert (results.read_table("training_checks").status == "no signal").all()
    sufficiency = results.read_table("sufficiency")
    # A random model carries no principle: every bound is near zero beside log 16 = 2.77.
    assert sufficiency.row_bound.abs().max() < 0.3
    assert set(results.read_table("claims").verdict) <= {"supported", "not supported", "undecided"}
    for notebook in (folder / "notebooks").glob("*.ipynb"):
        assert str(tmp_path) not in notebook.read_text() and str(ROOT) not in notebook.read_text()
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert list(stages) == ["01_select", "02_train", "03_benchmark", "04_geometry", "05_report"]
