"""Files that are whole or absent: atomic writes, hashes, and reading JSON with a clear error.

Source: our choice [D].
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from enigma.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError, InputError):
    """No space left. The message names folder, free and expected bytes, in one line."""


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
    _sync(path.parent)
    return path


def atomic_write_text(path: Path | str, text: str) -> Path:
    """`atomic_write_bytes` for UTF-8 text; line ends are written as they are."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path | str, value) -> Path:
    """`value` as indented JSON, keys in their given order. NumPy numbers are allowed; NaN becomes null."""
    return atomic_write_text(
        path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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
        flush(new)
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
    _sync(path.parent)
    if os.path.lexists(old):
        remove(old)


def flush(folder: Path) -> None:
    """Put a folder on the disk, names as well as bytes: an unsynced folder is an empty one after a crash."""
    for inner in (*folder.rglob("*"), folder):
        _sync(inner)


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
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link itself."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _raise_if_full(error: BaseException, path: Path, size: int) -> None:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        free = shutil.disk_usage(path.parent).free
        raise DiskFull(
            f"{path.parent}: No space left: found {free:,} bytes free, expected {size:,} for {path.name}; "
            "free some and give the same command again; what was there before is intact"
        ) from error


def _sync(path: Path) -> None:
    # A rename is on the disk only once its folder is. Windows cannot open a folder, and needs no such thing.
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value):
    """Python's own types for NumPy's; NaN and infinities, which JSON does not know, become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def file_hash(path: Path | str) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, keys: Sequence[str] = ()) -> dict:
    """A JSON object that has `keys`. Raises InputError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if keys and not isinstance(value, dict):
            raise ValueError(f"found {type(value).__name__}")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"found no {missing[0]}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise InputError(
            f"{path}: {found}; expected a JSON object; delete the file and run the notebook again"
        ) from None
    return value
