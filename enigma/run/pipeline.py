"""The five notebooks, run one after the other into results/<profile>/.

The `.py` notebooks are the source: each is converted in memory, given its parameters, run by papermill in a kernel of
its own, and saved under results/<profile>/notebooks. The source is never touched. Every stage resumes by itself through
the store, so running again is safe. What each stage took goes into run.json.
"""

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from enigma.errors import SAFE_PATH, InputError
from enigma.llm.fetch import cache_folder
from enigma.profile import load_profile
from enigma.record.files import DiskFull, atomic_write_text, remove_leftovers
from enigma.record.progress import Patient, clock
from enigma.record.provenance import PACKAGES
from enigma.record.results import RECORD, REPOSITORY, Results
from enigma.run import costs, resources
from enigma.run.inputs import check_inputs
from enigma.run.licences import licences
from enigma.run.status import check_skipped
from enigma.stages import jobs

_PACKAGED = Path(__file__).resolve().parents[1] / "notebooks"  # where they are installed
NOTEBOOKS = _PACKAGED if _PACKAGED.is_dir() else REPOSITORY / "notebooks"
SMALLER = {"paper": "gpu", "gpu": "cpu", "study": "cpu", "cpu": "smoke"}
SAMPLE_SECONDS = 0.2
FULL = 2**20  # bytes; a disk with less left is full
# Of a user's own set-up, nothing that could change a run: start-up files, kernels, matplotlib's settings.
KERNEL = {
    "ENIGMA_HEADLESS": "1",
    "JUPYTER_NO_CONFIG": "1",
    "PYTHONSTARTUP": "",
    "PYTHONUTF8": "1",
    **SAFE_PATH,
}
SCRATCH = ("IPYTHONDIR", "JUPYTER_PATH", "JUPYTER_DATA_DIR", "MPLCONFIGDIR")  # an empty folder


class StageFailed(RuntimeError):
    """A notebook stopped. The message names stage, cell or peak memory, and where to look, in one line."""


def run(
    profile: str | Path,
    root: str | Path = "results",
    first: str | None = None,
    last: str | None = None,
    folder: Path = NOTEBOOKS,
) -> Results:
    """Run the notebooks in `folder` on a profile (name or path), stages `first` to `last`; return the results.

    `root` is where results/<profile> is made, relative to the working directory. Raises InputError before anything
    runs when the profile, the stage or a notebook's parameters are wrong, when disk or memory do not suffice, and when a
    stage that is skipped is not done; StageFailed when a notebook stops.
    """
    checked = load_profile(profile)
    results = Results(checked, root)
    _check_scratch()
    every = stage_paths(folder)
    begin = _position(every, first, "--from") if first else 0
    end = _position(every, last, "--to") if last else len(every) - 1
    if end < begin:
        raise InputError(
            f"--to: found {last!r}, before --from {first!r}; expected it or a later stage; correct it"
        )
    results.check_folders()
    if (results.folder / RECORD).is_file():
        results.read_record()
    check_inputs(checked)
    check_skipped(checked, results, [path.stem for path in every[:begin]])
    jobs.how()
    parameters = {"profile": str(profile), "root": str(root)}
    notebooks = {path.stem: _prepared(path, parameters) for path in every[begin : end + 1]}
    _check_room(checked, results)
    expected = costs.stage_minutes(checked)
    with results.lock("run"):
        with results.lock():  # each notebook's kernel takes it anew
            remove_leftovers(results.folder, but=[results.pieces])
            results.write_record(licences(checked, PACKAGES))
        with contextlib.redirect_stdout(Patient(sys.stdout)), contextlib.redirect_stderr(Patient(sys.stderr)):
            _run_stages(notebooks, parameters, results, expected)
    return results


def _run_stages(notebooks: dict, parameters: dict, results: Results, expected: dict[str, float]) -> None:
    started = time.monotonic()
    for done, (stage, notebook) in enumerate(notebooks.items()):
        left = sum(expected.get(name, 0.0) for name in list(notebooks)[done:])
        used = clock(time.monotonic() - started)
        about = f", about {clock(60 * left)} left if nothing is kept" if expected else ""
        print(f"== {stage} ({done + 1}/{len(notebooks)}): {used} so far{about}", file=sys.stderr, flush=True)
        _run_stage(stage, notebook, parameters, results)


