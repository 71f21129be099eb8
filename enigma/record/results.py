"""Where results go: atomic writes, a sidecar beside every file, the run record, the index, citing.

    results/<profile>/
      README.md     every figure and table with its caption, the claims table first
      run.json      the run record: profile, commit, versions, machine, time and memory of each stage
      figures/      <name>.png, <name>.pdf and the sidecar <name>.json
      tables/       <name>.csv or <name>.yaml and the sidecar <name>.json
      notebooks/    executed notebooks
      runs/         one folder for each arm and seed

A sidecar holds caption, sha256, profile hash, commit, versions, seeds and the hashes of the tables the
file was made from. It holds no time and no path outside the results folder, so the same run writes the
same bytes. This module knows no other stage and imports nothing heavy. Source: our choice [D].
"""

from __future__ import annotations

import datetime
import errno
import functools
import hashlib
import html
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from enigma.errors import InputError
from enigma.record.licences import licences
from enigma.record.runlock import LOCK, hold

# Which notebook writes which table, in the order in which a reader meets them.
NOTEBOOK_OF = {
    "sufficiency": "01_select",
    "selection": "01_select",
    "selection_stability": "01_select",
    "test_retest": "01_select",
    "creation": "01_select",
    "created_principles": "01_select",
    "training": "02_train",
    "training_groups": "02_train",
    "training_checks": "02_train",
    "legibility": "02_train",
    "benchmarks": "03_benchmark",
    "benchmark_differences": "03_benchmark",
    "benchmark_items": "03_benchmark",
    "robustness": "03_benchmark",
    "adherence": "03_benchmark",
    "benchmark_speed": "03_benchmark",
    "geometry": "04_geometry",
    "directions": "04_geometry",
    "projection": "04_geometry",
    "setting": "05_report",
    "steadiness": "05_report",
    "prediction_points": "05_report",
    "prediction": "05_report",
    "claims": "05_report",
}
PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-dimension",
    "POT",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "lm-eval",
    "matplotlib",
    "seaborn",
    "pydantic",
)
SIDECAR = ("file", "caption", "sha256", "commit", "inputs")  # what reading one relies on
FIGURE, TABLE = "figures", "tables"  # folders, and kinds of what lies there
CLAIM_COLUMNS = ("id", "claim", "measure", "value", "verdict", "paper", "note")
PAPER_BIBTEX = """@article{seneque2025enigma,
  title         = {{ENIGMA}: The Geometry of Reasoning and Alignment in Large-Language Models},
  author        = {Seneque, Gareth and Ho, Lap-Hang and Saeedi, Nafise Erfanian and Molendijk, Jeffrey and
                   Kuperman, Ariel and Elson, Tim},
  journal       = {arXiv preprint arXiv:2510.11278},
  eprint        = {2510.11278},
  archivePrefix = {arXiv},
  year          = {2025}
}"""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Item(NamedTuple):
    """A figure or a table: the notebook it belongs to, its kind (FIGURE or TABLE), its name and its sidecar."""

    notebook: str
    kind: str
    name: str
    sidecar: dict


class DiskFull(OSError, InputError):
    """No space left. The message names folder, free and expected bytes, in one line."""


# ---------------------------------------------------------------- atomic writes


