"""`make bench`: time and memory of the trainer against named peers, written to benchmarks/<device>.json.

Ratios are of medians, both sides taken in turn in one run, so that a busy machine slows both. Peak memory is that of
a process of its own for each side.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from trl import GRPOTrainer

from benchmarks import cases, kernels, slopes
from enigma.llm.trainer import EnigmaTrainer
from enigma.profile import load_profile
from enigma.record.results import atomic_write_json

HERE = Path(__file__).parent
KINDS = {"enigma": EnigmaTrainer, "trl": GRPOTrainer}


def compared(name: str, case: cases.Case, against: str, target: float, rounds: int) -> dict:
    """One row: medians of both sides over `rounds`, taken in turn after a warm-up of each."""
    case.ours(), case.peer()
    taken = [(cases.seconds(case.ours), cases.seconds(case.peer)) for _ in range(rounds)]
    ours, peer = (median(side) for side in zip(*taken, strict=True))
    row = {"name": name, "against": against, "ratio": round(ours / peer, 4), "target": target}
    row |= {
        "met": ours / peer <= target,
        "seconds": round(ours, 3),
        "peer_seconds": round(peer, 3),
        "rounds": rounds,
    }
    print(f"{name}: {ours:.2f} s against {peer:.2f} s, ratio {ours / peer:.3f}, target {target}", flush=True)
    return row


def measure(profile, rounds: int) -> tuple[list[dict], list[dict]]:
    """The rows, and for each phase where its time goes."""
    rows, profiles = [], []
    for k, target in ((2, 0.85), (4, 1.5)):
        ours, peer = cases.trainer(profile, EnigmaTrainer, k), cases.trainer(profile, GRPOTrainer, k)
        inputs = cases.sampling(ours)()
        loss = cases.loss_phase(ours, peer, inputs)
        rows.append(compared(f"loss phase, K={k}", loss, "TRL's GRPO, same completions", target, rounds))
        if k == 2:
            step = compared("whole step, K=2", cases.whole_step(ours, peer), "TRL's GRPO step", 1.0, rounds)
            matrix = cases.sami_matrix(ours, inputs, k)
            rows += [
                step,
                compared(
                    "SAMI matrix with gradient, K=2", matrix, "a padded forward per principle", 1 / 3, rounds
                ),
                compared(
                    "Sinkhorn term",
                    cases.sinkhorn_term(ours, inputs, loss),
                    "ENIGMA's loss phase",
                    0.03,
                    rounds,
                ),
                absolute("step, seconds", step["seconds"], 12.0),
            ]
            phases = {
                "sampling": cases.sampling(ours),
                "SAMI matrix": matrix.ours,
                "SAMI matrix, dense": matrix.peer,
                "loss, K=2": loss.ours,
                "TRL's loss": loss.peer,
            }
            profiles += [kernels.shares(name, work) for name, work in phases.items()]
    memory = {side: peak_memory(profile, side) for side in KINDS}
    ratio = memory["enigma"] / memory["trl"]
    rows.append(
        {
            "name": "peak memory of a step, K=2",
            "against": "TRL's GRPO step",
            "ratio": round(ratio, 4),
            "target": 0.7,
            "met": ratio <= 0.7,
            "memory_gb": memory["enigma"],
            "peer_memory_gb": memory["trl"],
        }
    )
    rows.append(absolute("step, GB", memory["enigma"], 5.0))
    return rows, profiles


def absolute(name: str, value: float, target: float) -> dict:
    """A guide only: it depends on the machine."""
    return {
        "name": name,
        "against": "absolute",
        "ratio": round(value / target, 4),
        "target": target,
        "value": round(value, 3),
        "met": value <= target,
    }


def peak_memory(profile, side: str) -> float:
    """Peak memory of a process that takes two steps, GB."""
    command = [sys.executable, "-m", "benchmarks", "--profile", profile.name, "--memory", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _print_peak(profile, side: str) -> None:
    made = cases.trainer(profile, KINDS[side], 2)
    step = cases.whole_step(made, made).ours
    step(), step()
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


def machine() -> dict:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else torch.cpu.get_capabilities()["cpu_name"]
    )
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "POT")}
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **packages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--profile", default="cpu", help="shapes are this profile's (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    profile = load_profile(args.profile)
    if args.memory:
        return _print_peak(profile, args.memory)
    rows, profiles = measure(profile, args.rounds)
    curves = slopes.measure(profile)
    name = "gpu" if torch.cuda.is_available() else "cpu"
    from enigma.llm.loading import model_dtype

    head = {
        "profile": profile.name,
        "dtype": str(model_dtype(profile.model)).removeprefix("torch."),
        **machine(),
    }
    atomic_write_json(
        HERE / f"{name}.json", {"machine": head, "rows": rows, "kernels": profiles, "slopes": curves}
    )
    slopes.draw(curves, head, HERE / f"slopes_{name}.png")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
