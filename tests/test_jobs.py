"""Runs as processes of their own: dealing out, side by side, failures told, nothing left running."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from enigma import stages
from enigma.errors import InputError
from enigma.profile import load_profile, run_name
from enigma.record.cache import Piece, Store
from enigma.record.results import Results
from enigma.stages import jobs, select

counts = st.integers(1, 8)


@given(counts, counts, counts, counts, counts)
def test_a_step_has_the_same_sets_on_any_number_of_processes(k, g, device, accumulation, processes):
    spec = SimpleNamespace(
        num_principles=k,
        num_generations=g,
        per_device_train_batch_size=k * g * device,
        gradient_accumulation_steps=accumulation,
    )
    if device * accumulation % processes:
        said = f"found {device * accumulation} matched sets a step for {processes} processes"
        with pytest.raises(InputError, match=said):
            jobs.share(spec, processes)
        return
    batch, steps = jobs.share(spec, processes).values()
    assert batch * steps * processes == k * g * device * accumulation
    assert batch % (k * g) == 0 and batch <= k * g * device
    if processes == 1:
        assert (batch, steps) == (k * g * device, accumulation)


@given(st.integers(0, 20), st.integers(1, 9))
def test_shards_are_disjoint_and_complete(count, n):
    runs = list(range(count))
    parts = [jobs.shard(runs, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(run for part in parts for run in part) == runs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(InputError, match="--shard: found .*expected i/n"):
        jobs.shard([1, 2], text)


@pytest.mark.parametrize(
    ("launch", "count", "message"),
    [
        ("no-such-launcher -n 2", "1", "--launch: found no program 'no-such-launcher'"),
        (f"{sys.executable} -x", "2", "--jobs: found 2 with the launcher"),
        ("", "-1", "ENIGMA_JOBS: found '-1'"),
    ],
)
def test_how_is_checked(monkeypatch, launch, count, message):
    monkeypatch.setenv(jobs.LAUNCH, launch)
    monkeypatch.setenv(jobs.JOBS, count)
    with pytest.raises(InputError, match=message):
        jobs.how()


# A program in the launcher's place: what it does is up to the arm's name.
PROGRAM = """
import json, os, signal, sys, time
arm = sys.argv[sys.argv.index("--arm") + 1]
note = {"arm": arm, "begin": time.monotonic(), "argv": sys.argv[1:]}
if arm == "grpo_ot":
    print("epoch 1\\nerror: trainer: found nonsense; expected sense\\nmore", file=sys.stderr)
    sys.exit(2)
if arm == "grpo_sami":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.6)
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(note | {"end": time.monotonic()}) + "\\n")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    launch = (sys.executable, str(tmp_path / "program.py"))

    def run(runs, at_once):
        logs = {one: tmp_path / f"{run_name(*one)}.txt" for one in runs}
        jobs.run(load_profile("gpu"), tmp_path / "results", logs, jobs.How(launch, at_once))

    def notes():
        return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]

    return SimpleNamespace(run=run, notes=notes)


def test_jobs_run_side_by_side_and_no_more_than_asked(program):
    runs = [("grpo", 0), ("grpo", 1), ("enigma_low", 0), ("enigma_high", 2)]
    program.run(runs, 2)
    notes = program.notes()
    assert len(notes) == 4
    edges = sorted([(n["begin"], 1) for n in notes] + [(n["end"], -1) for n in notes])
    assert max(itertools.accumulate(step for _, step in edges)) == 2
    assert notes[0]["argv"][:3] == ["-m", "enigma", "train"] and notes[0]["argv"][3].endswith("gpu.yaml")


def test_a_failed_job_is_told_and_stops_no_other(program):
    runs = [("grpo_ot", 0), ("grpo_sami", 1), ("grpo", 0)]
    with pytest.raises(RuntimeError) as caught:
        program.run(runs, 1)
    told = str(caught.value)
    assert "grpo_ot-s0: trainer: found nonsense; expected sense; grpo_sami-s1: ended by signal 9" in told
    assert "the same command continues" in told and "\n" not in told
    assert [note["arm"] for note in program.notes()] == ["grpo"]
    with pytest.raises(InputError, match="found nonsense"):
        program.run(runs[:1], 99_999_999)


def test_what_another_process_is_making_is_left_to_it_until_the_rest_is_done(tmp_path, monkeypatch):
    store, order = Store(tmp_path), []

    def make(piece):
        def written(folder):
            order.append(piece.name)
            (folder / "file").write_text(piece.name)

        return written

    work = [(piece, make(piece)) for piece in (Piece("select", f"p{i}", {"i": i}) for i in range(4))]
    other = FileLock(store.place(work[2][0]).with_suffix(".lock"), thread_local=False)
    Path(other.lock_file).parent.mkdir(parents=True)
    other.acquire()
    threading.Timer(1.0, other.release).start()
    monkeypatch.setenv(jobs.PLACE, "0.25")
    folders = stages.made(store.get, store, work, "parts", "part")
    assert order == ["p1", "p3", "p0", "p2"]
    assert [(folder / "file").read_text() for folder in folders] == ["p0", "p1", "p2", "p3"]