def stage_paths(folder: Path = NOTEBOOKS) -> list[Path]:
    """The stages' source notebooks in order; the introduction (00) and the playground (06) are none."""
    aside = ("00", "06")
    paths = [path for path in sorted(folder.glob("[0-9][0-9]_*.py")) if not path.name.startswith(aside)]
    if not paths:
        raise InputError(
            f"{folder}: found no notebooks such as 01_select.py; expected the repository's notebooks folder; install with "
            "`pip install -e .` from a clone"
        )
    return paths


def _check_scratch() -> None:
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError(
            "TMPDIR: found no folder in which temporary files can be made; expected one; name it"
        ) from None


def _position(stages: list[Path], named: str, option: str) -> int:
    for position, path in enumerate(stages):
        number, _, name = path.stem.partition("_")
        if named in (path.stem, name, number, number.lstrip("0")):
            return position
    raise InputError(
        f"{option}: found {named!r}; expected one of {', '.join(path.stem for path in stages)}; correct it"
    )


def _check_room(profile, results: Results) -> None:
    """Raise InputError where the profile's estimate of disk, or of memory for all that is trained at once, is more than there is.

    What the results folder and the cache hold already counts as found: an earlier attempt may have left it.
    """
    size = costs.sizes(profile)
    beside = max(1, min(jobs.how().jobs, size.runs))
    memory = size.memory_gb and size.memory_gb * beside
    close = "close other programs" + (", lower --jobs" if beside > 1 else "")
    rooms = [("memory", "available", memory, resources.free_memory, close)]
    for place, setting in ((results.folder, "--results"), (cache_folder(), "ENIGMA_CACHE")):
        found = lambda place=place: resources.free_disk(place) + resources.size_on_disk(place)
        remedy = f"free some, name another folder with {setting}"
        rooms.append(("disk", f"free there ({setting})", size.disk_gb, found, remedy))
    for what, where, expected_gb, find, remedy in rooms:
        if expected_gb is not None and (found_gb := find() / 1e9) < expected_gb:
            raise InputError(
                f"{profile.name}: {what}: found {found_gb:.2f} GB {where}; expected about {expected_gb:.2f} GB; {remedy}, "
                f"or try {_smaller(profile)}"
            )


def _smaller(profile) -> str:
    smaller = SMALLER.get(profile.name)
    return f"the profile {smaller}" if smaller else "a smaller batch or fewer tokens"


# ---- one notebook --------------------------------------------------------------------------------------------------


def _prepared(path: Path, parameters: dict):
    """The notebook of a `.py` source, its parameters checked."""
    import jupytext
    from papermill.inspection import _infer_parameters  # what `papermill.inspect_notebook` asks of a file

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata.setdefault(
        "kernelspec", {"name": "python3", "language": "python", "display_name": "Python 3"}
    )
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])  # papermill expects them
    known = [parameter.name for parameter in _infer_parameters(notebook, name="python3", language="python")]
    for name in parameters:
        if name not in known:
            raise InputError(
                f"{path.name}: unknown parameter {name!r}; expected one of {', '.join(known) or '(none)'}, the names in its "
                "cell tagged parameters"
            )
    return notebook


def _run_stage(stage: str, notebook, parameters: dict, results: Results) -> None:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target, started, status = results.notebooks / f"{stage}.ipynb", time.monotonic(), "failed"
    with tempfile.TemporaryDirectory() as scratch, _peak_memory() as peak:
        raw = Path(scratch) / target.name
        try:
            _execute(notebook, raw, parameters, Path(scratch))
            status = "done"
        except DeadKernelError:
            raise StageFailed(
                f"{stage}: the kernel died with {peak[0]:.1f} GB in use at its peak, most likely for want of memory; try "
                f"{_smaller(results.profile)}, or a machine with more"
            ) from None
        except PapermillExecutionError as error:
            if error.ename in ("InputError", "DiskFull", "NotDone"):
                raise InputError(f"{stage}: {error.evalue}") from None
            said = _plain(f"{error.ename}: {error.evalue}")
            raise StageFailed(
                f"{stage}: cell {error.exec_count} stopped with {said:.200}; {_full_disk(results)}the whole traceback is in {target}"
            ) from None
        except RuntimeError as error:  # the library's word for a kernel that did not start
            raise StageFailed(f"{stage}: {_plain(error)}; the same command tries again") from None
        except OSError as error:  # papermill writes its own copy to the temporary folder
            free = resources.free_disk(raw)
            raise StageFailed(
                f"{stage}: {scratch}: {error.strerror or error}; found {free:,} bytes free there; expected room for a notebook; "
                "free some, or set TMPDIR"
            ) from error
        finally:
            seconds = time.monotonic() - started
            # On a full disk the failure itself is reported, not that its record does not fit.
            with contextlib.nullcontext() if status == "done" else contextlib.suppress(DiskFull):
                _save(raw, target, _replacements(parameters, results.profile), whole=status != "done")
                results.record_stage(stage, status, seconds, peak[0])
    print(f"== {stage}: {clock(seconds)}, peak memory {peak[0]:.1f} GB", file=sys.stderr, flush=True)


