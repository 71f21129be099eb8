"""Work shared among processes: training runs as processes of their own, and helpers that make pieces of other stages.

Nothing here trains. Several runs go side by side, or one under a launcher's many processes: each job is
`python -m enigma train PROFILE --arm A --seed S`, started plainly or through `accelerate launch`, `torchrun` and their
like. A job writes its own run folder, its output to `log.txt` there, and resumes by itself; so jobs may as well be
started by hand or by a batch system on other machines.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from enigma.errors import SAFE_PATH, InputError
from enigma.profile import run_name

LAUNCH, JOBS = "ENIGMA_LAUNCH", "ENIGMA_JOBS"
PLACE = "ENIGMA_PLACE"  # of a helper: where in the work it begins, 0 to 1
STARTER = "ENIGMA_STARTER"  # of a job: the process that started it and waits for it
PATIENCE = 20.0  # seconds that a job has to end when asked to


class How(NamedTuple):
    """`launch`: words of a launcher's command, none for plain processes; `jobs`: how many runs at once at most, 0 to train
    nothing and only look whether all is there."""

    launch: tuple[str, ...] = ()
    jobs: int = 1

    @property
    def apart(self) -> bool:
        """Whether runs are not trained in this process."""
        return bool(self.launch) or self.jobs != 1


def how() -> How:
    """What ENIGMA_LAUNCH and ENIGMA_JOBS say, which the command line sets; by default one job in this process.

    A profile never names a launcher: it would be a command that a downloaded file runs.

    Raises InputError for a launcher that is not there and for launched runs side by side, which would meet at one port.
    """
    try:
        launch = shlex.split(os.environ.get(LAUNCH, ""))
    except ValueError as error:
        raise InputError(f"--launch: found {error}; expected a command; close its quotes") from None
    asked = _number(JOBS, 1)
    if launch and asked > 1:
        raise InputError(
            f"--jobs: found {asked} with the launcher {launch[0]}; expected 1: a launched run has the machine "
            "to itself; leave out one of them"
        )
    if launch and not (found := shutil.which(launch[0], path=_path())):
        raise InputError(
            f"--launch: found no program {launch[0]!a:.60}; expected a launcher such as accelerate; install it"
        )
    return How((found, *launch[1:]) if launch else (), asked)


def rank() -> int:
    """Which of a launcher's processes this is; 0 where there is none."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes train this run."""
    return max(1, _number("WORLD_SIZE", 1))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise InputError(
            f"{name}: found {text!a:.60}; expected a whole number, as a launcher sets it; unset it"
        )
    return int(text)


