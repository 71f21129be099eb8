"""Verification: what was committed follows from its raw material, and every change of it is found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from enigma import __main__ as cli
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.report import publish
from enigma.record.results import TABLE, Results, atomic_write_json, csv_text, file_hash
from enigma.run import verify
from enigma.stages import claims

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "results" / "cpu"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """(profile file, root): the committed run under its own profile text, its tables made by the code as it is now.

    Without the matrices of stage 1, since choosing the sets again takes half a minute, and without those of geometry:
    both are left to the slow test.
    """
    root = tmp_path_factory.mktemp("verify")
    shutil.copytree(COMMITTED, root / "cpu", ignore=shutil.ignore_patterns("adapter", "select", "fig*"))
    for raw in (root / "cpu" / "runs").glob("*/geometry.json"):
        raw.unlink()
    path = root / "cpu.yaml"
    path.write_text(json.loads((COMMITTED / "run.json").read_text())["profile_text"], encoding="utf-8")
    profile = load_profile(path)
    results = Results(profile, root)
    made, unreadable = verify.recomputed(profile, results)
    assert unreadable == []
    for name, frame in made.items():
        results.write_table(name, frame, "A caption.")
    claims.run(profile, results)
    figures.make(profile, results, "fig7_claims")
    results.write_record()
    publish(profile, results)
    return path, root


@pytest.fixture(scope="session")
def made(original):
    """{table: what is recomputed from the raw material}."""
    path, root = original
    profile = load_profile(path)
    tables, _ = verify.recomputed(profile, Results(profile, root))
    return {name: verify._parsed(csv_text(frame)) for name, frame in tables.items() if len(frame)}


@pytest.fixture
def results(original, tmp_path):
    path, root = original
    shutil.copytree(root / "cpu", tmp_path / "cpu")
    return Results(load_profile(path), tmp_path)


def changed_digit(text: str) -> str:
    """The text with the first digit after its first line changed to another."""
    head, body = text.split("\n", 1)
    return head + "\n" + re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), body, count=1)


def against(results, made, name):
    return verify.cell_differences(
        name, verify._cells(results, name), made[name], verify._close, "recomputed"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", sorted((ROOT / "results").glob("*/run.json")), ids=lambda path: path.parent.name
)
def test_committed_results_follow_from_their_raw_material(folder):
    profile = load_profile(folder.parent.name)
    told, differs = verify.check(profile, Results(profile, ROOT / "results"))
    assert differs == []
    assert "sufficiency, selection, training" in "\n".join(told)


def test_untouched_results_pass(original, capsys):
    path, root = original
    assert cli.main(["verify", str(path), "--results", str(root), "--against", str(root)]) == 0
    out = capsys.readouterr().out
    assert "no differences" in out and "claims" in out and "report.html" in out
    assert re.search("checksums alone: .*geometry, .*selection.*, sufficiency", out)


def test_a_changed_digit_of_any_table_is_found_by_its_checksum(results):
    tables = [item for item in results.catalogue() if item.kind == TABLE and item.sidecar.get("rows") != 0]
    assert len(tables) > 12
    for item in tables:
        path = results.tables / item.sidecar["file"]
        before = path.read_text(encoding="utf-8")
        path.write_text(changed_digit(before), encoding="utf-8")
        assert any(item.sidecar["file"] in line for line in verify._checksums(results, item)), item.name
        path.write_text(before, encoding="utf-8")
        assert not list(verify._checksums(results, item))


def test_a_changed_digit_is_found_by_recomputing_too_where_the_sidecar_was_forged(results, made):
    assert {
        "training",
        "training_checks",
        "legibility",
        "benchmarks",
        "benchmark_items",
        "benchmark_differences",
        "steadiness",
        "claims",
        "setting",
    } <= made.keys()
    for name in made:
        assert against(results, made, name) == []
        path = results.tables / f"{name}.csv"
        path.write_text(changed_digit(path.read_text(encoding="utf-8")), encoding="utf-8")
        sidecar = path.with_suffix(".json")
        atomic_write_json(sidecar, json.loads(sidecar.read_text()) | {"sha256": file_hash(path)})
        assert len(against(results, made, name)) == 1, name


def test_the_difference_names_table_row_and_column(results, made):
    frame = results.read_table("claims")
    frame.loc[1, "value"] += 0.01
    results.write_table("claims", frame, "caption")
    [line] = against(results, made, "claims")
    assert re.fullmatch(r"claims: row 2 \(C2, .*\), column value: found 0\.\d+, recomputed 0\.\d+", line)


def test_changed_raw_material_is_found(results, capsys):
    path = results.runs / "grpo-s0" / "benchmark.json"
    scores = json.loads(path.read_text())
    scores["items"]["value"][0] = 1 - scores["items"]["value"][0]
    atomic_write_json(path, scores)
    table = verify.recomputed(results.profile, results)[0]["benchmark_items"]
    expected = {"benchmark_items": verify._parsed(csv_text(table))}
    assert len(against(results, expected, "benchmark_items")) == 1


def test_raw_material_that_cannot_be_read_is_told_and_the_rest_still_checked(results):
    (results.runs / "grpo-s0" / "legibility.json").write_text('{"texts": []}')
    made, unreadable = verify.recomputed(results.profile, results)
    assert "claims" in made and "legibility" not in made
    assert len(unreadable) == 1 and unreadable[0].startswith("legibility: its raw material is damaged")


@pytest.mark.parametrize(
    "file", ["figures/fig7_claims.png", "figures/fig7_claims.pdf", "tables/training.csv"]
)
def test_a_missing_or_changed_file_is_found(results, file):
    path = results.folder / file
    path.write_bytes(path.read_bytes() + b"\n")
    items = [item for item in results.catalogue() if item.name == path.stem]
    assert any(line.startswith(f"{file}: sha256 found") for line in verify._checksums(results, items[0]))
    path.unlink()
    assert f"{file}: missing" in list(verify._checksums(results, items[0]))


def test_a_table_without_its_sidecar_is_found(results):
    (results.tables / "geometry.json").unlink()
    assert "tables/geometry.csv: has no sidecar" in verify.check(results.profile, results)[1]


def test_a_figure_of_an_older_table_is_found(results):
    results.write_table("claims", results.read_table("claims").head(3), "caption")
    [figure] = [item for item in results.catalogue() if item.name == "fig7_claims"]
    [line] = verify._checksums(results, figure)
    assert line.startswith("figures/fig7_claims: was made from table claims")


def test_stale_texts_are_found(results):
    names = ["README.md", "tables/claims.md", "tables/claims.tex", "report.html", "ro-crate-metadata.json"]
    assert stale(results) == []
    for name in names:
        path = results.folder / name
        path.write_text(path.read_text(encoding="utf-8") + "x", encoding="utf-8")
    assert stale(results) == names


def stale(results):
    rendered = verify._rendered(results.profile, results)
    return [
        name for name, text in rendered.items() if (results.folder / name).read_text(encoding="utf-8") != text
    ]


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [
        ("0.123456", "0.123457", True),
        ("0.123456", "0.123466", False),
        ("0", "1e-17", True),
        ("", "0", False),
        ("3", "3", True),
        ("3", "4", False),
        ("x", "y", False),
        ("1e3", "1000", True),
        ("True", "False", False),
    ],
)
def test_how_close_a_recomputed_cell_must_be(a, b, agree):
    assert verify._close(a, b) is agree


# ---- against a rerun -----------------------------------------------------------------------------------------------


@pytest.fixture
def rerun(original, tmp_path):
    path, root = original
    shutil.copytree(root / "cpu", tmp_path / "rerun" / "cpu")
    profile = load_profile(path)
    return Results(profile, root), Results(profile, tmp_path / "rerun")


def altered(rerun, name, change):
    mine, other = rerun
    frame = other.read_table(name)
    change(frame)
    other.write_table(name, frame, "caption")
    return verify.compare(mine, other)[1]


def test_a_rerun_may_differ_within_its_intervals(rerun):
    def shift(frame):
        frame[["value", "low", "high"]] += 0.2 * (frame["high"] - frame["low"]).fillna(0).to_numpy()[:, None]

    assert altered(rerun, "steadiness", shift) == []


def test_a_rerun_whose_interval_lies_elsewhere_is_told(rerun):
    def shift(frame):
        row = frame["low"].first_valid_index()
        frame.loc[row, ["value", "low", "high"]] += 3 * (frame["high"] - frame["low"])[row]

    [line] = altered(rerun, "steadiness", shift)
    assert re.match(r"steadiness: row 1 \(grpo, 0, reward_area.*\), low to high: found \[", line)


def test_a_rerun_with_other_texts_counts_or_rows_is_told(rerun):
    assert (
        "column verdict"
        in altered(rerun, "claims", lambda frame: frame.__setitem__("verdict", "supported"))[0]
    )
    assert "column n" in altered(rerun, "benchmark_differences", lambda frame: frame.__setitem__("n", 7))[0]
    count = len(rerun[0].read_table("training"))
    told = altered(rerun, "training", lambda frame: frame.drop(index=0, inplace=True))
    assert f"rows found {count}, rerun {count - 1}" in told[-1]


def test_a_rerun_may_be_slower_but_not_absurdly(rerun):
    def slower(factor):
        return lambda frame: frame.__setitem__("seconds", frame["seconds"] * factor)

    assert altered(rerun, "benchmark_speed", slower(10)) == []
    assert "column seconds" in altered(rerun, "benchmark_speed", slower(10))[0]  # a hundred by now


def test_a_table_that_the_rerun_lacks_is_told(rerun):
    mine, other = rerun
    (other.tables / "training.csv").unlink()
    (other.tables / "training.json").unlink()
    assert any(line.startswith("training: is in") for line in verify.compare(mine, other)[1])


def test_leaves_of_yaml():
    leaves = verify._leaves({"high": {"principles": ["a", "b"]}, "span": "reasoning"})
    expected = [("high.principles.1", "a"), ("high.principles.2", "b"), ("span", "reasoning")]
    assert list(leaves.itertuples(index=False, name=None)) == expected
    assert isinstance(leaves, pd.DataFrame)