def _execute(notebook, raw: Path, parameters: dict, scratch: Path) -> None:
    import papermill

    own = KERNEL | dict.fromkeys(SCRATCH, str(scratch))
    with _environment(own), _no_kernel_left():
        papermill.execute_notebook(
            notebook,
            str(raw).replace("{", "{{").replace("}", "}}"),  # papermill takes it for a pattern
            parameters=parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,
            # It warns of its own socket and of its end; and modules that lie in the working directory are nobody's.
            extra_arguments=["--IPKernelApp.log_level=50", "--InteractiveShellApp.ignore_cwd=True"],
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )


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


def _full_disk(results: Results) -> str:
    """What to add to the report of a failure where the disk is full; every library says it in other words."""
    if (free := resources.free_disk(results.folder)) >= FULL:
        return ""
    return (
        f"{results.folder}: the disk is full: found {free:,} bytes free, expected more; free some and go on; "
    )


def _plain(text) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
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
                with contextlib.suppress(psutil.Error):  # it may have just ended
                    total += 0 if child.pid in before else child.memory_info().rss
            peak[0] = max(peak[0], total / 1e9)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


# ---- executed notebooks carry no path of this machine ---------------------------------------------------------------


def _save(raw: Path, target: Path, replacements: list, whole: bool) -> None:
    """Keep the executed notebook; of a finished one not the progress lines, which the terminal had."""
    import nbformat

    if not raw.is_file() or not raw.stat().st_size:
        return
    notebook = nbformat.read(raw, as_version=4)
    notebook.metadata.get("papermill", {}).update(
        input_path=f"notebooks/{target.stem}.py", output_path=target.name
    )
    for cell in notebook.cells:
        if cell.cell_type == "code" and not whole:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    clean = nbformat.from_dict(_without_paths(notebook, replacements))
    atomic_write_text(target, nbformat.writes(clean) + "\n")


def _replacements(parameters: dict, checked) -> list[tuple[re.Pattern, str]]:
    root, profile = Path(parameters["root"]), Path(parameters["profile"])
    named = {
        Path(tempfile.gettempdir()): "<tmp>",
        Path(os.path.expanduser("~")): "~",
        Path(sys.base_prefix): "<python>",
        Path(sys.prefix): "<python>",
        cache_folder(): "<cache>",
        Path.cwd(): ".",
        REPOSITORY: ".",
        root.absolute(): root.name or ".",
        root.resolve(): root.name or ".",
    }
    named |= {Path(path): Path(path).name for path in (profile, *checked.paths()) if os.path.isabs(path)}
    if data := os.environ.get("ENIGMA_DATA"):
        named[Path(data).absolute()] = "<data>"
    plain = {str(path): name for path, name in named.items()}
    # In a cell's source a path stands as Python writes it.
    written = {path.encode("unicode_escape").decode(): name for path, name in plain.items()}
    paths = sorted((plain | written).items(), key=lambda item: -len(item[0]))
    # A colour code may stand right before a path in a traceback; a letter there means another, longer path.
    before, after = r"(^|\x1b\[[0-9;]*m|[^\w.~])", r"(?![\w-])"
    return [(re.compile(before + re.escape(path) + after), name) for path, name in paths if len(path) > 1]


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
            value = pattern.sub(lambda found, name=name: found[1] + name, value)
    return value