def test_a_stage_is_shared_and_its_rows_are_those_of_one_process(tiny, tmp_path, monkeypatch):
    """The helper does all: this process waits until it has begun, and then finds each piece made or taken."""
    monkeypatch.setenv(jobs.JOBS, "2")
    results, threads = Results(tiny.profile, tmp_path), torch.get_num_threads()
    measure = select.measure

    def waiting(profile, store):
        pieces = select.pieces(profile, store)
        deadline = time.monotonic() + 120
        while not any(map(store.kept, pieces)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert any(map(store.kept, pieces)) and torch.get_num_threads() == max(1, threads // 2)
        return measure(profile, store)

    monkeypatch.setattr(select, "measure", waiting)
    select.run(tiny.profile, results)
    assert torch.get_num_threads() == threads
    assert not psutil.Process().children()
    for name in select.CAPTIONS:
        assert results.read_table(name).equals(tiny.results.read_table(name))


def test_a_stage_ends_without_its_helpers(tiny, tmp_path, monkeypatch):
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv(jobs.JOBS, "2")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "broken"))
    assert len(select.run(tiny.profile, Results(tiny.profile, tmp_path / "results"))) == len(select.CAPTIONS)


def test_a_killed_rank_is_named(tmp_path):
    (tmp_path / "log").write_text(
        "step 1\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nFailures:\n[1]:\n"
        "  rank      : 0 (local_rank: 0)\n  traceback : Signal 15 (SIGTERM) received by PID 26\nRoot Cause (first observed failure):\n"
        "[0]:\n  time      : now\n  host      : here\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 27)\n"
        "  error_file: <N/A>\n  traceback : Signal 9 (SIGKILL) received by PID 27\n"
    )
    assert jobs.why_ended(tmp_path / "log", 1) == "rank 1 was ended by SIGKILL, and the other ranks with it"
    (tmp_path / "log").write_text("\n")
    assert jobs.why_ended(tmp_path / "log", 7) == "exit status 7: no output"


STARTER = """
import sys, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
from pathlib import Path
from enigma.stages import jobs
from enigma.profile import load_profile
jobs.run(load_profile("gpu"), Path({root!r}), {{("grpo", 0): Path({root!r} + "log")}}, jobs.How((sys.executable, {program!r}), 1))
"""
JOB = """
import os, time
from enigma.stages import jobs
with jobs.ends_with_starter():
    open(os.environ["NOTES"], "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_job_outlives_its_starter(tmp_path, monkeypatch, end):
    pid, program = tmp_path / "pid", tmp_path / "job.py"
    program.write_text(JOB)
    monkeypatch.setenv("NOTES", str(pid))
    code = STARTER.format(root=str(tmp_path / "r"), program=str(program))
    starter = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    job = psutil.Process(int(pid.read_text()))
    starter.send_signal(end)
    starter.wait(30)
    psutil.wait_procs([job], timeout=10)
    assert not job.is_running() or job.status() == psutil.STATUS_ZOMBIE


# The SLURM script, with programs in the places of sbatch and Python that note how they were called.

SBATCH = """#!/bin/bash
echo "sbatch $*" >>"$NOTES"
for option in "$@"; do
  case $option in
  --export=ALL,STEP=*) export STEP=${option#--export=ALL,STEP=} ;;
  --array=1-*) last=${option#--array=1-} ;;
  esac
done
for i in $(seq 1 "${last:-1}"); do SLURM_ARRAY_TASK_ID=$i bash "${@: -1}"; done >&2
echo "$RANDOM;cluster"
"""


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_slurm_script_selects_trains_every_shard_and_judges(tmp_path, gpus):
    for name, text in (("sbatch", SBATCH), ("python", '#!/bin/bash\necho "python $*" >>"$NOTES"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {name.upper(): str(tmp_path / name) for name in ("notes", "python")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROFILE": "paper", "RESULTS": "out"}
    environment |= {"SHARDS": "3", "GPUS": str(gpus)}
    script = Path(__file__).resolve().parents[1] / "scripts" / "slurm.sh"
    subprocess.run([script], env=environment, check=True, capture_output=True)
    lines = (tmp_path / "notes").read_text().splitlines()
    called = [line.removeprefix("python -m enigma ") for line in lines if line.startswith("python")]
    launch = " --launch accelerate launch --num_processes 4" if gpus > 1 else ""
    trained = [f"train paper --shard {i}/3{launch} --results out" for i in (1, 2, 3)]
    assert called[0] == "check paper" and called[1] == "run paper --to 01_select --results out"
    assert called[2:] == [*trained, "run paper --from 02_train --jobs 0 --results out"]
    asked = [line for line in lines if line.startswith("sbatch")]
    assert [f"--gpus={gpus}" in line for line in asked] == [True] * 3
    assert "--array=1-3 --dependency=afterok:" in asked[1] and "--dependency=afterany:" in asked[2]
    assert not any(";" in line for line in asked)
