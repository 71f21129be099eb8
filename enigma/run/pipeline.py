"""The five notebooks, run one after the other into results/<profile>/.

The `.py` notebooks are the source: each is converted in memory, given its parameters, run by papermill in a kernel of
its own, and saved under results/<profile>/notebooks. The source is never touched. Every stage resumes by itself, so
running again is safe; only one run at a time holds the lock of a results folder (`enigma.record.runlock`). Seconds and peak
memory of each stage go to results/<profile>/stages.json.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from enigma.data.principles import load_pool
from enigma.errors import InputError
from enigma.llm.loading import cache_folder
from enigma.profile import Profile, load_profile, run_name, sizes
from enigma.record.progress import HEARTBEAT, beat, heartbeat_path
from enigma.record.results import DiskFull, Results, atomic_write_json, atomic_write_text, remove_leftovers
from enigma.run import resources
from enigma.run.inputs import check_inputs, check_results
from enigma.run.jobs import how

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"
SMALLER = {"paper": "gpu", "gpu": "cpu", "cpu": "smoke"}
HEAVIEST = "02_train"  # whose needs a profile's estimates of memory and disk are
SAMPLE_SECONDS = 0.2
FULL = 2**20  # bytes; a disk with less left is full


class StageFailed(RuntimeError):
    """A notebook stopped. The message names stage, cell or peak memory, and where to look, in one line."""


def run(
    profile: str | Path,
    root: str | Path = "results",
    first: str | None = None,
    last: str | None = None,
    folder: Path = NOTEBOOKS,
) -> Path:
    """Run the notebooks in `folder` on a profile (name or path), stages `first` to `last`; return the results folder.

    `root` is where results/<profile> is made, relative to the working directory. Raises InputError before anything
    runs when the profile, the stage or a notebook's parameters are wrong, when disk or memory do not suffice and when
    another process runs this profile there; StageFailed when a notebook stops.
    """
    checked = load_profile(profile)
    results = Results(checked, root)
    every = stage_paths(folder)
    begin = _position(every, first, "--from") if first else 0
    end = _position(every, last, "--to") if last else len(every) - 1
    stages = every[begin : end + 1]
    if not stages:
        raise InputError(
            f"--to: found {last!r}, before --from {first!r}; expected it or a later stage; correct it"
        )
    check_inputs(checked)
    check_results(checked, results, [path.stem for path in every[:begin]])
    how(checked)
    parameters = {"profile": str(profile), "root": str(root)}
    notebooks = {path.stem: _prepared(path, parameters) for path in stages}
    if HEAVIEST in notebooks:
        _check_room(checked, results.folder)
    with results.lock() as lock:
        # What jobs of stage 2 may be writing elsewhere is theirs to clean.
        remove_leftovers(results.folder, but=[results.runs / run_name(*one) for one in checked.runs()])
        for stage, notebook in notebooks.items():
            _run_stage(stage, notebook, parameters, results, lock)
        # Once more, now that the last stage's own cost is known.
        results.write_record()
    return results.folder


def stage_paths(folder: Path = NOTEBOOKS) -> list[Path]:
    """The stages' source notebooks in order."""
    paths = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not paths:
        raise InputError(
            f"{folder}: found no notebooks such as 01_select.py; expected the repository's notebooks "
            "folder; install with `pip install -e .` from a clone"
        )
    return paths


def _position(stages: list[Path], named: str, option: str) -> int:
    for position, path in enumerate(stages):
        number, _, name = path.stem.partition("_")
        if named in (path.stem, name, number, number.lstrip("0")):
            return position
    raise InputError(
        f"{option}: found {named!r}; expected one of {', '.join(path.stem for path in stages)}; correct it"
    )


# ---- room for a run ------------------------------------------------------------------------------------------------


def _check_room(profile: Profile, folder: Path) -> None:
    """Raise InputError where the profile's estimate of disk or memory is more than there is.

    What the results folder and the cache hold already counts as found: an earlier attempt may have left it.
    """
    size = sizes(profile, len(load_pool(profile.principles.pool)))
    rooms = [("memory", "available", size.memory_gb, resources.free_memory, "close other programs")]
    for place, setting in ((folder, "--results"), (cache_folder(), "ENIGMA_CACHE")):
        found = functools.partial(_disk_for, place)
        remedy = f"free some, name another folder with {setting}"
        rooms.append(("disk", f"free for {place}", size.disk_gb, found, remedy))
    for what, where, expected_gb, find, remedy in rooms:
        if expected_gb is not None and (found_gb := find() / 1e9) < expected_gb:
            raise InputError(
                f"{profile.name}: {what}: found {found_gb:.2f} GB {where}; expected about "
                f"{expected_gb:.2f} GB; {remedy}, or try {_smaller(profile)}"
            )


