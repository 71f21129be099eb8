"""Results: what is written is whole, escaped, reproducible, and inside its folder."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record import results as module
from enigma.record.licences import licences
from enigma.record.results import Results, atomic_folder, atomic_write_json, atomic_write_text


def profile(name="tiny"):
    seeds = {"data": 1, "initialisation": 2, "sampling": 3, "bootstrap": 4, "evaluation": 5, "runs": [0]}
    smoke = load_profile("smoke")  # for what only the licences ask
    blocks = {
        block: getattr(smoke, block) for block in ("model", "questions", "principles", "arms", "benchmarks")
    }
    return SimpleNamespace(name=name, hash="0123456789abcdef", text="name: tiny\n", seeds=seeds, **blocks)


@pytest.fixture
def results(tmp_path):
    return Results(profile(), tmp_path / "results")


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_before_something_is_saved(results):
    assert not results.root.exists()


def test_numbers_are_written_with_six_digits_and_whole_numbers_in_full(results):
    frame = pd.DataFrame({"x": [1 / 3, -1.5e-9, np.nan, np.inf], "seed": [123456789.0, np.nan, -0.0, 7.0]})
    path = results.write_table("training", frame, "c")
    assert path.read_text() == "x,seed\n0.333333,123456789\n-1.5e-09,\n,0\ninf,7\n"


def test_table_survives_reading_and_writing(results):
    frame = pd.DataFrame(
        {
            "arm": ["base", "grpo", "enigma_high"],
            "seed": [np.nan, 0, 1],
            "item": ["00123", "12e5", "7"],
            "text": ['a "b", c', "two\nlines", "NA"],
            "at_chance": [True, False, True],
            "value": [0.25, -0.5, np.nan],
        }
    )
    results.write_table("benchmarks", frame, "c")
    again = results.read_table("benchmarks")
    for column in frame:
        assert (
            again[column].tolist() == pytest.approx(frame[column].tolist(), nan_ok=True)
            if column in ("seed", "value")
            else again[column].tolist() == frame[column].tolist()
        )
    first = files_of(results.folder)
    results.write_table("benchmarks", again, "c")
    assert files_of(results.folder) == first


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-rm", "@SUM(A1)", "\tx", "\rx", "'=1", "'", "''-", "=", "-", "'quoted'"]
)
def test_text_never_becomes_a_formula_and_is_read_back_as_it_was(results, text):
    path = results.write_table(
        "training", pd.DataFrame({"principle": [text, "plain"], "x": [-1.5, 2.5]}), "c"
    )
    rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert rows["principle"][0][0] == "'"
    assert rows["x"][0] == "-1.5"
    assert results.read_table("training")["principle"].tolist() == [text, "plain"]


def test_a_single_column_keeps_its_empty_rows_and_an_empty_table_its_columns(results):
    results.write_table("training", pd.DataFrame({"x": [1.5, np.nan, 2.5]}), "c")
    assert results.read_table("training")["x"].tolist() == pytest.approx([1.5, np.nan, 2.5], nan_ok=True)
    results.write_table("training", pd.DataFrame({"arm": [], "x": []}), "c")
    assert list(results.read_table("training").columns) == ["arm", "x"]


@pytest.mark.parametrize("text", ["-0.5", "+1", "a=b", "x-y", "13.62 -> 20.54"])
def test_numbers_as_text_and_harmless_text_are_not_touched(results, text):
    path = results.write_table("claims", pd.DataFrame({"paper": [text]}), "c")
    assert path.read_text() == f"paper\n{text}\n"
    assert results.read_table("claims")["paper"].tolist() == [text]


def test_a_cell_that_is_no_scalar_is_refused(results):
    with pytest.raises(InputError, match="list"):
        results.write_table("training", pd.DataFrame({"x": [[1, 2]]}), "c")
    assert not (results.tables / "training.csv").exists()


def test_sidecar_says_where_the_table_came_from(results):
    results.write_table("sufficiency", pd.DataFrame({"name": ["a"]}), "first")
    path = results.write_table(
        "selection", pd.DataFrame({"x": [1]}), "second", inputs=["sufficiency", "training"]
    )
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["caption"] == "second"
    assert sidecar["profile_hash"] == "0123456789abcdef"
    assert sidecar["seeds"]["bootstrap"] == 4
    assert sidecar["sha256"] == module.file_hash(path)
    assert sidecar["inputs"] == {
        "sufficiency": module.file_hash(results.tables / "sufficiency.csv"),
        "training": None,
    }
    assert sidecar["versions"]["pandas"] == pd.__version__
    assert str(results.root) not in path.with_suffix(".json").read_text()


def test_missing_table_names_the_notebook(results):
    with pytest.raises(InputError, match="run notebook 03_benchmark first"):
        results.read_table("benchmark_items")
    with pytest.raises(InputError, match="run notebook 01_select first"):
        results.read_yaml("selection")


def test_damaged_files_are_one_clear_line(results):
    results.tables.mkdir(parents=True)
    (results.tables / "training.csv").write_bytes(b"")
    (results.tables / "claims.csv").write_bytes(b"a\n\xff\xfe\n")
    (results.tables / "selection.yaml").write_text("{a: [")
    for read, name in (
        (results.read_table, "training"),
        (results.read_table, "claims"),
        (results.read_yaml, "selection"),
    ):
        with pytest.raises(InputError, match=name) as caught:
            read(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "A", "a.b", "", "a b", "a\n", None, "ä"])
def test_odd_names_never_leave_the_folder(results, name):
    calls = (
        lambda: results.write_table(name, pd.DataFrame(), "c"),
        lambda: results.read_table(name),
        lambda: results.write_yaml(name, {}, "c"),
        lambda: results.save_figure(name, None, "c"),
        lambda: results.cite(name),
        lambda: results.run_folder(f"{name}/", 0),
    )
    for call in calls:
        with pytest.raises(InputError):
            call()
    assert not results.root.exists()


@pytest.mark.parametrize("name", ["..", "../x", "/tmp", "a/b", ""])
def test_odd_profile_names_are_refused(tmp_path, name):
    with pytest.raises(InputError):
        Results(profile(name), tmp_path)


def test_a_link_out_of_the_results_folder_is_refused(results, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    results.folder.mkdir(parents=True)
    results.tables.symlink_to(outside)
    with pytest.raises(InputError, match="link"):
        results.write_table("training", pd.DataFrame({"x": [1]}), "c")
    assert not list(outside.iterdir())


def test_results_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    assert Results(profile(), tmp_path / "results").write_yaml("selection", {"a": 1}, "c").exists()


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = atomic_write_text(tmp_path / "a.txt", "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_killed_writer_leaves_the_old_file(tmp_path):
    script = """
        import os, sys
        from enigma.record import results
        os.replace = lambda *_: os._exit(9)
        results.atomic_write_text(sys.argv[1], "new")
    """
    path = atomic_write_text(tmp_path / "a.txt", "old")
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False).returncode
        == 9
    )
    assert path.read_text() == "old"


def test_files_get_ordinary_permissions(tmp_path):
    path = atomic_write_text(tmp_path / "a.txt", "x")
    plain = tmp_path / "b.txt"
    plain.write_text("x")
    assert path.stat().st_mode == plain.stat().st_mode


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path):
    target = tmp_path / "adapter"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert os.listdir(target) == ["a"]
    with atomic_folder(target) as folder:
        (folder / "c").write_text("3")
    assert os.listdir(target) == ["c"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_json_and_yaml_take_numpy_numbers(results, tmp_path):
    value = {
        "a": np.float64(0.5),
        "b": np.int64(3),
        "c": np.array([1.0, np.nan]),
        "d": np.bool_(True),
        "e": "ü",
    }
    plain = {"a": 0.5, "b": 3, "c": [1.0, None], "d": True, "e": "ü"}
    assert json.loads(atomic_write_json(tmp_path / "a.json", value).read_text()) == plain
    results.write_yaml("selection", value, "c")
    assert results.read_yaml("selection") == plain


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_is_dirty_for_code_and_not_for_results(tmp_path):
    code = tmp_path / "pkg" / "code.py"
    code.parent.mkdir()
    code.write_text("1\n")
    assert module.code_commit(code) == "unknown"
    git(tmp_path, "init", "-q")
    assert module.code_commit(code) == "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.csv").write_text("x")
    assert module.code_commit(code) == head
    code.write_text("2\n")
    assert module.code_commit(code) == head + "+dirty"


FIGURE_SCRIPT = """
    import sys
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from types import SimpleNamespace
    from enigma.record.results import Results
    profile = SimpleNamespace(name="p", hash="0", text="", seeds={})
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4]); axes.set_title("Ünits (nats) $x^2$"); axes.fill_between([1, 2], [3, 4])
    Results(profile, sys.argv[1]).save_figure("fig1_x", figure, "caption", inputs=["training"])
