"""Runs as processes of their own: dealing out, side by side, failures told, nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enigma.data.principles import load_pool
from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.run import jobs
from enigma.run.status import status

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
        with pytest.raises(
            InputError, match=f"found {device * accumulation} matched sets a step for {processes} processes"
        ):
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


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "a/b", "-1/2", "1/2/3", ""])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(InputError, match="--shard: found .*expected i/n"):
        jobs.shard([1, 2], text)


@pytest.mark.parametrize(
    ("launch", "count", "message"),
    [
        ("no-such-launcher -n 2", "1", "--launch: found no program 'no-such-launcher'"),
        (f"{sys.executable} -x", "2", "--jobs: found 2 with the launcher"),
        ("", "many", "ENIGMA_JOBS: found 'many'"),
        ("", "-1", "ENIGMA_JOBS: found '-1'"),
    ],
)
def test_how_is_checked(monkeypatch, launch, count, message):
    monkeypatch.setenv(jobs.LAUNCH, launch)
    monkeypatch.setenv(jobs.JOBS, count)
    with pytest.raises(InputError, match=message):
        jobs.how(load_profile("smoke"))


def test_the_command_line_goes_before_the_profile(monkeypatch):
    smoke = load_profile("smoke")
    launched = smoke.model_copy(update={"trainer": smoke.trainer.model_copy(update={"launch": "python -q"})})
    monkeypatch.delenv(jobs.LAUNCH, raising=False)
    assert not jobs.how(smoke).apart
    # Found beside this Python though its environment is not activated.
    monkeypatch.setenv("PATH", "")
    found = jobs.how(launched)
    assert found.apart and os.path.samefile(os.path.dirname(found.launch[0]), os.path.dirname(sys.executable))
    assert found.launch[1:] == ("-q",)
    monkeypatch.setenv(jobs.LAUNCH, "")
    assert not jobs.how(launched).apart


# A program in the launcher's place: what it does is up to the arm's name.
PROGRAM = """
import json, os, signal, sys, time
arm = sys.argv[sys.argv.index("--arm") + 1]
note = {"arm": arm, "begin": time.monotonic(), "argv": sys.argv[1:], "beat": os.environ["ENIGMA_HEARTBEAT"]}
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
    return SimpleNamespace(
        launch=(sys.executable, str(tmp_path / "program.py")),
        results=Results(load_profile("gpu"), tmp_path / "results"),
        notes=lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()],
    )


def test_jobs_run_side_by_side_and_no_more_than_asked(program):
    runs = [("grpo", 0), ("grpo", 1), ("enigma_low", 0), ("enigma_high", 2)]
    jobs.run(program.results.profile, program.results, runs, jobs.How(program.launch, 2))
    notes = program.notes()
    assert len(notes) == 4
    together = [sum(a["begin"] < b["end"] and b["begin"] < a["end"] for b in notes) for a in notes]
    assert max(together) >= 2
    edges = sorted([(n["begin"], 1) for n in notes] + [(n["end"], -1) for n in notes])
    alive = [sum(step for _, step in edges[: i + 1]) for i in range(len(edges))]
    assert max(alive) <= 2
    assert notes[0]["argv"][:3] == ["-m", "enigma", "train"] and notes[0]["argv"][3].endswith("gpu.yaml")
    assert len({n["beat"] for n in notes}) == 4


def test_a_failed_job_is_told_and_stops_no_other(program):
    runs = [("grpo_ot", 0), ("grpo_sami", 1), ("grpo", 0)]
    with pytest.raises(RuntimeError) as caught:
        jobs.run(program.results.profile, program.results, runs, jobs.How(program.launch, 1))
    assert "grpo_ot-s0: trainer: found nonsense; expected sense; grpo_sami-s1: ended by signal 9" in str(
        caught.value
    )
    assert "the same command continues" in str(caught.value) and "\n" not in str(caught.value)
    assert [note["arm"] for note in program.notes()] == ["grpo"]
    with pytest.raises(InputError, match="found nonsense"):
        jobs.run(program.results.profile, program.results, runs[:1], jobs.How(program.launch, 1))


def test_a_killed_rank_is_named(tmp_path):
    (tmp_path / "log").write_text(
        "step 1\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nFailures:\n[1]:\n"
        "  rank      : 0 (local_rank: 0)\n  traceback : Signal 15 (SIGTERM) received by PID 26\nRoot Cause (first observed failure):\n"
        "[0]:\n  time      : now\n  host      : here\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 27)\n"
        "  error_file: <N/A>\n  traceback : Signal 9 (SIGKILL) received by PID 27\n"
    )
    assert jobs._reason(tmp_path / "log", 1) == "rank 1 was ended by SIGKILL, and the other ranks with it"
    (tmp_path / "log").write_text("\n")
    assert jobs._reason(tmp_path / "log", 7) == "exit status 7: no output"