def _disk_for(place: Path) -> int:
    return resources.free_disk(place) + resources.size_on_disk(place)


def _smaller(profile: Profile) -> str:
    smaller = SMALLER.get(profile.name)
    return f"the profile {smaller}" if smaller else "a smaller batch or fewer tokens"


# ---- one notebook --------------------------------------------------------------------------------------------------


def _prepared(path: Path, parameters: dict):
    """The notebook of a `.py` source, its parameters checked."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    known = _parameters(path, notebook)
    for name in parameters:
        if name not in known:
            raise InputError(
                f"{path.name}: unknown parameter {name!r}; expected one of {', '.join(known) or '(none)'}, "
                "the names in its cell tagged parameters"
            )
    return notebook


def _parameters(path: Path, notebook) -> list[str]:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{path.name}: found {len(cells)} cells tagged parameters; expected exactly one")
    statements = [
        node for node in ast.parse(cells[0].source).body if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    targets = [target for node in statements for target in getattr(node, "targets", None) or [node.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _run_stage(stage: str, notebook, parameters: dict, results: Results, lock: int | None) -> None:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    print(f"== {stage}", file=sys.stderr, flush=True)
    target, started, status = results.notebooks / f"{stage}.ipynb", time.monotonic(), "failed"
    heartbeat = {HEARTBEAT: str(heartbeat_path(results.folder, stage).absolute())}
    with tempfile.TemporaryDirectory() as scratch, _peak_memory() as peak, _environment(**heartbeat):
        raw = Path(scratch) / target.name
        _record_start(results, stage)
        try:
            _execute(notebook, raw, parameters, lock)
            status = "done"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        except DeadKernelError:
            raise StageFailed(_dead_kernel(stage, results.profile, peak[0])) from None
        except PapermillExecutionError as error:
            if error.ename in ("InputError", "DiskFull"):
                raise InputError(f"{stage}: {error.evalue}") from None
            raise StageFailed(
                f"{stage}: cell {error.exec_count} stopped with {error.ename}: {_short(error.evalue)}; "
                f"{_full_disk(results)}the whole traceback is in {target}"
            ) from None
        except OSError as error:  # papermill writes its own copy to the temporary folder
            free = resources.free_disk(raw)
            raise StageFailed(
                f"{stage}: {scratch}: {error.strerror or error}; found {free:,} bytes free there; "
                "expected room for a notebook; free some, or set TMPDIR"
            ) from error
        finally:
            seconds = time.monotonic() - started
            # On a full disk it is the failure that should be told, not that its record does not fit.
            with contextlib.nullcontext() if status == "done" else contextlib.suppress(DiskFull):
                _save(raw, target, parameters)
                _record(results, stage, seconds, peak[0], status)
    print(f"== {stage}: {seconds:.0f} s, peak memory {peak[0]:.1f} GB", file=sys.stderr, flush=True)


def _execute(notebook, raw: Path, parameters: dict, lock: int | None) -> None:
    import papermill

    with _environment(ENIGMA_HEADLESS="1"), _no_kernel_left():
        papermill.execute_notebook(
            notebook,
            str(raw),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernels(lock),
            shutdown_kernel="immediate",  # all is written; a kernel asked politely amid its work protests at length
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )


def _kernels(lock: int | None):
    """A kernel manager whose kernels inherit the run's lock: while one lives, even orphaned, no other run begins."""
    from jupyter_client.manager import AsyncKernelManager

    inherited = [lock] if lock is not None and os.name == "posix" else []

    class Kernels(AsyncKernelManager):
        async def _async_launch_kernel(self, command, **options):
            await super()._async_launch_kernel(command, pass_fds=inherited, **options)

    return Kernels


