"""Run every stage of the smoke profile, killed with SIGKILL again and again, and begun again each time.

    python tests/faults.py ROOT [FIRST EVERY]

The first attempt is killed at its FIRST-th event, each later one when EVERY events happened that no earlier attempt
came to, until one comes to its end; without the two numbers nothing is killed. Events are the places where a crash
could hurt: before and after every rename, removal of a folder and unit of work, and in the middle of every file write,
when half the bytes are on the disk. Each attempt is a fork of this process, so that the imports are paid once.
ROOT/events.txt has a line for every event, `attempt kind label`; an attempt's last line is where it was killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import zlib
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", ENIGMA_HEADLESS="1")

import peft.peft_model
import torch
import transformers

from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record import results as results_module
from enigma.record.results import Results, remove_leftovers
from enigma.stages import benchmark, claims, geometry
from enigma.stages import select as sufficiency
from enigma.stages import train as training

STAGES = {
    sufficiency: ("fig1_sufficiency",),
    training: ("fig2_training", "fig6_legibility"),
    benchmark: ("fig3_benchmarks",),
    geometry: ("fig4_geometry", "fig5_directions"),
    claims: ("fig7_claims",),
}
TEMPORARY = re.compile(r"\.([^/]+)\.[0-9a-f]{8}\.tmp")


class Events:
    """Writes events down, and ends the process at the `fatal`-th that is not in `seen`."""

    def __init__(self, root: Path, attempt: int, seen: set[str], fatal: int | None):
        self.root, self.attempt, self.seen, self.left = root, attempt, set(seen), fatal

    def __call__(self, kind: str, label: str, torn: Path | None = None) -> None:
        """`torn`: a file that this event finds half written."""
        event = f"{kind} {label}"
        with open(self.root / "events.txt", "a", encoding="utf-8") as log:
            log.write(f"{self.attempt} {event}\n")
        if self.left is None or event in self.seen:
            return
        self.seen.add(event)
        self.left -= 1
        if self.left == 0:
            if torn is not None:
                os.truncate(torn, torn.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def _path(self, path: Path | str) -> str | None:
        """A file's name within ROOT, without the random part of a temporary one; None outside."""
        path = Path(path).absolute()
        return (
            TEMPORARY.sub(r"\1", str(path.relative_to(self.root))) if path.is_relative_to(self.root) else None
        )

    def writes(self, owner, name: str, argument: int, kind: str, torn: bool = False) -> None:
        """Events before and after every owner.name(.. path ..); with `torn` also one amid the file that it writes."""
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            label = self._path(args[argument])
            if label is None:
                return original(*args, **kwargs)
            self(f"{kind}-begin", label)
            value = original(*args, **kwargs)
            if torn:
                self(f"{kind}-torn", label, Path(args[argument]))
            self(f"{kind}-end", label)
            return value

        setattr(owner, name, wrapped)

    def works(self, owner, name: str, kind: str, label) -> None:
        """Events before and after every unit of work; label(*args) names the unit."""
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            unit = label(*args)
            self(f"{kind}-begin", unit)
            value = original(*args, **kwargs)
            self(f"{kind}-end", unit)
            return value

        setattr(owner, name, wrapped)

    def install(self) -> None:
        """Wrap what writes and what works."""
        flush = os.fsync

        def fsync(handle):
            # What `atomic_write_bytes` flushes is whole, and not yet renamed: the place to tear it.
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            label = self._path(path)
            if label is not None and path.is_file():
                self("write-torn", label, path)
            flush(handle)

        os.fsync = fsync
        self.writes(os, "replace", 1, "replace")
        self.writes(os, "rename", 1, "rename")
        self.writes(shutil, "rmtree", 0, "rmtree")
        self.writes(torch, "save", 1, "torch-save", torn=True)
        self.writes(peft.peft_model, "safe_save_file", 1, "save-weights", torn=True)
        self.writes(transformers.TrainerState, "save_to_json", 1, "save-state", torn=True)

        def step(trainer, *_):
            return f"{Path(trainer.args.output_dir).parent.name}/step-{trainer.state.global_step + 1}"

        def sample(model, tokenizer, encoded, *_):
            return f"{'adapter' if hasattr(model, 'peft_config') else 'base'}/{zlib.crc32(repr(encoded).encode())}"

        # Rendering takes a third of the time, and no table depends on it.
        results_module._rendered = lambda figure, kind, metadata: kind.encode() * 100
        self.works(transformers.Trainer, "training_step", "train", step)
        self.works(sufficiency, "sample_completions", "sample", sample)
        self.works(benchmark, "_scored", "evaluate", lambda profile, adapter, path, *_: path.parent.name)
        self.works(geometry._Base, "compare", "compare", lambda base, arm, seed: f"{arm}-s{seed}")


def reproduce(root: Path) -> None:
    """What the pipeline and its five notebooks do, in order."""
    profile = load_profile("smoke")
    results = Results(profile, root)
    with results.lock():
        remove_leftovers(results.folder)
        for stage, names in STAGES.items():
            stage.run(profile, results)
            for name in names:
                figures.make(profile, results, name)
        results.write_record()
        results.write_index()


def attempt(root: Path, number: int, fatal: int | None) -> int:
    """One attempt in a process of its own; its exit status, negative for a signal."""
    log = root / "events.txt"
    seen = {line.partition(" ")[2] for line in log.read_text().splitlines()} if log.exists() else set()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Events(root, number, seen, fatal).install()
            reproduce(root)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path, first: int | None = None, every: int | None = None) -> int:
    """The status of the attempt that was not killed."""
    root.mkdir(parents=True, exist_ok=True)
    number, status = 0, attempt(root, 0, first)
    while status == -signal.SIGKILL:
        number += 1
        status = attempt(root, number, every)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:])))
