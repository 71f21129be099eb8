"""Where things go: results/<profile>/, a run's own place, and results/reference/<profile>/, what is published.

    results/<profile>/
      pieces/       what has been done: see enigma/record/cache.py
      raw/          <stage>.json.gz, the rows that a stage's tables are made from
      tables/       <name>.csv and its sidecar <name>.json
      figures/      <name>.png, <name>.pdf and the sidecar <name>.json
      notebooks/    executed notebooks
      run.json      the run record: profile, commits, versions, machine, time and memory of each stage

A reference has the same folders without `pieces`, and `adapters` beside. Only maintainers write one,
with `enigma publish`; scripts/redraw.py draws its figures anew from its tables.
A sidecar holds caption, sha256, the stage, the hash of the profile's content, and the commits and versions that made
the rows. It holds no time and no path, so the same rows give the same bytes. Source: our choice [D].
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from filelock import FileLock, Timeout

from enigma.errors import InputError
from enigma.record.cache import Store, digest
from enigma.record.cells import csv_text, read_csv, text_columns
from enigma.record.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    file_hash,
    plain,
    read_json,
)
from enigma.record.provenance import made_now

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "results" / "reference"
RECORD = "run.json"
FIGURE, TABLE = "figures", "tables"  # folders, and kinds of what lies there
COLUMN = "column"  # below figures: their form for one column of a paper
DATELESS = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}
# What reading a sidecar relies on.
SIDECAR = {"file": str, "caption": str, "sha256": str, "stage": str, "profile_hash": str, "inputs": dict}


class Item(NamedTuple):
    """A figure or a table: the stage it belongs to, its kind (FIGURE or TABLE), its name and its sidecar."""

    stage: str
    kind: str
    name: str
    sidecar: dict


class Results:
    """The results of one profile below `root`. Nothing is written until something is saved.

    `read_only` is how a reference is opened: whatever writes raises InputError. Raises InputError for a name that is
    not made of letters, digits, `_` and `-`, and for any path that would leave `root`.
    """

    def __init__(self, profile, root: Path | str = "results", read_only: bool = False):
        _check_name("profile name", profile.name, r"[A-Za-z0-9_-]{1,100}")
        if not isinstance(root, str | Path) or not str(root):
            raise InputError(f"root: found {root!r}; expected the path of a folder; correct it")
        self.profile, self.root, self.read_only = profile, Path(root), read_only
        try:
            str(root).encode("utf-8")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(self.root / profile.name / TABLE)
        except (OSError, ValueError) as error:
            found = getattr(error, "strerror", None) or "no such name can be written"
            raise InputError(
                f"root: {str(root)!a:.60}: {found}; expected a folder's path; correct it"
            ) from None
        self.folder = self.root / profile.name
        if not read_only and self.folder.resolve().is_relative_to(REFERENCE):
            raise InputError(
                f"{self.folder}: found the published results; expected a folder of your own; choose another, or rename the profile"
            )
        self.figures, self.tables = self.folder / FIGURE, self.folder / TABLE
        self.notebooks, self.raw = self.folder / "notebooks", self.folder / "raw"
        self.pieces = self.folder / "pieces"

    @classmethod
    def reference(cls, profile, root: Path = REFERENCE) -> Results:
        """The published results of a profile, to be read."""
        return cls(profile, root, read_only=True)

    @property
    def store(self) -> Store:
        """What has been done. Reading it makes no folder. Raises InputError where it leads out of `root`."""
        self.check_folders()
        return Store(self.pieces)

    def lock(self, what: str = "stage") -> FileLock:
        """A context in which no other process runs a stage into this folder, or a whole "run". Reentrant within one process.

        The operating system ends it with the process that holds it: a dead process never blocks.
        """
        self._writable(self.folder / "any file")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{what}.lock", timeout=2, is_singleton=True)
            with lock:
                pass
        except Timeout:
            raise InputError(
                f"{self.folder}: found another process writing there; expected one run of a profile at a time; wait for "
                "it or stop it, or choose another folder with --results"
            ) from None
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); expected a writable results folder; choose another "
                "with --results"
            ) from None
        return lock

    def check_folders(self) -> None:
        """Raise InputError for a folder of these results that is a file, or a link that leaves `root`."""
        for folder in (self.folder, self.figures, self.tables, self.notebooks, self.raw, self.pieces):
            if folder.is_symlink() and not folder.resolve().is_relative_to(self.root.resolve()):
                raise InputError(f"{folder}: found a link out of results; expected a folder; remove the link")
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder}: found a file; expected a folder; move it away")

    # -- raw rows

    def write_raw(self, stage: str, rows: dict) -> Path:
        """Write raw/<stage>.json.gz: the rows that the stage's tables are made from, JSON values. Same rows, same bytes."""
        text = json.dumps(plain(rows), ensure_ascii=False, allow_nan=False)
        path = self._path(self.raw, stage, ".json.gz")
        return atomic_write_bytes(path, gzip.compress(text.encode("utf-8", "surrogatepass"), 9, mtime=0))

    def read_raw(self, stage: str) -> dict:
        """What `write_raw` wrote. Raises InputError where it is missing or damaged."""
        path = self._path(self.raw, stage, ".json.gz", write=False)
        try:
            return json.loads(gzip.decompress(path.read_bytes()).decode("utf-8", "surrogatepass"))
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            found = " ".join(str(error).split())
            raise InputError(
                f"{path}: {found}; expected the rows of stage {stage}; run that notebook again"
            ) from None

    # -- tables

    def write_table(
        self,
        name: str,
        frame: pd.DataFrame,
        caption: str,
        stage: str,
        inputs: Sequence[str] = (),
        made: Iterable[dict] = (),
    ) -> Path:
        """Write tables/<name>.csv and its sidecar. Returns the CSV's path.

        `stage`: for example "01_select". `inputs`: the tables it was made from. `made`: of each piece that it was made
        from, what made it (`Store.made`). An empty text is a missing value once it is read again.
        """
        path = self._path(self.tables, name, ".csv")
        atomic_write_text(path, csv_text(frame))
        more = {"rows": len(frame), "text_columns": text_columns(frame), "made": makers(made)}
        self._write_sidecar(path, caption, stage, inputs, more)
        return path

    def read_table(self, name: str) -> pd.DataFrame:
        """Read tables/<name>.csv. Raises InputError where it is missing, damaged, or was made from another profile."""
        path = self._path(self.tables, name, ".csv", write=False)
        if not self.has_table(name):
            raise InputError(f"{path}: is missing; expected it of an earlier stage; run that notebook")
        sidecar = self.sidecar(TABLE, name)
        if sidecar["profile_hash"] != self.profile.hash:
            raise InputError(
                f"{path}: was made with profile {sidecar['profile_hash']}; expected {self.profile.hash}, as it is now; run "
                f"again from notebook {sidecar['stage']}"
            )
        if not path.is_file() or file_hash(path) != sidecar["sha256"]:
            raise InputError(
                f"{path}: is missing or was changed; expected it as it was written; run {sidecar['stage']}"
            )
        try:
            return read_csv(path, sidecar.get("text_columns", []))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {str(error).splitlines()[0]}; expected a CSV table") from None

    def has_table(self, name: str) -> bool:
        """Whether tables/<name>.csv and its sidecar are there."""
        path = self._path(self.tables, name, ".csv", write=False)
        return path.is_file() and path.with_suffix(".json").is_file()

    # -- figures

    def save_figure(self, name: str, figure, caption: str, stage: str, inputs: Sequence[str] = ()) -> Path:
        """Write figures/<name>.png and .pdf and the sidecar; `inputs` names the tables it was drawn from.

        The files carry no date and no random id: the same figure gives the same bytes. Returns the PNG's path.
        """
        path = self._path(self.figures, name, ".png")
        atomic_write_bytes(path, _rendered(figure, "png", {"Software": None}))
        pdf = atomic_write_bytes(path.with_suffix(".pdf"), _rendered(figure, "pdf", DATELESS))
        finding = " ".join(figure.get_suptitle().split())
        more = {"finding": finding, "pdf": pdf.name, "pdf_sha256": file_hash(pdf)}
        self._write_sidecar(path, caption, stage, inputs, more)
        return path

    def save_column(self, name: str, figure) -> Path:
        """Write figures/column/<name>.png, 300 dots an inch, and .pdf, for a paper; no sidecar. Returns the PNG's path."""
        path = self._path(self.figures / COLUMN, name, ".png")
        atomic_write_bytes(path.with_suffix(".pdf"), _rendered(figure, "pdf", DATELESS))
        return atomic_write_bytes(path, _rendered(figure, "png", {"Software": None}, dots=300))

    # -- the run record

    def write_record(self, licences: dict) -> Path:
        """Begin run.json: profile, commit, versions, machine, licences, and no stage of another profile's content."""
        kept = self.read_record() if (self.folder / RECORD).is_file() else {}
        stages = kept.get("stages", {}) if kept.get("profile_hash") == self.profile.hash else {}
        record = {
            "profile": self.profile.name,
            "profile_hash": self.profile.hash,
            "profile_text": self.profile.text,
            **made_now(),
            "licences": licences,
            "stages": stages,
        }
        return atomic_write_json(self._writable(self.folder / RECORD), record)

    def record_stage(self, stage: str, status: str, seconds: float, peak_gb: float) -> None:
        """Add an attempt at a stage to run.json.

        An attempt after an unfinished one goes on with its work, so seconds are summed. One after a finished stage reads what
        is kept or makes it again, so the longer of the two says what the stage takes.
        """
        record = self.read_record()
        before = record["stages"].get(stage, {"status": "", "seconds": 0.0, "peak_memory_gb": 0.0})
        if before["status"] == "done":
            seconds = max(before["seconds"], seconds)
        else:
            seconds += before["seconds"]
        record["stages"][stage] = {
            "status": status,
            "seconds": round(seconds, 1),
            "peak_memory_gb": round(max(before["peak_memory_gb"], peak_gb), 2),
        }
        atomic_write_json(self._writable(self.folder / RECORD), record)

    def read_record(self) -> dict:
        """run.json. Raises InputError where it is missing or damaged."""
        record = read_json(self.folder / RECORD, ("stages", "profile_hash", "commit"))
        try:
            times = [
                float(one[key]) for one in record["stages"].values() for key in ("seconds", "peak_memory_gb")
            ]
            if not all(map(math.isfinite, times)):
                raise ValueError
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise InputError(
                f"{self.folder / RECORD}: found stages without their times; expected a run record; delete the file and run again"
            ) from None
        return record

    # -- what is there

    def sidecar(self, kind: str, name: str) -> dict:
        """The sidecar of a figure or table. Raises InputError where it is missing or damaged."""
        path = self._path(self.folder / kind, name, ".json", write=False)
        found = read_json(path, tuple(SIDECAR))
        suffix = {FIGURE: ".png", TABLE: ".csv"}[kind]
        wrong = [key for key, wanted in SIDECAR.items() if not isinstance(found[key], wanted)]
        if wrong or found["file"] != name + suffix or found.get("pdf", f"{name}.pdf") != f"{name}.pdf":
            raise InputError(
                f"{path}: found another {(wrong or ['file'])[0]}; expected the sidecar of {name}{suffix}; run its notebook again"
            )
        return found

    def fault(self, kind: str, name: str) -> str:
        """Why a figure or table is not what its sidecar says, or not of this profile; "" where it is."""
        try:
            side = self.sidecar(kind, name)
            faults = [
                f"{file} {'was changed' if (self.folder / kind / file).is_file() else 'is missing'}"
                for file, expected in (
                    (side["file"], side["sha256"]),
                    (side.get("pdf"), side.get("pdf_sha256")),
                )
                if file and _hash_of(self.folder / kind / file) != expected
            ]
            faults += [
                f"was made from another {table}"
                for table, hashed in side["inputs"].items()
                if self.input_hash(table) != hashed
            ]
        except InputError as error:
            return str(error)
        if side["profile_hash"] != self.profile.hash:
            faults.append("was made with another profile")
        return "; ".join(faults)

    def drop_figure(self, name: str) -> None:
        """Remove a figure that an earlier run drew and this one does not."""
        for suffix in (".png", ".pdf", ".json"):
            for folder in (self.figures, self.figures / COLUMN):
                self._path(folder, name, suffix).unlink(missing_ok=True)

    def catalogue(self) -> list[Item]:
        """Every figure and table in the order of the stages, figures first."""
        items = []
        for kind in (FIGURE, TABLE):
            for path in (self.folder / kind).glob("*.json"):
                data = self.sidecar(kind, path.stem)
                items.append(Item(data["stage"], kind, path.stem, data))
        return sorted(items, key=lambda item: (item.stage, item.kind != FIGURE, _natural(item.name)))

    def input_hash(self, name: str) -> str | None:
        """sha256 of the table `name`; None where there is none."""
        return _hash_of(self._path(self.tables, name, ".csv", write=False))

    # -- inside

    def _path(self, folder: Path, name: str, suffix: str, write: bool = True) -> Path:
        _check_name("name", name, r"[a-z0-9_]{1,100}")
        path = folder / (name + suffix)
        return self._writable(path) if write else path

    def _writable(self, path: Path) -> Path:
        if self.read_only:
            raise InputError(f"{path}: published results are only read; `enigma publish` writes them")
        # The file itself may be a link: a rename replaces the link. A folder on the way may not lead outside.
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise InputError(
                f"{path.parent}: found a link out of {self.root}; expected a folder; remove the link"
            )
        return path

    def _write_sidecar(self, path: Path, caption: str, stage: str, inputs: Sequence[str], more: dict) -> None:
        sidecar = {
            "file": path.name,
            "caption": caption,
            "sha256": file_hash(path),
            "stage": stage,
            "profile": self.profile.name,
            "profile_hash": self.profile.hash,
            "inputs": {name: self.input_hash(name) for name in inputs},
            **more,
        }
        atomic_write_json(path.with_suffix(".json"), sidecar)


def makers(made: Iterable[dict]) -> list[dict]:
    """What a sidecar says of `made`: the different commits, with their versions and machines, in a fixed order."""
    kept = [{key: one[key] for key in ("commit", "versions", "machine")} for one in made]
    return [one for _, one in sorted({digest(one): one for one in kept}.items())]


def figure_label(name: str) -> str:
    """ "Figure 3" of fig3_training."""
    return f"Figure {name.partition('_')[0].removeprefix('fig')}"


def _hash_of(path: Path) -> str | None:
    return file_hash(path) if path.is_file() else None


def _natural(name: str) -> list:
    """fig2 comes before fig10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _check_name(what: str, name: str, pattern: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise InputError(f"{what}: found {name!a:.200}; expected {pattern}; choose such a name")


def _rendered(figure, kind: str, metadata: dict, dots: int = 200) -> bytes:
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "enigma"}):
        figure.savefig(buffer, format=kind, dpi=dots, metadata=metadata)
    return buffer.getvalue()
