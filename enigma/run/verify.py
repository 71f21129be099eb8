"""Do published tables follow from their rows, and is every file the one that was published?

Every stage's `tables` is run again on the rows in raw/, and each table compared: text and counts exactly, numbers to
`RELATIVE`, because six digits are written and another processor may round the last one. Nothing is written.
"""

import contextlib
import io
import json
import math

import pandas as pd

from enigma.errors import InputError
from enigma.record.cells import csv_text, written
from enigma.record.files import file_hash, plain, read_json
from enigma.record.results import FIGURE, TABLE, Results, makers
from enigma.stages import all_stages, create, short_name

RELATIVE = 1e-5
ABSOLUTE = 1e-9  # beside numbers that are zero but for rounding
MANIFEST = "manifest.json"
WITH_SIDECAR = (".csv", ".png", ".pdf", ".json")  # not the pool that `enigma create` writes


def verify(profile, results: Results) -> list[tuple[str, str]]:
    """(what, fault) of every table, figure and file; an empty fault where it holds. Never empty itself.

    Of a run of one's own the rows are compared with the pieces that they come from. A reference has its list of files.
    """
    found = [*_manifest(results), *_sidecars(results), *_shown(results)]
    frames: dict[str, pd.DataFrame] = {}
    # What `enigma create` wrote is no stage's, but a claim reads it; its pieces follow from its own rows.
    extra = [create] if create.kept(profile, results) else []
    for stage in [*extra, *all_stages()]:
        name = short_name(stage)
        try:
            raw = results.read_raw(name)
            made = stage.tables(profile, raw, frames)
            # A later stage reads them as they are written, with six digits.
            frames |= {table: written(frame) for table, frame in made.items()}
            if not results.read_only and stage is not create:
                found.append((f"rows of {name}", _rows_fault(profile, results, stage, raw)))
        except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            told = f"its rows are missing or damaged ({' '.join(str(error).split()):.160})"
            found.append((f"stage {name}", told))
        for table, caption in stage.CAPTIONS.items():
            found.append((f"table {table}", _table_fault(results, table, caption, frames.get(table))))
    return found


def _rows_fault(profile, results: Results, stage, raw: dict) -> str:
    """Whether a run's rows are those of its pieces. Nothing is measured: every piece has to be there."""
    store = results.store
    for piece in stage.pieces(profile, store):
        if why := store.why(piece):
            return f"{piece.name}: {why}"
    with contextlib.redirect_stderr(io.StringIO()):  # its progress
        again = json.loads(json.dumps(plain(stage.measure(profile, store)), ensure_ascii=False))
    if again != raw:
        return "are not those that its pieces hold"
    made = plain(makers(store.made(piece) for piece in stage.pieces(profile, store)))
    whole = [name for name in stage.CAPTIONS if not results.fault(TABLE, name)]
    other = [name for name in whole if results.sidecar(TABLE, name).get("made") != made]
    return f"were not made by what the sidecar of {other[0]} names" if other else ""


def _table_fault(results: Results, name: str, caption: str, expected: pd.DataFrame | None) -> str:
    path = results.tables / f"{name}.csv"
    if not path.is_file():
        return "missing"
    if not path.with_suffix(".json").is_file():
        return "its sidecar is missing"
    if expected is None:
        return "cannot be made again"
    with contextlib.suppress(InputError):  # of a sidecar that is damaged, which is named by itself
        if not results.read_only and results.sidecar(TABLE, name)["caption"] != caption:
            return "its caption was changed"
    try:
        found = _cells(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        return "holds no table"
    differs = cell_differences(found, _cells(csv_text(expected)))
    return f"{len(differs)} cells differ from its rows, first {differs[0]}" if differs else ""


def _cells(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def cell_differences(found: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """One text for each cell of two tables (text) that does not agree, or for columns or rows that do not match."""
    if list(found) != list(expected):
        return [f"columns {', '.join(found)}; expected {', '.join(expected)}"]
    if len(found) != len(expected):
        return [f"{len(found)} rows; expected {len(expected)}"]
    return [
        f"row {row + 1}, {column}: {a or '(empty)'}; expected {b or '(empty)'}"
        for column in found
        for row, (a, b) in enumerate(zip(found[column], expected[column], strict=True))
        if not _close(a, b)
    ]


def _close(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except ValueError:
        return False


def _sidecars(results: Results) -> list[tuple[str, str]]:
    """Figures and tables against their sidecars, and figures against the tables that they were drawn from."""
    found = []
    for kind, what in ((FIGURE, "figure"), (TABLE, "sidecar of table")):
        files = sorted(path for path in (results.folder / kind).glob("*") if path.suffix in WITH_SIDECAR)
        found += [
            (f"{what} {name}", results.fault(kind, name)) for name in dict.fromkeys(p.stem for p in files)
        ]
    return found


def _shown(results: Results) -> list[tuple[str, str]]:
    """Figures that a notebook shows and that are not there."""
    found = []
    for path in sorted(results.notebooks.glob("*.ipynb")):
        try:
            outputs = [one for cell in read_json(path)["cells"] for one in cell.get("outputs", ())]
            names = [one["metadata"]["figure"] for one in outputs if "figure" in one.get("metadata", {})]
        except (InputError, LookupError, TypeError, AttributeError):
            found.append((f"notebook {path.name}", "is damaged"))
            continue
        gone = [name for name in names if not (results.figures / f"{name}.json").is_file()]
        found += [(f"figure {name}", f"is missing, and {path.name} shows it") for name in gone]
    return found


def _manifest(results: Results) -> list[tuple[str, str]]:
    """Every published file against the list that was published with it; a run of one's own has no such list."""
    if not results.read_only:
        return []
    path = results.folder / MANIFEST
    if not path.is_file():
        return [(MANIFEST, "missing")]
    try:
        listed = dict(read_json(path))
    except (InputError, ValueError, TypeError):
        return [(MANIFEST, "is no list of files")]
    there = {p.relative_to(results.folder).as_posix() for p in results.folder.rglob("*") if p.is_file()} - {
        MANIFEST
    }
    faults = [f"{name} is not listed" for name in sorted(there - listed.keys())]
    faults += [f"{name} is missing" for name in sorted(listed.keys() - there)]
    faults += [
        f"{name} was changed"
        for name in sorted(there & listed.keys())
        if file_hash(results.folder / name) != listed[name]
    ]
    return [(MANIFEST, "; ".join(faults))]
