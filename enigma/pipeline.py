"""The five notebooks, run one after the other into results/<profile>/.

The `.py` notebooks are the source: each is converted in memory, given its parameters, run by papermill in a kernel of
its own, and saved under results/<profile>/notebooks. The source is never touched. Every stage resumes by itself, so
running again is safe. Seconds and peak memory of each stage go to results/<profile>/stages.json.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enigma.assets import cache_folder
from enigma.errors import InputError
from enigma.profile import Profile, load_profile
from enigma.results import Results, atomic_write_json, atomic_write_text

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPOSITORY / "notebooks"
SMALLER = {"paper": "gpu", "gpu": "cpu", "cpu": "smoke"}
SAMPLE_SECONDS = 0.2


class StageFailed(RuntimeError):
    """A notebook stopped. The message names stage, cell or peak memory, and where to look, in one line."""


def run(profile: str | Path, root: str | Path = "results", first: str | None = None, folder: Path = NOTEBOOKS) -> Path:
    """Run the notebooks in `folder` on a profile (name or path), from stage `first` on; return the results folder.

    `root` is where results/<profile> is made, relative to the working directory. Raises InputError before anything
    runs when the profile, the stage or a notebook's parameters are wrong, and StageFailed when a notebook stops.
    """
    checked = load_profile(profile)
    results = Results(checked, root)
    stages = _from(stage_paths(folder), first)
    parameters = {"profile": str(profile), "root": str(root)}
    notebooks = {path.stem: _prepared(path, parameters) for path in stages}
    for stage, notebook in notebooks.items():
        _run_stage(stage, notebook, parameters, results)
    # Once more, now that the last stage's own cost is known.
    results.write_record()
    return results.folder


def stage_paths(folder: Path = NOTEBOOKS) -> list[Path]:
    """The stages' source notebooks in order."""
    paths = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not paths:
        raise InputError(f"{folder}: found no notebooks such as 01_select.py; expected the repository's notebooks "
                         "folder; install with `pip install -e .` from a clone")
    return paths


def _from(stages: list[Path], first: str | None) -> list[Path]:
    if first is None:
        return stages
    for position, path in enumerate(stages):
        number, _, name = path.stem.partition("_")
        if first in (path.stem, name, number, number.lstrip("0")):
            return stages[position:]
    raise InputError(f"--from: found {first!r}; expected one of {', '.join(path.stem for path in stages)}")


# ---- one notebook --------------------------------------------------------------------------------------------------


def _prepared(path: Path, parameters: dict):
    """The notebook of a `.py` source, its parameters checked."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    known = _parameters(path, notebook)
    for name in parameters:
        if name not in known:
            raise InputError(f"{path.name}: unknown parameter {name!r}; expected one of {', '.join(known) or '(none)'}, "
                             "the names in its cell tagged parameters")
    return notebook


def _parameters(path: Path, notebook) -> list[str]:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{path.name}: found {len(cells)} cells tagged parameters; expected exactly one")
    statements = [node for node in ast.parse(cells[0].source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [target for node in statements for target in getattr(node, "targets", None) or [node.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _run_stage(stage: str, notebook, parameters: dict, results: Results) -> None:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    print(f"== {stage}", file=sys.stderr, flush=True)
    target, started, status = results.notebooks / f"{stage}.ipynb", time.monotonic(), "failed"
    with tempfile.TemporaryDirectory() as scratch, _peak_memory() as peak:
        raw = Path(scratch) / target.name
        try:
            _execute(notebook, raw, parameters)
            status = "done"
        except DeadKernelError:
            raise StageFailed(_dead_kernel(stage, results.profile, peak[0])) from None
        except PapermillExecutionError as error:
            if error.ename == "InputError":
                raise InputError(f"{stage}: {error.evalue}") from None
            raise StageFailed(f"{stage}: cell {error.exec_count} stopped with {error.ename}: {_short(error.evalue)}; "
                              f"the whole traceback is in {target}") from None
        finally:
            seconds = time.monotonic() - started
            _save(raw, target, parameters)
            _record(results, stage, seconds, peak[0], status)
    print(f"== {stage}: {seconds:.0f} s, peak memory {peak[0]:.1f} GB", file=sys.stderr, flush=True)


def _execute(notebook, raw: Path, parameters: dict) -> None:
    import papermill

    with _environment(ENIGMA_HEADLESS="1"):
        papermill.execute_notebook(
            notebook,
            str(raw),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )


def _dead_kernel(stage: str, profile: Profile, peak_gb: float) -> str:
    smaller = SMALLER.get(profile.name)
    advice = f"the profile {smaller}" if smaller else "a smaller batch or fewer tokens"
    return (f"{stage}: the kernel died with {peak_gb:.1f} GB in use at its peak, most likely for want of memory; "
            f"try {advice}, or a machine with more")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@contextmanager
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


def _record(results: Results, stage: str, seconds: float, peak_gb: float, status: str) -> None:
    """Add an attempt to stages.json. What was recorded for another profile text is dropped.

    `seconds` is the sum over attempts, because a later attempt only finishes what earlier ones left.
    """
    path = results.folder / "stages.json"
    stages = {name: entry for name, entry in _read_stages(path).items()
              if entry.get("profile_hash") == results.profile.hash}
    before = stages.get(stage, {"seconds": 0.0, "peak_memory_gb": 0.0, "attempts": 0})
    stages[stage] = {
        "seconds": round(before["seconds"] + seconds, 1),
        "peak_memory_gb": round(max(before["peak_memory_gb"], peak_gb), 2),
        "attempts": before["attempts"] + 1,
        "last_seconds": round(seconds, 1),
        "status": status,
        "profile_hash": results.profile.hash,
    }
    atomic_write_json(path, dict(sorted(stages.items())))


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
    notebook.metadata.get("papermill", {}).update(input_path=f"notebooks/{target.stem}.py", output_path=target.name)
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
    return [(re.compile(before + re.escape(path) + after), rf"\g<1>{name}") for path, name in paths if len(path) > 1]


def _without_paths(value, replacements: list[tuple[re.Pattern, str]]):
    """`value` with every path in its texts replaced; images, whose base64 may look like one, are left alone."""
    if isinstance(value, dict):
        return {key: item if key.startswith(("image/", "application/pdf")) else _without_paths(item, replacements)
                for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, replacements) for item in value]
    if isinstance(value, str):
        for pattern, name in replacements:
            value = pattern.sub(name, value)
    return value


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= limit else f"{text[:limit - 3]}..."