def atomic_write_bytes(path: Path | str, data: bytes) -> Path:
    """Write `data` so that a reader, or a run after a crash, sees the old file or the new one, never a part.

    A temporary file in the same folder is written, flushed to the disk and renamed. Missing parent folders
    are made. Raises OSError, DiskFull where there is no room, and then leaves the old file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _raise_if_full(error, path, len(data))
        raise
    _sync_folder(path.parent)
    return path


def atomic_write_text(path: Path | str, text: str) -> Path:
    """`atomic_write_bytes` for UTF-8 text; line ends are written as they are."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path | str, value) -> Path:
    """`value` as indented JSON, keys in their given order. NumPy numbers are allowed; NaN becomes null."""
    return atomic_write_text(
        path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty sibling folder; when the block ends well, it takes the name `path`.

    An exception removes the new folder and leaves the old one; DiskFull where there was no room. A folder cannot be
    replaced in one step: between two renames, microseconds apart, there is none of that name, so a reader sees the
    old, nothing or the new one, never a mixture.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = _temporary(path), _temporary(path)
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _sync_file(file)
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    except BaseException as error:
        written = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(new, ignore_errors=True)
        _raise_if_full(error, path, written)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, but: Sequence[Path] = ()) -> None:
    """Remove the temporary files and folders that killed writers left below `folder`, except inside the folders `but`.

    Nobody may be writing there.
    """
    for path in list(folder.rglob(".*.tmp")):
        if any(path.is_relative_to(kept) for kept in but):
            continue
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _raise_if_full(error: BaseException, path: Path, size: int) -> None:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        free = shutil.disk_usage(path.parent).free
        raise DiskFull(
            f"{path.parent}: No space left: found {free:,} bytes free, expected {size:,} for {path.name}; "
            "free some and give the same command again; what was there before is intact"
        ) from error


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # A rename is on the disk only once its folder is. Windows cannot open a folder, and needs no such thing.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value):
    """Python's own types for NumPy's; NaN and infinities, which JSON does not know, become None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


# ---------------------------------------------------------------- provenance


def file_hash(path: Path | str) -> str:
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def code_commit(file: Path | str = __file__) -> str:
    """The commit of the repository that tracks `file`, with `+dirty` where the tree differs from it.

    Changes under results/ do not count: a run must not make itself dirty. "unknown" outside git, without git, or
    where the code is installed inside somebody else's repository.
    """
    folder, name = Path(file).resolve().parent, Path(file).name
    if _git(folder, "ls-files", "--error-unmatch", name) is None:
        return "unknown"
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return "unknown"
    changes = _git(folder, "status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    return head + ("+dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def versions() -> dict[str, str]:
    """Python and the main packages, read from their metadata without importing them; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- cells


def escape_cell(text: str) -> str:
    """Text that a spreadsheet would run as a formula, or that begins with an apostrophe, gets a leading apostrophe.

    These are texts beginning with = + - @, tab or carriage return. Numbers, also those held as text ("-0.5"), are
    never touched. `unescape_cell` is the inverse, and `Results.read_table` applies it.
    """
    return "'" + text if text.startswith(_FORMULA_STARTS) and not _is_number(text) else text


def unescape_cell(text: str) -> str:
    """The text that `escape_cell` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def format_number(value: float) -> str:
    """Six significant digits; whole numbers (seeds, counts) in full; "" for NaN."""
    if math.isnan(value):
        return ""
    if value == 0 or (abs(value) < 1e15 and float(value).is_integer()):
        return str(int(value))
    return f"{value:.6g}"


def _cell(value) -> str:
    if isinstance(value, str):
        return escape_cell(value)
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float | np.floating):
        return format_number(float(value))
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return str(value)
    raise InputError(f"table cell: found {type(value).__name__}; expected text or a number; convert it first")


def _kind(column: pd.Series) -> str:
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    if pd.api.types.is_numeric_dtype(column):
        return "number"
    return "text" if any(isinstance(value, str) for value in column) else "number"


def csv_text(frame: pd.DataFrame) -> str:
    """`frame` as CSV without its index: escaped text, six digits, empty cells for missing values, "\\n" line ends."""
    rows = [[escape_cell(str(name)) for name in frame.columns]]
    rows += [
        [_cell(value) for value in row] for row in zip(*(frame[name] for name in frame.columns), strict=True)
    ]
    # The writers of pandas and csv leave a lone carriage return unquoted, and every reader then sees a new line.
    return "".join(",".join(map(_quoted, row)) + "\n" if row != [""] else '""\n' for row in rows)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[,"\r\n]', cell) else cell


def markdown_table(frame: pd.DataFrame) -> str:
    """`frame` as a Markdown table with four significant digits. Text is escaped: no HTML, no broken cells."""
    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[_markdown_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def claims_view(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims table for reading: the interval beside its value, no rule, no source."""
    values = [interval_text(*row) for row in zip(claims["value"], claims["low"], claims["high"], strict=True)]
    return claims.assign(value=values)[list(CLAIM_COLUMNS)].rename(columns={"value": "value [95% interval]"})


def interval_text(value: float, low: float, high: float) -> str:
    """ "0.12 [0.05, 0.19]" with three significant digits, "0.12" without an interval, "not measured" for NaN."""
    if math.isnan(value):
        return "not measured"
    number = f"{value:.3g}"
    return number if math.isnan(low) or math.isnan(high) else f"{number} [{low:.3g}, {high:.3g}]"


def _markdown_cell(value) -> str:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else format_number(float(f"{value:.4g}"))
    return _markdown_text(_cell(value) if not isinstance(value, str) else value).replace("|", "\\|")


def _markdown_text(text: str) -> str:
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(
        r"([\\`*_]|\](?=[(\[]))", r"\\\1", escaped
    )  # a bracket matters only where it could be a link's


