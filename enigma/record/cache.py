"""The one rule of what is already done.

A piece of work is kept under the hash of exactly what it depends on: the model, the data, its own part of the profile,
its seeds, and the version of the code that makes it (`VERSIONS`). It counts as done when that hash is the same *and*
every file that it wrote is whole. Anything else is made again: a changed ingredient, a missing file, an edited byte.

    <store>/<stage>/<name>/<key>/        the files of a finished piece, and piece.json, written last
    <store>/<stage>/<name>/<key>.work/   an unfinished piece that can go on, such as a training run's checkpoints

Two pieces of one name and other ingredients lie side by side: an edited profile loses nothing, and taking the edit back
finds the old piece again. No time stamp takes part. Source: our choice [D].
"""

import datetime
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from enigma.errors import InputError
from enigma.record.files import atomic_folder, atomic_write_json, file_hash, plain, read_json, remove
from enigma.record.provenance import made_now

# One number for each kind of work. Raise it when that work's rows would change; a test says when its code has changed.
VERSIONS = {"select": 1, "create": 1, "train": 1, "legibility": 1, "benchmark": 1, "geometry": 1}
MARKER = "piece.json"


@dataclass(frozen=True)
class Piece:
    """One piece of work. `ingredients`: a mapping of JSON values, all that the outcome depends on beside the code."""

    stage: str
    name: str
    ingredients: dict = field(hash=False)

    @property
    def recipe(self) -> dict:
        """The ingredients with the code's version, as they are hashed."""
        return plain({"version": VERSIONS[self.stage], **self.ingredients})

    @property
    def key(self) -> str:
        """First 16 hexadecimal characters of the SHA-256 of the recipe."""
        return digest(self.recipe)


