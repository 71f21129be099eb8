"""`status` tells every stage, arm and seed from files alone, quickly, and writes nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest

from enigma import __main__ as cli
from enigma.data.principles import chosen_sets, run_key
from enigma.profile import load_profile
from enigma.record.progress import heartbeat_path
from enigma.record.results import NOTEBOOK_OF, Results, atomic_write_json
from enigma.run import pipeline
from enigma.run.status import OPTIONAL, SILENT_SECONDS, status

NOBODY = 2**22 + 1  # above the largest process id


@pytest.fixture
def results(tmp_path):
    """The smoke profile with stage 1 done."""
    results = Results(load_profile("smoke"), tmp_path)
    finish(results, "01_select")
    names = [f"p{i}" for i in range(4)]
    results.write_yaml("selection", {name: {"principles": names} for name in ("high", "low")}, "A caption.")
    return results


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    from enigma.data import principles

    pool = [principles.Principle(f"p{i}", f"do thing {i}") for i in range(4)]
    monkeypatch.setattr(principles, "load_pool", lambda name: pool)


def finish(results, stage):
    for table, notebook in NOTEBOOK_OF.items():
        if notebook == stage and table not in ("selection", *OPTIONAL):
            results.write_table(table, pd.DataFrame({"value": [1.0]}), "A caption.")
    record(results, stage, "done", seconds=61.0, peak_memory_gb=1.25)


def record(results, stage, state, **entry):
    path = results.folder / "stages.json"
    stages = json.loads(path.read_text()) if path.exists() else {}
    stages[stage] = {"status": state, "profile_hash": results.profile.hash, **entry}
    atomic_write_json(path, stages)


def beats(
    results,
    stage,
    what="",
    *,
    pid=None,
    host=None,
    age=0.0,
    done=0,
    total=None,
    unit="",
    rate=None,
    **measures,
):
    now = {"pid": pid or os.getpid(), "host": host or socket.gethostname(), "time": time.time() - age}
    now |= {"what": what, "done": done, "total": total, "unit": unit, "rate": rate, **measures}
    atomic_write_json(heartbeat_path(results.folder, stage), now)


def marker(results, path, arm="grpo"):
    key = run_key(results.profile, chosen_sets(results.profile, results)[results.profile.arms[arm].set])
    atomic_write_json(results.runs / path, {"key": key})


def told(results) -> dict[str, tuple[str, str]]:
    return {line.name.strip(): line[1:] for line in status(results.profile, results.root)}


def test_nothing_yet(tmp_path):
    lines = status(load_profile("smoke"), tmp_path)
    assert [line.name for line in lines] == [
        "01_select",
        "02_train",
        "  grpo-s0",
        "  enigma_high-s0",
        "  enigma_low-s0",
        "03_benchmark",
        "04_geometry",
        "05_report",
    ]
    assert {line.state for line in lines} == {"missing"}


def test_a_run_in_progress(results):
    record(results, "02_train", "running")
    marker(results, "grpo-s0/done.json")
    beats(
        results,
        "02_train",
        "enigma_high-s0",
        done=7,
        total=15,
        unit="step",
        rate=0.1,
        reward=0.25,
        drift=0.0125,
    )
    lines = told(results)
    assert lines["01_select"] == ("done", "1:01, 1.2 GB")
    assert lines["grpo-s0"] == ("done", "3 steps")
    assert lines["enigma_high-s0"] == (
        "running",
        "step 7/15, 10 s/step, 1:20 left, reward 0.25, drift 0.0125",
    )
    assert lines["02_train"] == ("running", f"enigma_high-s0: {lines['enigma_high-s0'][1]}")
    assert lines["enigma_low-s0"] == lines["03_benchmark"] == ("missing", "")


def test_a_stage_that_has_only_just_begun_is_running(results):
    record(results, "03_benchmark", "running")
    beats(results, "03_benchmark", "starting")
    assert told(results)["03_benchmark"] == ("running", "starting")


@pytest.mark.parametrize(
    ("beat", "why"),
    [
        (dict(pid=NOBODY), f"its process {NOBODY} is gone"),
        (
            dict(age=1e9),
            f"its process {os.getpid()} is gone",
        ),  # the process began after the heartbeat: another one
        (dict(host="elsewhere", age=SILENT_SECONDS + 60), "silent for 1:01:00"),
    ],
)
def test_a_dead_or_silent_process_has_stopped(results, beat, why):
    record(results, "02_train", "running")
    beats(results, "02_train", "grpo-s0", done=2, total=3, unit="step", rate=1.0, **beat)
    assert told(results)["02_train"] == ("stopped", f"grpo-s0: step 2/3 ({why})")
    assert told(results)["grpo-s0"] == ("stopped", f"step 2/3 ({why})")


def test_an_interrupted_stage_has_stopped(results):
    record(results, "02_train", "stopped")
    beats(results, "02_train", "grpo-s0", done=2, total=3, unit="step", rate=1.0)
    assert told(results)["02_train"] == ("stopped", "grpo-s0: step 2/3 (interrupted)")
    assert told(results)["grpo-s0"] == ("stopped", "step 2/3 (interrupted)")


def test_another_host_is_believed_while_it_is_not_silent(results):
    record(results, "04_geometry", "running")
    beats(
        results, "04_geometry", "states", pid=NOBODY, host="elsewhere", age=60, done=1, total=2, unit="batch"
    )
    assert told(results)["04_geometry"] == ("running", "states: batch 1/2")


def test_a_killed_child_is_gone_though_nobody_waited_for_it(results):
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    record(results, "01_select", "running")
    beats(results, "01_select", "starting", pid=child.pid)
    assert told(results)["01_select"][0] == "stopped"
    child.wait()


def test_a_failed_stage_has_its_reason_and_names_the_run(results):
    record(
        results,
        "02_train",
        "failed",
        reason="02_train: cell 2 stopped with FloatingPointError: the loss is nan",
    )
    beats(results, "02_train", "enigma_high-s0", pid=NOBODY, done=2, total=3, unit="step")
    marker(results, "grpo-s0/done.json")
    why = ("failed", "cell 2 stopped with FloatingPointError: the loss is nan")
    lines = told(results)
    assert lines["02_train"] == lines["enigma_high-s0"] == why
    assert lines["grpo-s0"][0] == "done"
    assert lines["enigma_low-s0"][0] == "missing"


def test_a_run_that_was_cut_off_is_known_by_its_last_whole_checkpoint(results):
    for step in (2, 10):
        marker(results, f"enigma_low-s0/checkpoints/checkpoint-{step}/complete.json", "enigma_low")
    (results.runs / "enigma_low-s0/checkpoints/checkpoint-12").mkdir()
    assert told(results)["enigma_low-s0"] == ("stopped", "checkpoint at step 10/3")


def test_results_of_another_profile_text_are_missing_and_said_to_be_there(results):
    marker(results, "grpo-s0/done.json")
    results.profile._text += "# changed\n"
    lines = told(results)
    assert lines["01_select"] == ("missing", "there are results of another text of this profile")
    assert lines["grpo-s0"] == ("missing", "")


def test_damaged_files_count_as_none(results):
    for path in (
        "stages.json",
        "tables/sufficiency.json",
        "runs/grpo-s0/done.json",
        "runs/02_train.heartbeat.json",
    ):
        (results.folder / path).parent.mkdir(exist_ok=True, parents=True)
        (results.folder / path).write_text('{"status": "don')
    assert {line.state for line in status(results.profile, results.root)} == {"missing"}


def test_it_writes_nothing_and_is_text(results, capsys):
    record(results, "02_train", "running")
    beats(results, "02_train", "legibility", pid=NOBODY, done=1, total=5, unit="model")
    before = {path: path.stat().st_mtime_ns for path in results.root.rglob("*")}
    assert cli.main(["status", "smoke", "--results", str(results.root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in results.root.rglob("*")} == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"smoke ({results.profile.hash}) in {results.folder}"
    assert lines[1] == "  01_select         done     1:01, 1.2 GB"
    assert lines[2].startswith("  02_train          stopped  legibility: model 1/5 (its process")


def test_it_imports_no_model_library_and_makes_no_folder(tmp_path):
    script = (
        "import sys; from enigma.__main__ import main; assert main(['status', 'smoke']) == 0; "
        "assert not {'torch', 'transformers', 'trl', 'lm_eval', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=60, capture_output=True)
    assert not list(tmp_path.iterdir())


def test_a_bad_profile_is_one_line(capsys):
    assert cli.main(["status", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: profile 'nowhere': not found")


# ---- with the pipeline ---------------------------------------------------------------------------------------------

LOOKS = """# %% tags=["parameters"]
profile = "cpu"
root = "results"
# %%
from enigma.profile import load_profile
from enigma.record.progress import track
from enigma.run.status import status
for i in track(range(4), "counting", unit="stone"):
    state = {line.name: line for line in status(load_profile(profile), root)}["01_select"]
    assert state.state == "running", state
    assert state.detail.startswith("counting: stone 0/4"), state
1 / 0
"""


def test_the_pipeline_tells_running_and_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_select.py").write_text(LOOKS, encoding="utf-8")
    with pytest.raises(pipeline.StageFailed, match="ZeroDivisionError"):
        pipeline.run("smoke", "out", folder=tmp_path / "notebooks")
    line = status(load_profile("smoke"), "out")[0]
    assert line.state == "failed"
    assert "stopped with ZeroDivisionError: division by zero" in line.detail
    heartbeat = json.loads(heartbeat_path(tmp_path / "out" / "smoke", "01_select").read_text())
    assert (heartbeat["what"], heartbeat["done"], heartbeat["total"]) == ("counting", 4, 4)
