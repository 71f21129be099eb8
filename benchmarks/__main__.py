"""`make bench`: time and memory of the trainer against named peers, written to benchmarks/<device>.json.

Ratios are of medians, both sides taken in turn in one run, so that a busy machine slows both. Peak memory is that of
a process of its own for each side. Ten minutes on two cores that have nothing else to do.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from trl import GRPOTrainer

from benchmarks import cases, kernels
from enigma.llm.trainer import EnigmaTrainer
from enigma.profile import load_profile
from enigma.record.files import atomic_write_json

HERE = Path(__file__).parent
KINDS = {"enigma": EnigmaTrainer, "trl": GRPOTrainer}
LOSS_TARGETS = {4: 0.65, 2: 0.35}  # by K
MATRIX, MATRIX_TARGET = "SAMI matrix with gradient, K=2", 0.28

BUSY = "import numpy as np\na = np.random.rand(600, 600)\nwhile True: a @ a"


def compared(name: str, case: cases.Case, against: str, target: float, rounds: int) -> dict:
    """One row: medians of both sides over `rounds`, taken in turn. Processor time tells more on a busy machine."""
    taken = [(cases.taken(case.ours), cases.taken(case.peer)) for _ in range(rounds)]
    (ours, mine), (peer, its) = (
        [median(column) for column in zip(*side, strict=True)] for side in zip(*taken, strict=True)
    )
    row = row_of(name, against, ours / peer, target) | {"processor_ratio": round(mine / its, 4)}
    row |= {"seconds": round(ours, 3), "peer_seconds": round(peer, 3), "rounds": rounds}
    print(
        f"{name}: {ours:.2f} s against {peer:.2f} s, ratio {ours / peer:.3f}, of processor time {mine / its:.3f}, target {target}",
        flush=True,
    )
    return row


def row_of(name: str, against: str, ratio: float, target: float) -> dict:
    return {
        "name": name,
        "against": against,
        "ratio": round(ratio, 4),
        "target": target,
        "met": bool(ratio <= target),
    }


def measure(profile, rounds: int) -> tuple[list[dict], list[dict]]:
    """The rows, and for each phase where its time goes."""
    rows = []
    for k, target in LOSS_TARGETS.items():
        ours, peer = cases.trainer(profile, EnigmaTrainer, k), cases.trainer(profile, GRPOTrainer, k)
        inputs = cases.sampling(ours)()
        loss = cases.loss_phase(ours, peer, inputs)
        if not rows:  # the first call of all is slow
            loss.ours(), loss.peer()
        rows.append(compared(f"loss phase, K={k}", loss, "TRL's GRPO, same completions", target, rounds))
    whole = cases.whole_step(ours, peer)
    step = compared("whole step, K=2", whole, "TRL's GRPO step", 0.40, rounds)
    matrix = cases.sami_matrix(ours, inputs, k)
    sinkhorn = cases.seconds(cases.sinkhorn_term(ours, inputs)) / rows[-1]["seconds"]
    rows += [
        step,
        compared(MATRIX, matrix, "a padded forward per principle", MATRIX_TARGET, rounds),
        row_of("Sinkhorn term", "ENIGMA's loss phase", sinkhorn, 0.03),
        beside_another(whole.ours, rounds),
    ]
    phases = {"sampling": cases.sampling(ours), "loss, K=2": loss.ours, "TRL's loss": loss.peer}
    profiles = [kernels.shares(name, work) for name, work in phases.items()]
    memory = {side: peak_memory(profile, side) for side in KINDS}
    against = row_of("peak memory of a step, K=2", "TRL's GRPO step", memory["enigma"] / memory["trl"], 0.40)
    rows.append(against | {"memory_gb": memory["enigma"], "peer_memory_gb": memory["trl"]})
    return [
        *rows,
        absolute("step, seconds", step["seconds"], 12.0),
        absolute("step, GB", memory["enigma"], 5.0),
    ], profiles


def count(profile) -> list[dict]:
    """Operations of both sides: the ratio that equally fast arithmetic would give."""
    counted = []
    for k, target in LOSS_TARGETS.items():
        ours, peer = cases.trainer(profile, EnigmaTrainer, k), cases.trainer(profile, GRPOTrainer, k)
        inputs = cases.sampling(ours)()
        counted.append((f"loss phase, K={k}", cases.loss_phase(ours, peer, inputs), target))
    counted.append((MATRIX, cases.sami_matrix(ours, inputs, k), MATRIX_TARGET))
    rows = []
    for name, case, target in counted:
        mine, its = cases.flops(case.ours), cases.flops(case.peer)
        head = {"name": name, "teraflops": round(mine, 3), "peer_teraflops": round(its, 3)}
        rows.append(head | {"ratio": round(mine / its, 4), "target": target})
    return rows


def beside_another(step, rounds: int) -> dict:
    """Processor seconds of our step beside a second busy process, against the same step before and after it.

    A thread that spins while it waits costs a multiple here (docs/costs.md); wall time would tell how the machine shares.
    """
    alone, beside = [cases.taken(step)[1]], []
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        beside += [cases.taken(step)[1] for _ in range(rounds)]
        other.terminate()
    alone.append(cases.taken(step)[1])
    row = row_of(
        "whole step, beside a second busy process",
        "itself alone, processor time",
        median(beside) / median(alone),
        1.25,
    )
    return row | {
        "seconds": round(median(beside), 3),
        "peer_seconds": round(median(alone), 3),
        "rounds": rounds,
    }


def absolute(name: str, value: float, target: float) -> dict:
    """A guide only: it depends on the machine."""
    return row_of(name, "absolute", value / target, target) | {
        "value": round(value, 3),
        "met": value <= target,
    }


def peak_memory(profile, side: str) -> float:
    """Peak memory of a process that takes one step, GB."""
    command = [sys.executable, "-m", "benchmarks", "--profile", str(profile.path), "--memory", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _print_peak(profile, side: str) -> None:
    made = cases.trainer(profile, KINDS[side], 2)
    cases.whole_step(made, made).ours()
    if torch.cuda.is_available():
        print(round(torch.cuda.max_memory_allocated() / 1e9, 3))
    else:
        print(round(_peak_resident() / 1e9, 3))


def _peak_resident() -> int:
    """Bytes. Linux hands getrusage's peak down from the parent, so there the process's own is read."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--profile", default="cpu", help="shapes are this profile's (default: cpu)")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each side (default: 1)")
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--count", action="store_true", help="count operations instead: benchmarks/flops.json"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    profile = load_profile(args.profile)
    if args.memory:
        return _print_peak(profile, args.memory)
    if args.count:
        return atomic_write_json(HERE / "flops.json", {"profile": profile.name, "rows": count(profile)})
    started, load = time.perf_counter(), round(os.getloadavg()[0], 1)
    rows, profiles = measure(profile, args.rounds)
    minutes = round((time.perf_counter() - started) / 60, 1)
    head = cases.machine(profile) | {"load_before": load, "minutes": minutes}
    atomic_write_json(HERE / f"{cases.device()}.json", {"machine": head, "rows": rows, "kernels": profiles})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