@contextlib.contextmanager
def _no_kernel_left() -> Iterator[None]:
    """Kill what the block started and left alive: an interrupt may come amid a kernel's start."""
    import psutil

    own = psutil.Process()
    before = set(own.children(recursive=True))
    try:
        yield
    finally:
        for child in set(own.children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _dead_kernel(stage: str, profile: Profile, peak_gb: float) -> str:
    return (
        f"{stage}: the kernel died with {peak_gb:.1f} GB in use at its peak, most likely for want of memory; "
        f"try {_smaller(profile)}, or a machine with more"
    )


def _full_disk(results: Results) -> str:
    """What to add to the report of a failure where the disk is full; libraries tell it each in their own words."""
    free = resources.free_disk(results.folder)
    if free >= FULL:
        return ""
    expected = sizes(results.profile, len(load_pool(results.profile.principles.pool))).disk_gb
    estimate = "" if expected is None else f", expected about {expected:.2f} GB for the whole run"
    return f"{results.folder}: the disk is full: found {free:,} bytes free{estimate}; free some and go on; "


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """A one-item list with the highest resident memory (GB, 10^9 bytes) of processes started inside the block.

    The sum over the kernel and its children; memory that they share counts once for each.
    """
    import psutil

    own = psutil.Process()
    before, peak, stop = {child.pid for child in own.children(recursive=True)}, [0.0], threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            total = 0
            for child in own.children(recursive=True):
                try:
                    total += 0 if child.pid in before else child.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            peak[0] = max(peak[0], total / 1e9)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _record_start(results: Results, stage: str) -> None:
    """Say in stages.json that the stage is running; the heartbeat says of which process."""
    beat("starting", 0, None, "")
    stages = _recorded(results)
    stages[stage] = {
        **_NEW_STAGE,
        **stages.get(stage, {}),
        "status": "running",
        "profile_hash": results.profile.hash,
    }
    stages[stage].pop("reason", None)
    atomic_write_json(results.folder / "stages.json", dict(sorted(stages.items())))


def _record(results: Results, stage: str, seconds: float, peak_gb: float, status: str) -> None:
    """Add an attempt to stages.json. What was recorded for another profile text is dropped.

    `seconds` is the sum over attempts, because a later attempt only finishes what earlier ones left.
    """
    stages = _recorded(results)
    before = stages.get(stage, _NEW_STAGE)
    stages[stage] = {
        "seconds": round(before["seconds"] + seconds, 1),
        "peak_memory_gb": round(max(before["peak_memory_gb"], peak_gb), 2),
        "attempts": before["attempts"] + 1,
        "last_seconds": round(seconds, 1),
        "status": status,
        "profile_hash": results.profile.hash,
    }
    if status == "failed":
        error = sys.exception()  # the one that ends the stage
        stages[stage]["reason"] = _short(error) or type(error).__name__
    atomic_write_json(results.folder / "stages.json", dict(sorted(stages.items())))


_NEW_STAGE = {"seconds": 0.0, "peak_memory_gb": 0.0, "attempts": 0}


def _recorded(results: Results) -> dict:
    """{stage: entry} of stages.json, without what was recorded for another profile text."""
    stages = _read_stages(results.folder / "stages.json")
    return {
        name: entry for name, entry in stages.items() if entry.get("profile_hash") == results.profile.hash
    }


def _read_stages(path: Path) -> dict:
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: it is only a record, and is started anew
        return {}


# ---- executed notebooks carry no path of this machine ---------------------------------------------------------------


def _save(raw: Path, target: Path, parameters: dict) -> None:
    import nbformat

    if not raw.is_file():
        return
    notebook = nbformat.read(raw, as_version=4)
    notebook.metadata.get("papermill", {}).update(
        input_path=f"notebooks/{target.stem}.py", output_path=target.name
    )
    clean = nbformat.from_dict(_without_paths(notebook, _replacements(parameters)))
    atomic_write_text(target, nbformat.writes(clean) + "\n")


def _replacements(parameters: dict) -> list[tuple[re.Pattern, str]]:
    root, profile = Path(parameters["root"]), Path(parameters["profile"])
    named = {
        Path(tempfile.gettempdir()): "<tmp>",
        Path.home(): "~",
        Path(sys.base_prefix): "<python>",
        Path(sys.prefix): "<python>",
        cache_folder(): "<cache>",
        Path.cwd(): ".",
        REPOSITORY: ".",
        root.absolute(): root.name or ".",
        root.resolve(): root.name or ".",
    }
    if profile.is_absolute():
        named[profile] = profile.name
    paths = sorted(((str(path), name) for path, name in named.items()), key=lambda item: -len(item[0]))
    # A colour code may stand right before a path in a traceback; a letter there means another, longer path.
    before, after = r"(^|\x1b\[[0-9;]*m|[^\w.~])", r"(?![\w-])"
    return [
        (re.compile(before + re.escape(path) + after), rf"\g<1>{name}")
        for path, name in paths
        if len(path) > 1
    ]


def _without_paths(value, replacements: list[tuple[re.Pattern, str]]):
    """`value` with every path in its texts replaced; images, whose base64 may look like one, are left alone."""
    if isinstance(value, dict):
        return {
            key: item if key.startswith(("image/", "application/pdf")) else _without_paths(item, replacements)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_paths(item, replacements) for item in value]
    if isinstance(value, str):
        for pattern, name in replacements:
            value = pattern.sub(name, value)
    return value


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