def digest(value) -> str:
    """16 hexadecimal characters that name a JSON value; the order of keys does not matter."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class NotDone(InputError):
    """A piece that is needed is not there. The message says which, why, and what makes it."""


class Store:
    """The finished and unfinished pieces below one folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        made_now()  # the commit of the code that is loaded, should another be checked out meanwhile

    def place(self, piece: Piece) -> Path:
        """Where the piece lies once it is finished."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}", piece.name):
            raise InputError(
                f"{piece.stage}: found the name {piece.name!a:.60}; expected letters, digits, _ . and -"
            )
        return self.folder / piece.stage / piece.name / piece.key

    def work_folder(self, piece: Piece) -> Path:
        """Where an unfinished piece may keep what it needs to go on; made if missing."""
        folder = self.place(piece).with_suffix(".work")
        self._check_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for inner in folder.iterdir():
            self._check_own(inner)
        return folder

    def kept(self, piece: Piece) -> Path | None:
        """The folder of the finished piece; None where it has to be made."""
        return None if self.fault(piece) else self.place(piece)

    def need(self, piece: Piece) -> Path:
        """The folder of the finished piece. Raises NotDone where it has to be made first."""
        if why := self.why(piece):
            raise NotDone(
                f"{piece.stage} {piece.name}: {why}; expected it from an earlier stage; run that notebook, or "
                "`python -m enigma run`"
            )
        return self.place(piece)

    def get(self, piece: Piece, make: Callable[[Path], None]) -> Path:
        """The folder of the finished piece; unless it is kept, `make` fills an empty folder with its files first.

        One process makes a piece at a time; another that needs it waits. Raises what `make` raises, and then nothing
        is left but the piece's work folder.
        """
        if kept := self.kept(piece):
            return kept
        place = self.place(piece)
        self._check_own(place)
        with self._alone(place):
            if self.fault(piece):
                started = time.monotonic()
                for left in place.parent.glob(f".{place.name}.*.tmp"):  # of a writer that was killed
                    remove(left)
                with atomic_folder(place) as new:
                    make(new)
                    self._mark(piece, new, time.monotonic() - started)
                shutil.rmtree(place.with_suffix(".work"), ignore_errors=True)
        return place

    def rows(self, piece: Piece, make: Callable[[], object]):
        """The JSON value that the finished piece is; unless it is kept, `make()` gives it."""
        folder = self.get(piece, lambda folder: atomic_write_json(folder / "rows.json", make()))
        return read_json(folder / "rows.json")

    def taken(self, piece: Piece) -> bool:
        """Whether another process is making the piece just now."""
        lock = FileLock(self.place(piece).with_suffix(".lock"), timeout=0)
        try:
            if Path(lock.lock_file).exists():
                lock.acquire()
                lock.release()
        except Timeout:
            return True
        return False

    def made(self, piece: Piece) -> dict:
        """What made the piece: commit, versions, machine, day and seconds."""
        return _marker(self.need(piece))["made"]

    def fault(self, piece: Piece) -> str:
        """Why the piece is not done, in a few words; "" where it is."""
        place = self.place(piece)
        if not place.is_dir():
            return "not made yet"
        marker = _marker(place)
        if not marker:
            return "its record is missing or damaged"
        if marker["key"] != piece.key or digest(marker["recipe"]) != piece.key:
            return "its record is of other work"
        for name, expected in marker["files"].items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or file_hash(path) != expected["sha256"]:
                return f"{name} was changed or is damaged"
        added = sorted(_names(place) - marker["files"].keys() - {MARKER})
        return f"{added[0]} was added" if added else ""

    def why(self, piece: Piece) -> str:
        """`fault`, and where the piece was made before from other ingredients, which of them changed."""
        fault = self.fault(piece)
        if fault != "not made yet":
            return fault
        if self.place(piece).with_suffix(".work").is_dir():
            fault = "begun, not finished"
        others = [_marker(path) for path in self._siblings(piece)]
        changed = min(
            (changes(other["recipe"], piece.recipe) for other in others if other), key=len, default=[]
        )
        return f"{fault}; changed since it was last made: {', '.join(changed)}" if changed else fault

    def _siblings(self, piece: Piece) -> list[Path]:
        parent = self.place(piece).parent
        return [path for path in sorted(parent.glob("*")) if re.fullmatch("[0-9a-f]{16}", path.name)]

    def _mark(self, piece: Piece, folder: Path, seconds: float) -> None:
        files = {
            name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
            for name in sorted(_names(folder))
        }
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        made = {**made_now(), "day": today, "seconds": round(seconds, 2)}
        marker = {"stage": piece.stage, "name": piece.name, "key": piece.key, "recipe": piece.recipe}
        atomic_write_json(folder / MARKER, {**marker, "files": files, "made": made})

    def _check_own(self, path: Path) -> None:
        """InputError for a link that leads out of the store: what is written or removed there is somebody else's."""
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{path}: found a link out of {self.folder}; expected a folder; remove the link")

    @contextmanager
    def _alone(self, place: Path) -> Iterator[None]:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(place.with_suffix(".lock"), timeout=24 * 3600):
                yield
        except Timeout:
            raise InputError(f"{place}: another process has been making it for a day; stop it") from None


def _marker(folder: Path) -> dict:
    """piece.json of a folder; empty where there is none, or a damaged one."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = {"key", "recipe", "files", "made"} <= marker.keys()
        whole &= all({"bytes", "sha256"} <= file.keys() for file in marker["files"].values())
        return marker if whole & ({"commit", "versions", "machine"} <= marker["made"].keys()) else {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def changes(before, now, key: str = "") -> list[str]:
    """What differs between two recipes, as "trainer.learning_rate 0.001 -> 0.002", at most four entries."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = []
        for name in sorted(before.keys() | now.keys()):
            inner = f"{key}.{name}".lstrip(".")
            known = name in before and name in now
            parts += changes(before[name], now[name], inner) if known else [inner]
        return parts if len(parts) <= 4 else [*parts[:4], f"and {len(parts) - 4} more"]
    if before == now:
        return []
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return [key]
    return [f"{key} {str(before)[:24]} -> {str(now)[:24]}"]