def share(spec, processes: int) -> dict[str, int]:
    """Device batch and accumulation of one of `processes` for the same completions a step as one process has.

    `spec` is the profile's `trainer`. Matched sets stay whole, and no device batch grows. Raises InputError where the
    sets cannot be dealt out evenly.
    """
    matched = spec.num_principles * spec.num_generations
    device = spec.per_device_train_batch_size // matched
    sets = device * spec.gradient_accumulation_steps
    if sets % processes:
        raise InputError(
            f"trainer: found {sets} matched sets a step for {processes} processes; expected a number of "
            "processes that divides it; change the launcher's number, per_device_train_batch_size or "
            "gradient_accumulation_steps"
        )
    mine = sets // processes
    accumulation = next(n for n in range(1, mine + 1) if mine % n == 0 and mine // n <= device)
    return {
        "per_device_train_batch_size": mine // accumulation * matched,
        "gradient_accumulation_steps": accumulation,
    }


def shard(runs: list, text: str) -> list:
    """Every n-th of `runs` from the i-th on, for "i/n" with 1 <= i <= n. Raises InputError for another text."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise InputError(
            f"--shard: found {text!a:.60}; expected i/n with i from 1 to n, for example 2/4; correct it"
        )
    return runs[i - 1 :: n]


# ---- the side that starts jobs --------------------------------------------------------------------------------------


def run(profile, root: Path, logs: dict[tuple[str, int], Path], how: How) -> None:
    """Train the runs of `logs`, each with its log file, into the results folder `root`; at most `how.jobs` at once. One that fails does not stop the others.

    Raises InputError or RuntimeError that names every failed run with its reason, once all have ended.
    """
    waiting, running, failures, ended = list(logs), {}, {}, 0
    print(
        f"training: {len(logs)} runs, {how.jobs} at a time; python -m enigma status shows how far each is",
        flush=True,
    )
    try:
        while waiting or running:
            while waiting and len(running) < how.jobs:
                one = waiting.pop(0)
                slot = min(set(range(min(how.jobs, len(logs)))) - {taken for _, taken in running.values()})
                running[one] = _start(profile, root, one, logs[one], how, slot), slot
            for one, (process, _) in list(running.items()):
                if (status := process.poll()) is None:
                    continue
                del running[one]
                ended += 1
                if status:
                    failures[run_name(*one)] = why_ended(logs[one], status)
                print(f"{run_name(*one)}: {'failed' if status else 'done'} ({ended}/{len(logs)})", flush=True)
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            _stop(process)
    if failures:
        told = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        bad_input = all(reason.startswith("error: ") for reason in failures.values())
        raise (InputError if bad_input else RuntimeError)(
            f"{told.replace('error: ', '')}; checkpoints are kept, the same command continues; whole output in "
            f"{', '.join(str(log) for log in logs.values())}"
        )


@contextlib.contextmanager
def helpers(profile, root: Path, stage: str, open_pieces: Callable[[], int]) -> Iterator[None]:
    """Inside, so many other processes as `--jobs` says make pieces of a stage too, and each has its share of the cores.

    One that fails leaves its pieces to this process, which then meets the same error.
    """
    asked = 1 if stage == "train" else how().jobs  # its runs are jobs themselves
    if asked < 2 or (count := min(asked, open_pieces()) - 1) < 1:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    command = [sys.executable, "-m", "enigma.stages.beside", str(profile.path), stage, str(root.absolute())]
    started = [
        _spawn(command, {PLACE: str(slot / (count + 1)), **_device(slot, count + 1)})
        for slot in range(1, count + 1)
    ]
    torch.set_num_threads(max(1, threads // (count + 1)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for process in started:
            _stop(process)


def place() -> float:
    """Where in a stage's work this process begins."""
    return float(os.environ.get(PLACE) or 0)


def _start(profile, root: Path, one: tuple[str, int], log: Path, how: How, slot: int) -> subprocess.Popen:
    program = how.launch or (sys.executable,)
    command = [*program, "-m", "enigma", "train", str(profile.path), "--arm", one[0], "--seed", str(one[1])]
    command += ["--results", str(root.absolute())]
    with open(log, "wb") as output:
        print(f"{run_name(*one)}: started", flush=True)
        return _spawn(command, _device(slot, how.jobs), output)


def _spawn(command: Sequence[str], own: dict[str, str], output=subprocess.DEVNULL) -> subprocess.Popen:
    starter = psutil.Process()
    environment = {
        **os.environ,
        "PATH": _path(),
        LAUNCH: "",  # the job itself trains
        JOBS: "1",
        STARTER: f"{starter.pid} {starter.create_time()} {socket.gethostname()}",
        "ENIGMA_HEADLESS": "1",
        "PYTHONUTF8": "1",
        **SAFE_PATH,
        **own,
    }
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    # An interrupt comes from here, once.
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def _path() -> str:
    """Programs beside this Python are found though its environment is not activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _device(slot: int, jobs: int) -> dict[str, str]:
    """For jobs side by side: a GPU in turn, or a share of the processor's cores."""
    if jobs == 1:
        return {}
    import torch

    if not (count := torch.cuda.device_count()):
        return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": named.split(",")[slot % count]}


def why_ended(log: Path, status: int) -> str:
    """Why a job ended, in one line: its own words, the rank that was killed, or the exit status."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if told := re.findall(r"^(?:\[rank\d+\]:\s*)?(error: .*)$", text, re.MULTILINE):
        return told[0][:500]
    # The summary of torch's elastic launcher, on which accelerate's stands; ranks that it then ended come before the cause.
    cause = text.partition("Root Cause")[2]
    if killed := re.search(r"rank\s*: (\d+) .*?Signal \d+ \((SIG\w+)\) received", cause, re.DOTALL):
        return f"rank {killed[1]} was ended by {killed[2]}, and the other ranks with it"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    return f"ended by signal {-status}" if status < 0 else f"exit status {status}: {last[:300]}"


def _stop(process: subprocess.Popen) -> None:
    """Ask a job to end, then end what is left of it and of all that it started."""
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    for left in (*tree, process):
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


# ---- the side of a job ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ends_with_starter() -> Iterator[None]:
    """Inside, this process ends once the one that started it as a job is gone: a killed run trains no further."""
    stop = threading.Event()
    pid, created, host = os.environ.get(STARTER, "0 0 -").split()
    if host == socket.gethostname():
        threading.Thread(target=_watch, args=(int(pid), float(created), stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _watch(pid: int, created: float, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        try:
            if psutil.Process(pid).create_time() == created:
                continue
        except psutil.NoSuchProcess:
            pass
        os._exit(143)  # files are atomic, and the next run removes temporary ones
