"""Killed anywhere, again and again, a run ends with the tables of one that was left alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from enigma.profile import load_profile
from enigma.record.results import file_hash
from enigma.stages import train as training

DRIVER = Path(__file__).with_name("faults.py")
# Where each chain of kills begins, and the number of new events up to the next kill: about ten kills a chain.
CHAINS, EVERY = (5, 17, 29), 47
MEASURED = {"seconds", "items_per_second", "peak_memory_gb"}  # columns that tell of the machine
# How often a kill may cause a unit of work to be done again: no step before the last checkpoint, and no part twice.
AGAIN = {"train": load_profile("smoke").trainer.save_steps, "sample": 1, "evaluate": 1, "compare": 1}


def driven(root: Path, *numbers: int) -> Path:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), str(root), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def outcome(root: Path) -> dict[str, object]:
    """Everything that a run leaves and that should not depend on how it came about."""
    folder = root / "smoke"
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".csv":
            header, *rows = csv.reader(path.open(encoding="utf-8", newline=""))
            keep = [i for i, column in enumerate(header) if column not in MEASURED]
            kept[name] = [[row[i] for i in keep] for row in (header, *rows)]
        elif path.suffix in (".yaml", ".jsonl", ".safetensors"):
            kept[name] = file_hash(path)
        else:
            kept[name] = None
    return kept


def events(root: Path) -> list[tuple[int, str, str]]:
    """(attempt, kind, label) of every event."""
    lines = [line.split(" ", 2) for line in (root / "events.txt").read_text(encoding="utf-8").splitlines()]
    return [(int(attempt), kind, label) for attempt, kind, label in lines]


def kills(root: Path) -> list[tuple[str, str]]:
    """Kind and label of the last event of every attempt but the last."""
    last = {attempt: (kind, label) for attempt, kind, label in events(root)}
    return [last[attempt] for attempt in sorted(last)[:-1]]


def begun(root: Path) -> Counter:
    """How often each kind of work was begun, over all attempts."""
    return Counter(kind.removesuffix("-begin") for _, kind, _ in events(root) if kind.endswith("-begin"))


@pytest.mark.slow
def test_killed_anywhere_the_tables_are_those_of_a_run_left_alone(tmp_path):
    alone = driven(tmp_path / "alone")
    expected, work, points = outcome(alone), begun(alone), []
    assert not any("tmp" in name or "checkpoints" in name for name in expected)
    for first in CHAINS:
        chain = driven(tmp_path / f"chain-{first}", first, EVERY)
        assert outcome(chain) == expected
        for kind, again in AGAIN.items():
            assert work[kind] <= begun(chain)[kind] <= work[kind] + again * len(kills(chain)), kind
        points += kills(chain)
    assert len(points) >= 20
    assert sum(kind.endswith("-torn") for kind, _ in points) >= 4
    labels = " ".join(label for _, label in points)
    for place in ("select", "checkpoints", "tables", "figures", "benchmark", "geometry"):
        assert place in labels, place


def _at(step: int):
    return SimpleNamespace(global_step=step, is_world_process_zero=True)


def test_the_older_checkpoint_stays_until_the_newer_one_is_marked(tmp_path, monkeypatch):
    recorder, args = training.Recorder("key"), SimpleNamespace(output_dir=str(tmp_path))
    (tmp_path / "checkpoint-2").mkdir()
    recorder.on_save(args, _at(2), None)
    (tmp_path / "checkpoint-4").mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "atomic_write_json", killed)
        recorder.on_save(args, _at(4), None)
    assert training.last_checkpoint(tmp_path, "key").name == "checkpoint-2"
    recorder.on_save(args, _at(4), None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_transformers_does_not_remove_checkpoints_itself(tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def config(*args, **settings):
        seen.update(settings)
        raise Stop

    monkeypatch.setattr(training, "EnigmaConfig", config)
    with pytest.raises(Stop):
        training._trainer(load_profile("smoke"), "grpo", 0, [], tmp_path, training.Recorder("key"))
    assert seen.get("save_total_limit") is None
