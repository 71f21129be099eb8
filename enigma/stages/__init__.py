"""The stages: what a notebook calls. Each module here is one stage, or a part of one, and has the same four things:

    NAME               its notebook, for example "01_select"
    CAPTIONS           {table: caption} of every table that it writes
    pieces(profile, store)          what its rows are made from, as `enigma.record.cache.Piece`; raises NotDone where an
                                    earlier stage has to run first
    measure(profile, store)         raw rows, JSON values; makes the pieces that are not kept, and needs a model for those
    tables(profile, raw, earlier)   {name: DataFrame}, pure: the rows of this stage, and the tables of earlier ones

`run` puts them together. So a table follows from rows that are kept, and can be made again from them alone.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import pandas as pd

from enigma.record.cache import NotDone, Piece, Store
from enigma.record.progress import track
from enigma.stages import jobs

ORDER = ("select", "train", "legibility", "benchmark", "geometry", "claims")


def all_stages() -> list[ModuleType]:
    """The stages' modules in the order of their notebooks."""
    return [importlib.import_module(f"enigma.stages.{name}") for name in ORDER]


def run(stage: ModuleType, profile, results) -> dict[str, pd.DataFrame]:
    """Measure a stage, write its raw rows and its tables, and return the tables.

    Raises NotDone where an earlier stage has to run first, InputError for bad input.
    """
    with results.lock():
        store = results.store
        with jobs.helpers(profile, results.root, short_name(stage), lambda: _open(stage, profile, store)):
            raw = stage.measure(profile, store)
        results.write_raw(short_name(stage), raw)
        made = [store.made(piece) for piece in stage.pieces(profile, store)]
        frames = stage.tables(profile, raw, Earlier(results))
        for name, frame in frames.items():
            results.write_table(name, frame, stage.CAPTIONS[name], stage.NAME, made=made)
    return frames


def _open(stage: ModuleType, profile, store: Store) -> int:
    """How many pieces are still to be made; 0 where an earlier stage has to run first, as `measure` will say."""
    try:
        return sum(store.kept(piece) is None for piece in stage.pieces(profile, store))
    except NotDone:
        return 0


def made(
    get: Callable, store: Store, work: list[tuple[Piece, Callable]], description: str, unit: str
) -> list:
    """What `get`, `store.get` or `store.rows`, gives for each piece of `work` and what makes it, in their order.

    Processes side by side share the work: each begins at its own place, and leaves what another is making to that one
    until the rest is done.
    """
    first, found = int(jobs.place() * len(work)), {}
    for i in track([*range(first, len(work)), *range(first)], description, unit=unit):
        if not store.taken(work[i][0]):
            found[i] = get(*work[i])
    return [found[i] if i in found else get(*one) for i, one in enumerate(work)]


def short_name(stage: ModuleType) -> str:
    """ "select" of the module enigma.stages.select."""
    return stage.__name__.rsplit(".", 1)[1]


class Earlier:
    """Tables that are there, by name, read when they are asked for. Raises KeyError for others."""

    def __init__(self, results):
        self.results = results

    def __getitem__(self, name: str) -> pd.DataFrame:
        if not self.results.has_table(name):
            raise KeyError(name)
        return self.results.read_table(name)