STARTER = """
import sys, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
sys.path.insert(0, {tests!r})
from pathlib import Path
from enigma.run import jobs
from enigma.profile import load_profile
from enigma.record.results import Results
results = Results(load_profile("gpu"), {root!r})
jobs.run(results.profile, results, [("grpo", 0)], jobs.How((sys.executable, {program!r}), 1))
"""
JOB = """
import os, time
from enigma.run import jobs
with jobs.ends_with_starter():
    open(os.environ["NOTES"], "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_job_outlives_its_starter(tmp_path, monkeypatch, end):
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.setenv("NOTES", str(tmp_path / "pid"))
    values = {
        "tests": os.path.dirname(__file__),
        "root": str(tmp_path / "r"),
        "program": str(tmp_path / "job.py"),
    }
    starter = subprocess.Popen([sys.executable, "-c", STARTER.format(**values)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    job = psutil.Process(int((tmp_path / "pid").read_text()))
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


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("gpus", [1, 4])
def test_the_slurm_script_selects_trains_every_shard_and_judges(tmp_path, gpus):
    for name, text in (("sbatch", SBATCH), ("python", '#!/bin/bash\necho "python $*" >>"$NOTES"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "PROFILE": "paper",
    }
    environment |= {"SHARDS": "3", "GPUS": str(gpus), "PYTHON": str(tmp_path / "python"), "RESULTS": "out"}
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


# The real thing: a tiny model in a folder, `python -m enigma train` with two processes a run.

CHANGES = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 16, "max_completion_length": 8}


@pytest.fixture
def experiment(tmp_path, toy_model, toy_tokenizer):
    """A profile on the toy model, with its selection made."""
    import yaml

    folder = tmp_path / "model"
    toy_model().save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    text = yaml.safe_load(load_profile("smoke").text)
    text["name"], text["model"] = "toy", {"source": "local", "id": "model", "dtype": "float32"}
    text["trainer"] |= CHANGES | {"learning_rate": 3e-4}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(text))
    profile = load_profile(str(tmp_path / "toy.yaml"))
    results = Results(profile, tmp_path / "results")
    names = [p.name for p in load_pool("default")]
    chosen = {"high": {"principles": names[:4]}, "low": {"principles": names[4:8]}}
    results.write_yaml("selection", chosen, "made up")
    return SimpleNamespace(
        profile=profile, results=results, path=str(tmp_path / "toy.yaml"), root=str(tmp_path / "results")
    )


def command(experiment, *words):
    line = [sys.executable, "-m", "enigma", "train", experiment.path, "--results", experiment.root, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ENIGMA_HEADLESS": "1"}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


# Without a GPU plain `accelerate launch` starts one process; with this word it goes through torch's launcher.
TWO = "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


@pytest.mark.slow
def test_two_ranks_killed_resumed_and_collected(experiment):
    """A rank is killed after the first checkpoint; the same command ends the run; shards and collection see it."""
    folder = experiment.results.run_folder("grpo", 0)
    first = command(experiment, "--arm", "grpo", "--launch", TWO)
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/checkpoint-*/complete.json")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()[0] + (folder / "log.txt").read_text()
        time.sleep(0.05)
    ranks = [p for p in psutil.Process(first.pid).children(recursive=True) if p.environ().get("RANK") == "1"]
    ranks[-1].kill()
    told = first.communicate(timeout=120)[0]
    assert first.returncode == 1, told
    assert "error: grpo-s0: rank 1 was ended by SIGKILL" in told and "Traceback" not in told
    assert not (folder / "done.json").exists()
    assert not [
        p for p in psutil.process_iter() if str(folder) in " ".join(p.cmdline() if p.is_running() else [])
    ]

    again = command(experiment, "--arm", "grpo", "--launch", TWO)
    told = again.communicate(timeout=240)[0]
    assert again.returncode == 0, told + (folder / "log.txt").read_text()
    steps = pd.read_csv(folder / "steps.csv")
    assert list(steps.step) == [1, 2, 3]
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    # All completions of both ranks, two questions a step, each with its whole matched set.
    groups = pd.read_csv(folder / "groups.csv")
    assert len(lines) == 3 * 16 and len(groups) == 3 * 4
    assert pd.DataFrame(lines).groupby(["step", "question"]).size().eq(8).all()
    assert "resumed" not in told

    late = command(experiment, "--jobs", "0")
    told = late.communicate(timeout=120)[0]
    assert (
        late.returncode == 2 and "without enigma_high-s0, enigma_low-s0; expected all, since --jobs 0" in told
    )
    rest = command(experiment, "--jobs", "2")
    told = rest.communicate(timeout=240)[0]
    assert rest.returncode == 0 and "training: 2 runs, 2 at a time" in told, told
    collected = command(experiment, "--jobs", "0")
    assert collected.wait(timeout=120) == 0, collected.communicate()[0]
    states = {line.name.strip(): line.state for line in status(experiment.profile, experiment.root)}
    assert {states[f"{arm}-s0"] for arm in experiment.profile.arms} == {"done"}