# ---------------------------------------------------------------- results of one profile


class Results:
    """The results folder of one profile, `root/<profile.name>`. Nothing is written until something is saved.

    `profile` needs the attributes `name`, `hash`, `text` (its YAML) and `seeds`. Raises InputError for a name that
    is not made of letters, digits, `_` and `-`, and for any path that would leave `root`.
    """

    def __init__(self, profile, root: Path | str = "results"):
        _check_name("profile name", profile.name, r"[A-Za-z0-9_-]{1,100}")
        if not isinstance(root, str | Path) or not str(root):
            raise InputError(f"root: found {root!r}; expected the path of a folder; correct it")
        self.profile = profile
        self.root = Path(root)
        self.folder = self.root / profile.name
        self.figures = self.folder / "figures"
        self.tables = self.folder / "tables"
        self.notebooks = self.folder / "notebooks"
        self.runs = self.folder / "runs"

    # -- tables

    def write_table(self, name: str, frame: pd.DataFrame, caption: str, inputs: Sequence[str] = ()) -> Path:
        """Write tables/<name>.csv and its sidecar; `inputs` names the tables it was made from. Returns the CSV's path.

        An empty text is a missing value once it is read again.
        """
        path = self._path(self.tables, name, ".csv")
        atomic_write_text(path, csv_text(frame))
        columns = {str(column): _kind(frame[column]) for column in frame.columns}
        self._write_sidecar(path, caption, inputs, {"rows": len(frame), "columns": columns})
        return path

    def read_table(self, name: str) -> pd.DataFrame:
        """Read tables/<name>.csv. Text columns come back as the text that was written, whatever it looks like.

        Raises InputError, naming the notebook to run first, when the table is missing, and when it is no CSV.
        """
        path = self._existing(name, ".csv")
        sidecar = path.with_suffix(".json")
        columns = _read_json(sidecar).get("columns", {}) if sidecar.exists() else {}
        text = {column: str for column, kind in columns.items() if kind == "text"}
        try:
            frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""], low_memory=False)
        except (ValueError, UnicodeDecodeError) as error:
            found = str(error).splitlines()[0]
            raise InputError(
                f"{path}: {found}; expected a CSV table; run notebook {_notebook(name)} again"
            ) from None
        for column in frame.columns:
            if not pd.api.types.is_numeric_dtype(frame[column]):
                frame[column] = frame[column].map(
                    lambda cell: unescape_cell(cell) if isinstance(cell, str) else cell
                )
        return frame

    def has_table(self, name: str) -> bool:
        """Whether tables/<name>.csv exists."""
        return self._path(self.tables, name, ".csv").is_file()

    def write_yaml(self, name: str, value, caption: str, inputs: Sequence[str] = ()) -> Path:
        """Write tables/<name>.yaml and its sidecar; `value` is made of dicts, lists, text and numbers."""
        path = self._path(self.tables, name, ".yaml")
        atomic_write_text(
            path, yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True, width=1000)
        )
        self._write_sidecar(path, caption, inputs, {})
        return path

    def read_yaml(self, name: str):
        """Read tables/<name>.yaml. Raises InputError when it is missing (naming the notebook) or no YAML."""
        path = self._existing(name, ".yaml")
        try:
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            found = str(error).splitlines()[0]
            raise InputError(
                f"{path}: {found}; expected YAML; run notebook {_notebook(name)} again"
            ) from None

    def is_of_profile(self, name: str) -> bool:
        """Whether tables/<name> was made with this very profile text."""
        sidecar = self._path(self.tables, name, ".json")
        return sidecar.is_file() and _read_json(sidecar).get("profile_hash") == self.profile.hash

    def check_table(self, name: str) -> None:
        """InputError unless tables/<name> is there and was made with this very profile text."""
        sidecar = self._path(self.tables, name, ".json")
        if not sidecar.is_file():
            raise InputError(
                f"{sidecar.with_suffix('')}: found no such table; expected it from an earlier stage; "
                f"{_remedy(name)}"
            )
        if not self.is_of_profile(name):
            raise InputError(
                f"{sidecar}: found a table of another profile or an older text of it; expected hash "
                f"{self.profile.hash}; run again from {_notebook(name)}"
            )

    def check_folders(self) -> None:
        """InputError where a folder of these results is none, or is a link that leads out of `root`."""
        # Beside the runs' folders lie files of stages, all JSON.
        runs = sorted(path for path in self.runs.glob("*") if path.suffix != ".json")
        for folder in (self.folder, self.figures, self.tables, self.notebooks, self.runs, *runs):
            if os.path.lexists(folder) and not folder.is_dir():
                raise InputError(f"{folder}: found a file; expected a folder; remove it")
            self._inside(folder / "any file")

    # -- figures

    def save_figure(self, name: str, figure, caption: str, inputs: Sequence[str] = ()) -> Path:
        """Write figures/<name>.png and .pdf and the sidecar; `inputs` names the tables it was drawn from.

        The files carry no date and no random id: the same figure gives the same bytes. Returns the PNG's path.
        """
        path = self._path(self.figures, name, ".png")
        atomic_write_bytes(path, _rendered(figure, "png", {"Software": None}))
        dateless = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}
        pdf = atomic_write_bytes(path.with_suffix(".pdf"), _rendered(figure, "pdf", dateless))
        self._write_sidecar(path, caption, inputs, {"pdf": pdf.name, "pdf_sha256": file_hash(pdf)})
        return path

    # -- runs, record, index, citing

    def lock(self):
        """A context in which no other process runs a stage into this folder; see `enigma.record.runlock`."""
        return hold(self._inside(self.folder / LOCK))

    def run_folder(self, arm: str, seed: int) -> Path:
        """The folder runs/<arm>-s<seed>, made if missing."""
        _check_name("arm", arm, r"[A-Za-z0-9_]{1,100}")
        folder = self.runs / f"{arm}-s{int(seed)}"
        self._inside(folder / "any file")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @functools.cached_property
    def commit(self) -> str:
        """The commit of the code, asked once."""
        return code_commit()

    def write_record(self) -> Path:
        """Write run.json: profile, commit, day (UTC), versions, licences, machine, and what stages.json knows of every stage.

        stages.json, {stage: {seconds, peak_memory_gb}}, is written by the pipeline as stages end.
        """
        stages = self.folder / "stages.json"
        record = {
            "profile": self.profile.name,
            "profile_hash": self.profile.hash,
            "profile_text": self.profile.text,
            "commit": self.commit,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": versions(),
            "seeds": _seeds(self.profile),
            "licences": licences(self.profile, PACKAGES),
            "machine": {
                "platform": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "stages": _read_json(stages) if stages.exists() else {},
        }
        return atomic_write_json(self._inside(self.folder / "run.json"), record)

    def read_record(self, *keys: str) -> dict:
        """run.json. Raises InputError where it is missing or damaged, or without one of `keys`."""
        return _read_json(self.folder / "run.json", ("stages", *keys))

    def catalogue(self) -> list[Item]:
        """Every figure and table by notebook, figures first. A figure belongs to the last notebook that it needs."""
        order, items = list(NOTEBOOK_OF), []
        for kind, folder in ((FIGURE, self.figures), (TABLE, self.tables)):
            for path in folder.glob("*.json"):
                data, name = _read_json(path, SIDECAR), path.stem
                notebook = max(
                    (_notebook(table) for table in (data["inputs"] if kind == FIGURE else [name])),
                    default="other",
                )
                place = order.index(name) if name in order else len(order)
                # fig2 comes before fig10.
                natural = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
                items.append(((notebook, kind, place, natural), Item(notebook, kind, name, data)))
        return [item for _, item in sorted(items, key=lambda entry: entry[0])]

    def write_index(self) -> Path:
        """Write README.md: the claims table first, then every figure and table by notebook, captions from sidecars."""
        return atomic_write_text(self._inside(self.folder / "README.md"), self.index_text())

    def index_text(self) -> str:
        """The text of README.md."""
        lines = [f"# Results of profile `{self.profile.name}`", "", f"Profile hash `{self.profile.hash}`."]
        lines += self._claims_lines()
        for notebook, items in itertools.groupby(self.catalogue(), key=lambda item: item.notebook):
            lines += ["", f"## {notebook}"]
            for item in items:
                lines += ["", *_index_lines(item)]
        return "\n".join(lines) + "\n"

    def _claims_lines(self) -> list[str]:
        if not self.has_table("claims"):
            return []
        shown = claims_view(self.read_table("claims"))
        return ["", "## Claims", "", markdown_table(shown).rstrip(), "", "[All columns](tables/claims.csv)"]

    def cite(self, name: str) -> str:
        """What to write under a figure or table taken from here: caption, file, sha256, commit, BibTeX.

        `fig2` stands for fig2_training. Raises InputError naming what there is where no file, or more than one, has
        such a name.
        """
        _check_name("figure or table name", name, r"[a-z0-9_]{1,100}")
        items = self.catalogue()
        found = [item for item in items if item.name == name] or [
            item for item in items if item.name.startswith(f"{name}_")
        ]
        if len(found) == 1:
            return _citation(found[0], self.profile.name)
        there = ", ".join(sorted(item.name for item in found or items))
        raise InputError(
            f"{self.folder}: found {'no' if not found else len(found)} figure or table {name!r}; expected one "
            f"of {there or '(none yet)'}; correct the name, or run the notebooks first"
        )

    # -- inside

    def _path(self, folder: Path, name: str, suffix: str) -> Path:
        _check_name("name", name, r"[a-z0-9_]{1,100}")
        return self._inside(folder / (name + suffix))

    def _inside(self, path: Path) -> Path:
        # The file itself may be a link: a rename replaces the link. A folder on the way may not lead outside.
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise InputError(
                f"{path.parent}: found a link out of {self.root}; expected a folder; remove the link"
            )
        return path

    def _existing(self, name: str, suffix: str) -> Path:
        path = self._path(self.tables, name, suffix)
        if not path.is_file():
            raise InputError(
                f"{path}: found no such table; expected it from an earlier stage; {_remedy(name)}"
            )
        return path

    def _write_sidecar(self, path: Path, caption: str, inputs: Sequence[str], more: dict) -> None:
        sidecar = {
            "file": path.name,
            "caption": caption,
            "sha256": file_hash(path),
            **more,
            "profile": self.profile.name,
            "profile_hash": self.profile.hash,
            "commit": self.commit,
            "versions": versions(),
            "seeds": _seeds(self.profile),
            "inputs": {name: self.input_hash(name) for name in inputs},
        }
        atomic_write_json(path.with_suffix(".json"), sidecar)

    def input_hash(self, name: str) -> str | None:
        """sha256 of the table or YAML file `name`; None where there is none."""
        for suffix in (".csv", ".yaml"):
            path = self._path(self.tables, name, suffix)
            if path.is_file():
                return file_hash(path)
        return None


def _check_name(what: str, name: str, pattern: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise InputError(f"{what}: found {name!a:.200}; expected {pattern}; choose such a name")


def _notebook(table: str) -> str:
    return NOTEBOOK_OF.get(table, "other")


def _remedy(name: str) -> str:
    notebook = NOTEBOOK_OF.get(name)
    return f"run notebook {notebook} first" if notebook else f"known tables are {', '.join(NOTEBOOK_OF)}"


def _read_json(path: Path, keys: Sequence[str] = ()) -> dict:
    """A JSON object that has `keys`. Raises InputError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"found no {missing[0]}")
    except (OSError, ValueError, TypeError) as error:
        found = " ".join(str(error).split())
        raise InputError(
            f"{path}: {found}; expected a JSON object; delete the file and run the notebook again"
        ) from None
    return value


def _seeds(profile) -> dict:
    seeds = profile.seeds
    return seeds.model_dump() if hasattr(seeds, "model_dump") else dict(seeds)


def _rendered(figure, kind: str, metadata: dict) -> bytes:
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "enigma"}):
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def _index_lines(item: Item) -> list[str]:
    caption, name = _markdown_text(item.sidecar["caption"]), item.name
    if item.kind == TABLE:
        return [f"**[{name}](tables/{item.sidecar['file']})**. {caption}"]
    text = f"**[{name}](figures/{name}.png)** ([PDF](figures/{name}.pdf)). {caption}"
    return [text, "", f"![{name}](figures/{name}.png)"]


def _citation(item: Item, profile: str) -> str:
    sidecar = item.sidecar
    key = f"enigma_companion_{profile}_{item.name}".replace("-", "_")
    title = f"{{ENIGMA}} companion: {item.name}, profile {profile}".replace("_", r"\_")
    lines = [
        f"caption: {sidecar['caption']}",
        f"file:    {profile}/{item.kind}/{sidecar['file']}",
        f"sha256:  {sidecar['sha256']}",
        f"commit:  {sidecar['commit']}",
        "",
        f"@misc{{{key},",
        f"  title  = {{{title}}},",
        "  author = {{The ENIGMA companion contributors}},",
        f"  note   = {{Commit {sidecar['commit']}, sha256 {sidecar['sha256']}}}",
        "}",
        "",
        PAPER_BIBTEX,
    ]
    return "\n".join(lines)
