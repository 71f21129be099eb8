"""One writer at a time: the lock of a results folder.

It is an operating-system lock on the file `.run.lock`, which ends with the process that holds it: a dead process never
blocks. `enigma run` holds it from its first stage to its last. Its kernels inherit the open file, so that the lock also
lasts while a kernel outlives a killed run. A stage that is called by hand, in a notebook say, holds it while the stage
runs (`one_writer`); figures and tables that a notebook writes between stages are single atomic files and need none.
Each training run's folder has a lock of its own, so that several jobs can train runs of one profile side by side.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import lock_descriptor

from enigma.errors import InputError

LOCK = ".run.lock"
SHARED = "ENIGMA_RUN_LOCK"  # in the environment of the holder and of its kernels: the lock's path
PATIENCE = 2.0  # seconds; the kernel of a killed run ends itself within one


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int | None]:
    """Hold the lock file `path`; yields its descriptor for child processes to inherit, None where it is held already.

    Raises InputError that names the holder's process, host and beginning, or why the file cannot be written.
    """
    path = path.absolute()
    if os.environ.get(SHARED) == str(path):
        yield None
        return
    descriptor, outer = _opened(path), os.environ.get(SHARED)
    try:
        _wait_for(descriptor, path)
        os.environ[SHARED] = str(path)
        yield descriptor
    finally:
        os.environ.pop(SHARED, None) if outer is None else os.environ.__setitem__(SHARED, outer)
        os.close(descriptor)


def one_writer(stage: Callable) -> Callable:
    """Decorates a stage, run(profile, results): it holds the lock of its results unless its pipeline does."""

    @functools.wraps(stage)
    def alone(profile, results):
        with results.lock():
            return stage(profile, results)

    return alone


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link here would have its target written.
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be opened ({error.strerror}); expected a writable results folder; choose "
            "another with --results"
        ) from None


def _wait_for(descriptor: int, path: Path) -> None:
    """Take the lock and write into its file who has it."""
    patient_until = time.monotonic() + PATIENCE
    while not lock_descriptor(descriptor, blocking=False):
        if time.monotonic() > patient_until:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            raise InputError(
                f"{path.parent}: found {holder} writing there; expected one run of a profile at a time; "
                "wait for it or stop it, or choose another folder with --results"
            )
        time.sleep(0.1)
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):  # a full disk, which the run's first file will tell
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since},".encode(), 0)
