"""Progress: a bar where somebody watches, plain timed lines where nobody does.

tqdm redraws its bar many times a second, which floods the log of a headless notebook. Source: our choice [D].
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(
    iterable: Iterable[Item], description: str, total: int | None = None, unit: str = "it"
) -> Iterator[Item]:
    """Yield the items of `iterable` and show how far it is.

    `total` defaults to `len(iterable)` where there is one. In a notebook or terminal: a tqdm bar. Headless (see
    `headless`): lines on standard error, the first when the work begins, then at most one every 10 s, and one at
    the end, each with the time used, the rate and, where the total is known, the time left. Leaving the loop
    early, by break or exception, prints where it stopped.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if headless():
        return _lines(iterable, description, total, unit)
    from tqdm.auto import tqdm

    return iter(tqdm(iterable, desc=description, total=total, unit=unit))


def headless() -> bool:
    """Whether nobody watches: ENIGMA_HEADLESS=1, or neither a terminal nor a notebook kernel.

    ENIGMA_HEADLESS=0 asks for the bar in any case. Papermill's kernel looks like a live one; the pipeline sets
    ENIGMA_HEADLESS=1 for it.
    """
    asked = os.environ.get("ENIGMA_HEADLESS", "")
    if asked:
        return asked != "0"
    return not sys.stderr.isatty() and "ipykernel" not in sys.modules


def _lines(iterable: Iterable[Item], description: str, total: int | None, unit: str) -> Iterator[Item]:
    start = shown = time.monotonic()
    done, whole = 0, False
    _print(f"{description}: start" + (f", {total} {unit}" if total is not None else ""))
    try:
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN_LINES and done != total:
                shown = now
                _print(progress_line(description, done, total, now - start, unit))
        whole = True
    finally:
        end = "done" if whole else "stopped"
        _print(progress_line(description, done, total, time.monotonic() - start, unit) + f", {end}")


def progress_line(description: str, done: int, total: int | None, seconds: float, unit: str) -> str:
    """One line: done, total, share, time used, rate, time left (where the total is known and not yet reached)."""
    share = f"/{total} ({100 * done / total:.0f}%)" if total else ""
    line = f"{description}: {done}{share} {unit}, {clock(seconds)}"
    return line + pace(done, total, done / seconds if seconds > 0 else None, unit)


def pace(done: int, total: int | None, rate: float | None, unit: str) -> str:
    """ ", 2 it/s, 0:30 left"; "" without a rate. `rate` is in units per second; slow work is given in seconds per unit."""
    if not rate:
        return ""
    text = f", {rate:.3g} {unit}/s" if rate >= 1 else f", {1 / rate:.3g} s/{unit}"
    return f"{text}, {clock((total - done) / rate)} left" if total and done < total else text


class Patient:
    """A text stream whose reader may leave, as in `enigma run | head`: what follows is then written to nobody."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        with self._unread():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unread():
            self.stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
