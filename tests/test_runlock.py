"""One run of a profile at a time; signals end it in order, and leave neither kernels nor locks behind."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record import runlock
from enigma.record.results import Results

# `enigma run` on the notebooks of the folder that the first argument names.
RUN = """
import functools, sys
from pathlib import Path
from enigma import __main__ as cli
from enigma.run import pipeline
pipeline.run = functools.partial(pipeline.run, folder=Path(sys.argv[1]))
sys.exit(cli.main(sys.argv[2:]))
"""
# Says which process it is, and works until somebody writes the file `go`.
NOTEBOOK = """# %% tags=["parameters"]
profile = "cpu"
root = "results"

# %%
import os, time
from pathlib import Path
Path("kernel").write_text(str(os.getpid()))
while not Path("go").exists():
    time.sleep(0.05)
"""
HOLD = """
import sys, time
from pathlib import Path
from enigma.record.runlock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that starts `enigma run smoke`; what is still running at the end is killed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_first.py").write_text(NOTEBOOK, encoding="utf-8")
    command = [sys.executable, "-c", RUN, str(tmp_path / "notebooks"), "run", "smoke"]
    started = []

    def start(command=command, **options):
        streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(command, **streams, **options))
        return started[-1]

    start.command = command
    yield start
    for process in started:
        process.kill()
        process.communicate()


def kernel() -> psutil.Process:
    """The kernel that is at work in the current folder."""
    pid = Path("kernel")
    deadline = time.monotonic() + 180
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline, "no kernel started"
        time.sleep(0.05)
    found = psutil.Process(int(pid.read_text()))
    pid.unlink()
    return found


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def finished(process) -> tuple[int, list[str]]:
    """Exit status and the lines of standard error, without traceback and without what the kernel itself logs."""
    _, errors = process.communicate(timeout=180)
    assert "Traceback" not in errors
    assert "never retrieved" not in errors
    return process.returncode, [
        line for line in errors.splitlines() if not line.startswith("[IPKernelApp] WARNING")
    ]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_with_its_status_and_no_kernel(run, number, status, word):
    first = run()
    working = kernel()
    first.send_signal(number)
    first.send_signal(number)
    assert finished(first) == (
        status,
        ["== 01_first", f"{word}; the same command continues where it stopped"],
    )
    assert gone(working)
    assert '"status": "stopped"' in Path("results/smoke/stages.json").read_text()
    Path("go").touch()
    assert finished(run())[0] == 0


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(run):
    first = run()
    orphan = kernel()
    second, (error,) = finished(run())
    assert second == 2
    assert error.startswith(
        f"error: {Path('results/smoke').absolute()}: found process {first.pid} on "
        f"{socket.gethostname()}, since 20"
    )
    assert "expected one run of a profile at a time; wait for it" in error
    assert not gone(orphan)
    first.kill()
    Path("go").touch()
    assert finished(run())[0] == 0
    assert gone(orphan)


@pytest.mark.slow
def test_the_lock_lasts_while_an_orphaned_kernel_lives(run):
    first = run()
    orphan = kernel()
    orphan.suspend()
    first.kill()
    first.wait()
    lock = Path("results/smoke/.run.lock")
    try:
        with pytest.raises(InputError, match=f"found process {first.pid} on"), runlock.hold(lock):
            pass
    finally:
        orphan.resume()
    with runlock.hold(lock):
        assert gone(orphan)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_make_passes_the_signal_on(run, tmp_path, number):
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    command = shlex.join([sys.executable, "run.py", *run.command[3:]])
    makefile = f"SHELL := /bin/bash\n.SHELLFLAGS := -euo pipefail -c\nsmoke:\n\t{command}\n"
    (tmp_path / "Makefile").write_text(makefile, encoding="utf-8")
    make = run(["make", "smoke"], start_new_session=True)
    working = kernel()
    # A terminal sends ^C to the whole group; `kill` reaches make alone.
    os.killpg(make.pid, number) if number == signal.SIGINT else make.send_signal(number)
    _, lines = finished(make)
    assert any("the same command continues where it stopped" in line for line in lines)
    assert gone(working)


# ---- the lock alone --------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/.run.lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / runlock.LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(runlock, "PATIENCE", 0.0)
    path = tmp_path / runlock.LOCK
    with (
        pytest.raises(InputError, match=rf"found process {holder.pid} on {socket.gethostname()}"),
        runlock.hold(path),
    ):
        pass
    holder.kill()
    holder.wait()
    assert str(holder.pid) in path.read_text()
    with runlock.hold(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_holder_shares_its_lock_with_what_it_calls_and_gives_it_back(tmp_path):
    path = tmp_path / "new" / runlock.LOCK
    for _ in range(2):
        with runlock.hold(path) as outer, runlock.hold(path) as inner:
            assert (outer is not None, inner) == (True, None)
        assert runlock.SHARED not in os.environ


def test_a_stage_by_hand_is_refused_while_a_run_holds_the_lock_and_works_within_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runlock, "PATIENCE", 0.0)
    results = Results(load_profile("smoke"), tmp_path)
    calls = []
    stage = runlock.one_writer(lambda profile, results: calls.append(profile) or "tables")
    with results.lock():
        assert stage("mine", results) == "tables"
        monkeypatch.delenv(runlock.SHARED)  # as in a kernel that this run did not start
        with pytest.raises(InputError, match="one run of a profile at a time"):
            stage("other", results)
    assert stage("later", results) == "tables"
    assert calls == ["mine", "later"]


@pytest.mark.parametrize("obstacle", ["link", "file"])
def test_a_lock_that_cannot_be_made_is_told(tmp_path, obstacle):
    target = tmp_path / "precious"
    target.write_text("mine")
    if obstacle == "link":
        (tmp_path / runlock.LOCK).symlink_to(target)
        path = tmp_path / runlock.LOCK
    else:
        path = target / runlock.LOCK
    with (
        pytest.raises(InputError, match="cannot be opened .*choose another with --results"),
        runlock.hold(path),
    ):
        pass
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["sufficiency", "training", "benchmark", "geometry", "claims"])
def test_every_stage_holds_the_lock(name):
    stage = importlib.import_module(f"enigma.{name}").run
    assert stage.__code__.co_name == "alone"
