"""Progress: a bar where somebody watches, plain timed lines where nobody does. Both are tqdm's. Source: our choice [D]."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed}, {rate_fmt}, {remaining} left"


def track(
    iterable: Iterable[Item], description: str, total: int | None = None, unit: str = "it"
) -> Iterator[Item]:
    """Yield the items of `iterable` and show how far it is.

    `total` defaults to `len(iterable)` where there is one. In a notebook or terminal: a tqdm bar. Headless (see
    `headless`): lines on standard error, the first when the work begins, then at most one every 10 s, and one at
    the end, or where it stopped.
    """
    if headless():
        from tqdm import tqdm

        # One within another too: at another position than 0 tqdm would move a cursor that is not there.
        options = {"file": _Lines(), "bar_format": LINE, "position": 0}
        options |= {"mininterval": SECONDS_BETWEEN_LINES, "miniters": 1}
    else:
        from tqdm.auto import tqdm

        options = {}
    return iter(tqdm(iterable, desc=description, total=total, unit=unit, **options))


def headless() -> bool:
    """Whether nobody watches: ENIGMA_HEADLESS=1, or neither a terminal nor a notebook kernel.

    ENIGMA_HEADLESS=0 asks for the bar in any case. Papermill's kernel looks like a live one; the pipeline sets
    ENIGMA_HEADLESS=1 for it.
    """
    asked = os.environ.get("ENIGMA_HEADLESS", "")
    if asked:
        return asked != "0"
    return not sys.stderr.isatty() and "ipykernel" not in sys.modules


class _Lines:
    """Standard error for tqdm, which would write over its last line: each of its texts is a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


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