"""


def test_figure_files_are_identical_in_two_processes(tmp_path):
    for run in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FIGURE_SCRIPT), str(tmp_path / run)], check=True
        )
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert first == second
    assert sorted(path.suffix for path in first) == [".json", ".pdf", ".png"]


@pytest.fixture
def filled(results):
    import matplotlib.pyplot as plt

    results.write_table("geometry", pd.DataFrame({"x": [1]}), "Distances | by <layer>.")
    results.write_table("sufficiency", pd.DataFrame({"x": [1]}), "SI of principles.")
    results.write_table("something", pd.DataFrame({"x": [1]}), "Else.")
    text = {
        "claim": "a | b <script>",
        "measure": "m",
        "verdict": "undecided",
        "paper": "",
        "note": "[x](javascript:y)",
    }
    first = {"id": "C1", **text, "value": 0.123456, "low": -0.1, "high": 0.5}
    claims = pd.DataFrame([first, first | {"id": "C2", "value": np.nan}])
    results.write_table("claims", claims, "Claims.")
    figure = plt.figure()
    results.save_figure("fig1_sufficiency", figure, "SI.", inputs=["sufficiency"])
    results.save_figure("fig7_claims", figure, "Verdicts.", inputs=["claims", "sufficiency"])
    plt.close(figure)
    return results


def test_index_has_claims_first_then_notebook_order(filled):
    text = filled.write_index().read_text()
    places = [
        text.index(part)
        for part in (
            "## Claims",
            "0.123 [-0.1, 0.5]",
            "not measured",
            "## 01_select",
            "![fig1_sufficiency](figures/fig1_sufficiency.png)",
            "(tables/sufficiency.csv)",
            "## 04_geometry",
            "(tables/geometry.csv)",
            "## 05_report",
            "(figures/fig7_claims.pdf)",
            "## other",
        )
    ]
    assert places == sorted(places)
    assert "[x](javascript" not in text
    assert "<script>" not in text and r"a \| b" in text and "<layer>" not in text
    first = text
    assert filled.write_index().read_text() == first


def test_every_link_of_the_index_leads_somewhere(filled):
    text = filled.write_index().read_text()
    links = re.findall(r"(?<!\\)\]\(([^)]+)\)", text)
    assert len(links) > 8
    assert all((filled.folder / link).is_file() for link in links)


def test_record_joins_profile_machine_and_stages(results):
    atomic_write_json(results.folder / "stages.json", {"01_select": {"seconds": 12.5, "peak_memory_gb": 1.5}})
    record = json.loads(results.write_record().read_text())
    assert record["stages"]["01_select"] == {"seconds": 12.5, "peak_memory_gb": 1.5}
    assert record["profile_text"] == "name: tiny\n"
    assert record["machine"]["cores"] == os.cpu_count()
    assert datetime.date.fromisoformat(record["date"]).year >= 2026


def test_the_record_names_the_licences(results, tmp_path):
    found = json.loads(results.write_record().read_text())["licences"]
    assert (
        found["code"]
        == found["questions"]
        == found["principles"]
        == found["tasks"]["enigma_format"]
        == "Apache-2.0"
    )
    assert found["model"] == "none (random weights); tokenizer: SmolLM2-135M-Instruct, Apache-2.0"
    assert found["packages"]["transformers"].startswith("Apache 2.0")
    assert set(found["packages"]) == set(module.PACKAGES)
    assert all("\n" not in licence and len(licence) < 120 for licence in found["packages"].values())
    assert (
        licences(load_profile("gpu"), [])["encoder"] == "all-MiniLM-L6-v2, Apache-2.0"
        and "encoder" not in found
    )
    paper = licences(load_profile("paper"), [])
    assert paper["model"] == "google/gemma-3-1b-it, Gemma Terms of Use"
    assert paper["questions"] == "kaist-ai/CoT-Collection, CC-BY-4.0"
    assert {paper["tasks"][name] for name in ("truthfulqa_mc1", "gpqa_main_zeroshot")} == {
        "Apache-2.0",
        "CC-BY-4.0",
    }
    assert licences(load_profile("cpu"), [])["model"] == "SmolLM2-135M-Instruct, Apache-2.0"


def test_cite_names_file_hash_commit_and_paper(filled):
    text = filled.cite("fig1_sufficiency")
    png = filled.figures / "fig1_sufficiency.png"
    for part in (
        "SI.",
        "tiny/figures/fig1_sufficiency.png",
        module.file_hash(png),
        filled.commit,
        "2510.11278",
        "@misc",
    ):
        assert part in text
    assert "tables/geometry.csv" in filled.cite("geometry")
    with pytest.raises(InputError, match="fig1_sufficiency, fig7_claims"):
        filled.cite("fig99")


def test_cite_takes_the_short_form_where_it_is_unambiguous(filled):
    assert filled.cite("fig1") == filled.cite("fig1_sufficiency")
    filled.write_table("benchmark_items", pd.DataFrame({"x": [1]}), "Items.")
    filled.write_table("benchmark_speed", pd.DataFrame({"x": [1]}), "Speed.")
    with pytest.raises(InputError, match="found 2 .*expected one of benchmark_items, benchmark_speed"):
        filled.cite("benchmark")
    with pytest.raises(InputError, match="found no"):
        filled.cite("fig")


def test_catalogue_counts_figures_as_people_do(filled):
    for number in (10, 2):
        filled.save_figure(f"fig{number}_x", _figure(), "X.", inputs=["sufficiency"])
    names = [item.name for item in filled.catalogue() if item.notebook == "01_select"]
    assert names == ["fig1_sufficiency", "fig2_x", "fig10_x", "sufficiency"]


def _figure():
    from matplotlib.figure import Figure

    return Figure()


def test_results_imports_nothing_heavy():
    script = "import sys, enigma.results; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
