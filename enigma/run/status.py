"""Where a run stands: every stage, arm and seed as done, running, stopped, failed or missing.

Read from the files of the results folder alone; nothing is written and no model library is imported. A stage is done
when its tables are of this very profile text. What runs at the moment is known of stages that `python -m enigma run`
started: stages.json has their state, the heartbeat how far they are. Source: our choice [D].
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from enigma.data.principles import chosen_sets, run_key
from enigma.errors import InputError
from enigma.profile import run_name
from enigma.record.progress import clock, heartbeat_path, pace
from enigma.record.results import NOTEBOOK_OF, Results

SILENT_SECONDS = 3600.0  # no piece of work should take longer than this between two heartbeats
OPTIONAL = ("creation", "created_principles")  # tables that `enigma create` writes
TRAINING = "02_train"


class Line(NamedTuple):
    """`state` is done, running, stopped, failed or missing; a training run's name begins with two spaces."""

    name: str
    state: str
    detail: str = ""


def status(profile, root: Path | str = "results") -> list[Line]:
    """The stages in order and, below stage 2, every (arm, seed)."""
    results = Results(profile, root)
    recorded = _json(results.folder / "stages.json")
    lines = []
    for stage in sorted(set(NOTEBOOK_OF.values())):
        beat = _json(heartbeat_path(results.folder, stage))
        lines.append(_stage(results, stage, recorded.get(stage, {}), beat))
        if stage == TRAINING:
            keys = _keys(profile, results)
            lines += [_run(results, arm, seed, keys, beat, lines[-1]) for arm, seed in profile.runs()]
    return lines


def text(profile, root: Path | str = "results") -> str:
    """`status` as aligned text."""
    lines = status(profile, root)
    width = max(len(line.name) for line in lines)
    rows = [f"  {line.name:<{width}}  {line.state:<7}  {line.detail}".rstrip() for line in lines]
    return "\n".join([f"{profile.name} ({profile.hash}) in {Path(root) / profile.name}", *rows])


def _stage(results: Results, stage: str, entry: dict, beat: dict) -> Line:
    mine = entry.get("profile_hash") == results.profile.hash
    state = entry.get("status") if mine else None
    if state in ("running", "stopped"):
        return Line(stage, *_begun(beat, "interrupted" if state == "stopped" else _ended(beat)))
    if state == "failed":
        return Line(stage, "failed", entry.get("reason", "").removeprefix(f"{stage}: "))
    sidecars = [_json(results.tables / f"{table}.json") for table in _tables(stage)]
    if all(sidecar.get("profile_hash") == results.profile.hash for sidecar in sidecars):
        return Line(
            stage, "done", f"{clock(entry['seconds'])}, {entry['peak_memory_gb']:.1f} GB" if mine else ""
        )
    return Line(
        stage, "missing", "there are results of another text of this profile" if any(sidecars) else ""
    )


def _tables(stage: str) -> list[str]:
    return [table for table, notebook in NOTEBOOK_OF.items() if notebook == stage and table not in OPTIONAL]


def _begun(beat: dict, ended: str) -> tuple[str, str]:
    """State and detail of a stage that has begun and is not done; `ended` says why it no longer runs."""
    return ("stopped", f"{_reached(beat)} ({ended})".lstrip()) if ended else ("running", _progress(beat))


def _ended(beat: dict) -> str:
    """Why the process of a heartbeat is taken for dead; "" while it lives."""
    if not beat:
        return "without a heartbeat"
    silent = time.time() - beat["time"]
    if beat["host"] == socket.gethostname() and not _lives(beat["pid"], beat["time"]):
        return f"its process {beat['pid']} is gone"
    return f"silent for {clock(silent)}" if silent > SILENT_SECONDS else ""


def _lives(pid: int, since: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A process that began after the heartbeat has only inherited its number.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 1
    except psutil.Error:
        return False


def _reached(beat: dict) -> str:
    what = beat.get("what", "")
    return f"{what}: {beat['unit']} {beat['done']}/{beat['total']}" if beat.get("total") else what


def _progress(beat: dict) -> str:
    measures = [f", {name} {beat[name]:.4g}" for name in ("reward", "drift") if beat.get(name) is not None]
    return _reached(beat) + pace(beat["done"], beat["total"], beat["rate"], beat["unit"]) + "".join(measures)


# ---- training runs -------------------------------------------------------------------------------------------------


def _keys(profile, results: Results) -> dict[str, str]:
    """{set: key of the runs trained on it}, empty before stage 1 has chosen."""
    try:
        return {
            name: run_key(profile, principles) for name, principles in chosen_sets(profile, results).items()
        }
    except (InputError, KeyError, TypeError):
        return {}


def _run(results: Results, arm: str, seed: int, keys: dict[str, str], beat: dict, stage: Line) -> Line:
    name, folder = run_name(arm, seed), results.runs / run_name(arm, seed)
    indented, steps = f"  {name}", results.profile.trainer.max_steps
    key = keys.get(results.profile.arms[arm].set)
    if key and _json(folder / "done.json").get("key") == key:
        return Line(indented, "done", f"{steps} steps")
    own = _json(heartbeat_path(results.folder, name))  # of a job of its own
    if own and not _ended(own):
        return Line(indented, "running", _progress(own).removeprefix(f"{name}: "))
    if beat.get("what") == name and stage.state in ("running", "stopped"):
        return Line(indented, stage.state, stage.detail.removeprefix(f"{name}: "))
    if beat.get("what") == name and stage.state == "failed":
        return Line(indented, "failed", stage.detail)
    kept = [
        path
        for path in folder.glob("checkpoints/checkpoint-*/complete.json")
        if key and _json(path).get("key") == key
    ]
    if kept:
        last = max(int(path.parent.name.rsplit("-", 1)[1]) for path in kept)
        return Line(indented, "stopped", f"checkpoint at step {last}/{steps}")
    return Line(indented, "missing")


def _json(path: Path) -> dict:
    """The mapping in a file; empty where there is none, or a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
