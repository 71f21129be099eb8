"""Do the committed results follow from their raw material, and does a rerun agree with them?

`recomputed` makes every table again that needs neither a model nor a clock: from the scores, steps and completions
under runs/, and from other tables. `check` compares them, and every rendered text, with what lies in the results folder,
and every checksum with its file. `compare` sets the tables of a rerun beside the committed ones. Nothing is written.

Tolerances, all of them:
- Checksums, texts, counts, truth values: exact.
- Recomputed numbers: `RELATIVE`. Six digits are written, and another processor's rounding may move the last one.
- A rerun's trained or sampled numbers: their intervals overlap. Another processor's rounding changes a sampled token, and
  with it everything after; the same machine gives the same bytes. A number without an interval (a step of a curve, an
  item, a p-value) is not judged by itself: it goes into one that has an interval.
- A rerun's seconds and memory (`CLOCKED`): within a factor of `FACTOR`; they are of a machine and its load.

Source: our choice [D].
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from enigma.data.principles import load_pool
from enigma.errors import InputError
from enigma.profile import BASE, run_name
from enigma.record import crate, page
from enigma.record.results import FIGURE, TABLE, Results, csv_text, file_hash
from enigma.stages import claims, prediction, setting, steadiness

RELATIVE = 1e-5
ABSOLUTE = 1e-9  # beside numbers that are zero but for rounding
CLOCKED = ("seconds", "items_per_second", "peak_memory_gb")
FACTOR = 30.0
COUNTS = ("seed", "step", "steps", "layer", "item", "items", "k", "n", "questions", "completions")
PROSE = ("note",)  # text that holds numbers
Frames = dict[str, pd.DataFrame]


# ---- what follows from what ----------------------------------------------------------------------------------------


def recomputed(profile, results: Results) -> tuple[Frames, list[str]]:
    """Every table that can be made without a model, from the raw material that is there, and what could not be read."""
    made, unreadable = {}, []
    for tables in (_selection, _training, _legibility, _benchmarks, _geometry, _report):
        try:
            made |= tables(profile, results)
        except FileNotFoundError:  # this stage has not run, or its raw material is elsewhere
            continue
        except (InputError, LookupError, TypeError, ValueError) as error:
            stage = tables.__name__.strip("_")
            unreadable.append(
                f"{stage}: its raw material is damaged, or of another version of the code ({error!r:.200})"
            )
    return made, unreadable


def _selection(profile, results: Results) -> Frames:
    from enigma.stages import select as sufficiency

    pool, spec = load_pool(profile.principles.pool), profile.sufficiency
    parts = [_json(path)["questions"] for path in sorted((results.runs / "select").glob("part-*.json"))]
    if not parts:
        return {}
    _, blocks = sufficiency.contrast_blocks(pool, spec.contrast)
    measured = sufficiency.Pool(pool, blocks, [question for part in parts for question in part])
    boot = dict(resamples=spec.resamples, seed=profile.seeds.bootstrap)
    sets = sufficiency.select(measured, profile.principles.set_size, sets=profile.sets(), seed=boot["seed"])
    table = sufficiency.sufficiency_table(measured, sets, boot)
    chosen = _leaves(sufficiency._selection(table, sets, pool))
    return {"sufficiency": table, **sufficiency.stability_tables(measured, sets, boot), "selection": chosen}


def _training(profile, results: Results) -> Frames:
    from enigma.stages import train as training

    steps = _stacked(profile, results, lambda folder: pd.read_csv(folder / "steps.csv"))
    groups = _stacked(
        profile, results, lambda folder: training._groups(_json_lines(folder / "rollouts.jsonl"))
    )
    made = training.checks(steps, groups, profile.seeds.bootstrap)
    return {"training": steps, "training_groups": groups, "training_checks": made}


def _stacked(profile, results: Results, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    frames = []
    for arm, seed in profile.runs():
        frame = read(results.runs / run_name(arm, seed))
        frame.insert(0, "arm", arm)
        frame.insert(1, "seed", seed)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _legibility(profile, results: Results) -> Frames:
    from enigma.stages import train as training

    cases = [(BASE, None, name) for name in dict.fromkeys(arm.set for arm in profile.arms.values())]
    cases += [(arm, seed, profile.arms[arm].set) for arm, seed in profile.runs()]
    rows = []
    for arm, seed, name in cases:
        folder = results.runs / (f"base-{name}" if seed is None else run_name(arm, seed))
        row = training._legibility_row(
            _json(folder / "legibility.json"), profile.principles.set_size, profile
        )
        rows.append({"arm": arm, "seed": seed, "set": name} | row)
    return {"legibility": pd.DataFrame(rows).astype({"seed": "Int64"})}


def _benchmarks(profile, results: Results) -> Frames:
    from enigma.stages import benchmark
    from enigma.tasks import robustness

    folders = {(BASE, None): BASE} | {run: run_name(*run) for run in profile.runs()}
    scores = {run: _json(results.runs / folder / "benchmark.json") for run, folder in folders.items()}
    items, seed = benchmark._stacked(scores, "items"), profile.seeds.bootstrap
    return {
        "benchmarks": benchmark._stacked(scores, "rows"),
        "benchmark_items": items,
        "benchmark_speed": benchmark._stacked(scores, "speed"),
        "benchmark_differences": benchmark.differences(items, seed=seed),
        "robustness": robustness.summary(items, robustness.hints(), seed=seed),
        "adherence": benchmark.adherence(items),
    }


def _geometry(profile, results: Results) -> Frames:
    from enigma.stages import geometry

    parts = {run: _json(results.runs / run_name(*run) / "geometry.json") for run in profile.runs()}
    return {name: geometry._frame(parts, name) for name in geometry.COLUMNS}


def _report(profile, results: Results) -> Frames:
    made = {"setting": setting.table(profile), "claims": claims.judge(profile, results)}
    if results.has_table("training"):
        groups = (
            results.read_table("training_groups")
            if results.has_table("training_groups")
            else steadiness.NO_GROUPS
        )
        made["steadiness"] = steadiness.table(results.read_table("training"), groups, profile.seeds.bootstrap)
    if results.has_table("prediction"):
        selection, *tables = results.read_yaml("selection"), *map(results.read_table, prediction.INPUTS[1:])
        points, seed = prediction.points(profile, selection, *tables), profile.seeds.bootstrap
        pairs = itertools.product(prediction.PREDICTORS, prediction.OUTCOMES)
        made["prediction_points"] = points
        made["prediction"] = pd.DataFrame([prediction.correlation(points, *pair, seed) for pair in pairs])
    return made


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- checking one folder -------------------------------------------------------------------------------------------


def check(profile, results: Results) -> tuple[list[str], list[str]]:
    """(what was checked, what differs), one line each, of a results folder by itself."""
    items = results.catalogue()
    differs = [line for item in items for line in _checksums(results, item)]
    there = {item.name for item in items if item.kind == TABLE}
    bare = [path for path in sorted(results.tables.glob("*.csv")) if path.stem not in there]
    differs += [f"{TABLE}/{path.name}: has no sidecar" for path in bare]
    found, unreadable = recomputed(profile, results)
    differs += unreadable
    made = {name: frame for name, frame in found.items() if name in there}
    for name, frame in made.items():
        differs += cell_differences(
            name, _cells(results, name), _parsed(csv_text(frame)), _close, "recomputed"
        )
    texts = _rendered(profile, results)
    for path, text in texts.items():
        if (results.folder / path).read_text(encoding="utf-8") != text:
            differs.append(
                f"{path}: is not what the tables and sidecars render to; run `python -m enigma report`"
            )
    figures = sum(item.kind == FIGURE for item in items)
    told = [
        f"checksums of {figures} figures and {len(there)} tables, and of the tables that they were made from",
        f"recomputed, to {RELATIVE:g} relative: {', '.join(made) or 'nothing'}",
        f"rendered, exactly: {', '.join(texts) or 'nothing'}",
    ]
    if left := sorted(there - made.keys()):
        told.append(f"checksums alone: {', '.join(left)}")
    return told, differs


def _checksums(results: Results, item) -> Iterator[str]:
    folder, sidecar = results.folder / item.kind, item.sidecar
    for file, digest in (
        (sidecar["file"], sidecar["sha256"]),
        (sidecar.get("pdf"), sidecar.get("pdf_sha256")),
    ):
        if file is None:
            continue
        if not (folder / file).is_file():
            yield f"{item.kind}/{file}: missing"
        elif (found := file_hash(folder / file)) != digest:
            yield f"{item.kind}/{file}: sha256 found {found[:12]}, its sidecar says {digest[:12]}"
    for name, digest in sidecar["inputs"].items():
        if (found := results.input_hash(name)) != digest:
            yield (
                f"{item.kind}/{item.name}: was made from table {name} {str(digest)[:12]}, "
                f"which is now {str(found)[:12]}"
            )


def _rendered(profile, results: Results) -> dict[str, str]:
    """{path: text} of the rendered files that are there, rendered anew."""
    renderers = {
        "README.md": results.index_text,
        "tables/claims.md": lambda: claims.to_markdown(results.read_table("claims")),
        "tables/claims.tex": lambda: claims.to_latex(results.read_table("claims")),
        page.NAME: lambda: page.render(profile, results),
        crate.NAME: lambda: crate.render(profile, results),
    }
    return {path: render() for path, render in renderers.items() if (results.folder / path).is_file()}


# ---- comparing with a rerun ----------------------------------------------------------------------------------------


def compare(results: Results, other: Results) -> tuple[list[str], list[str]]:
    """(what was compared, what differs) of the tables of a rerun with those of `results`."""
    mine, theirs = (
        {item.name for item in folder.catalogue() if item.kind == TABLE} for folder in (results, other)
    )
    differs = [f"{name}: is in {results.folder} alone" for name in sorted(mine - theirs)]
    differs += [f"{name}: is in {other.folder} alone" for name in sorted(theirs - mine)]
    same, common = 0, sorted(mine & theirs)
    for name in common:
        if results.input_hash(name) == other.input_hash(name):
            same += 1
        else:
            differs += _rerun_differences(name, _cells(results, name), _cells(other, name))
    told = f"{len(common)} tables of {other.folder}, {same} of them the same to the byte; the others: texts and counts exact, "
    return [f"{told}intervals overlapping, seconds and memory within a factor of {FACTOR:g}"], differs


def _rerun_differences(name: str, found: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    exact = [
        column for column in found if column in COUNTS or (_is_text(found[column]) and column not in PROSE)
    ]
    clocked = [column for column in found if column in CLOCKED]
    if list(found) != list(expected) or len(found) != len(expected):
        return cell_differences(name, found, expected, _same, "rerun")
    differs = cell_differences(name, found[exact], expected[exact], _same, "rerun")
    differs += cell_differences(name, found[clocked], expected[clocked], _same_size, "rerun")
    return differs + _apart(name, found, expected)


def _is_text(column: pd.Series) -> bool:
    return not column.map(_is_number).all()


def _apart(name: str, found: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """The intervals of two tables of like rows that have no point in common."""
    differs = []
    for low in (column for column in found if re.fullmatch(r"(.*_)?low", column)):
        high = low.removesuffix("low") + "high"
        for row, ends in enumerate(zip(found[low], found[high], expected[low], expected[high], strict=True)):
            a, b, c, d = (float(end or "nan") for end in ends)
            missing = math.isnan(a) != math.isnan(c)
            if missing or b < c or d < a:
                differs.append(
                    f"{name}: {_row_name(found, row)}, {low} to {high}: found [{ends[0]}, {ends[1]}], "
                    f"rerun [{ends[2]}, {ends[3]}]"
                )
    return differs


# ---- cells ---------------------------------------------------------------------------------------------------------


def cell_differences(
    name: str, found: pd.DataFrame, expected: pd.DataFrame, agree: Callable[[str, str], bool], what: str
) -> list[str]:
    """One line for each cell (text) of two tables that does not agree, or for columns or rows that do not match."""
    if list(found) != list(expected):
        return [f"{name}: columns found {', '.join(found)}; {what} {', '.join(expected)}"]
    if len(found) != len(expected):
        return [f"{name}: rows found {len(found)}, {what} {len(expected)}"]
    return [
        f"{name}: {_row_name(found, row)}, column {column}: found {a or '(empty)'}, {what} {b or '(empty)'}"
        for column in found
        for row, (a, b) in enumerate(zip(found[column], expected[column], strict=True))
        if not agree(a, b)
    ]


def _row_name(frame: pd.DataFrame, row: int) -> str:
    cells = [cell for cell in frame.iloc[row, :4] if cell and len(cell) < 30]
    return f"row {row + 1} ({', '.join(cells)})"


def _same(a: str, b: str) -> bool:
    return a == b


def _close(a: str, b: str) -> bool:
    if a == b:
        return True
    return (
        bool(a and b)
        and _is_number(a)
        and _is_number(b)
        and math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    )


def _same_size(a: str, b: str) -> bool:
    if a == b:
        return True
    return (
        bool(a and b)
        and _is_number(a)
        and _is_number(b)
        and float(a) < FACTOR * float(b)
        and float(b) < FACTOR * float(a)
    )


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, or nothing."""
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _cells(results: Results, name: str) -> pd.DataFrame:
    """A committed table, every cell as the text that is written there; YAML as its leaves."""
    path = results.tables / f"{name}.csv"
    return (
        _parsed(path.read_text(encoding="utf-8"))
        if path.is_file()
        else _parsed(csv_text(_leaves(results.read_yaml(name))))
    )


def _parsed(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def _leaves(value, key: str = "") -> pd.DataFrame:
    """Nested dicts and lists as a table of key and value."""
    return pd.DataFrame([(key, str(leaf)) for key, leaf in _walk(value, key)], columns=["key", "value"])


def _walk(value, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value, start=1):
            yield from _walk(part, f"{key}.{name}".lstrip("."))
    else:
        yield key, value
