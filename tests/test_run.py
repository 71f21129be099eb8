"""A whole run, as `make reproduce` does it: notebooks that show figures, a report, verification, comparison, citation."""

import gzip
import importlib.util
import json
import re
import shutil

import nbformat
import numpy as np
import pytest

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.record import report
from enigma.record.files import file_hash
from enigma.record.results import REPOSITORY, Results
from enigma.run import compare, publish
from enigma.run.verify import MANIFEST, verify
from enigma.stages import all_stages

spec = importlib.util.spec_from_file_location("redraw", REPOSITORY / "scripts" / "redraw.py")
redraw = importlib.util.module_from_spec(spec)
spec.loader.exec_module(redraw)


@pytest.fixture
def copied(tiny, tmp_path):
    shutil.copytree(tiny.results.folder, tmp_path / "tiny")
    return Results(tiny.profile, tmp_path)


def test_every_figure_cell_shows_its_picture_or_says_why_there_is_none(tiny):
    shown = 0
    for path in sorted(tiny.results.notebooks.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not [out for out in cell.get("outputs", ()) if out.output_type == "error"]
            if cell.cell_type != "code" or "figures.make(" not in cell.source:
                continue
            data = [out.get("data", {}) for out in cell.outputs]
            images = sum("image/png" in one for one in data)
            said = " ".join("".join(one.get("text/markdown", "")) for one in data)
            assert images or "*fig" in said, f"{path.name}: {cell.source}"
            assert said, f"{path.name}: {cell.source} has no caption"
            shown += images
    assert shown >= 6


def test_nothing_of_this_machine_is_in_what_a_run_writes(tiny, tmp_path):
    import socket

    words = [str(tiny.results.root), *[name for name in [socket.gethostname()] if len(name) > 5]]
    for path in tiny.results.folder.rglob("*"):
        if (
            path.is_file()
            and path.suffix in (".ipynb", ".html", ".csv", ".json", ".md")
            and "pieces" not in path.parts
        ):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path


def test_a_stages_time_is_that_of_its_work_and_not_of_reading_it_again(tiny, tmp_path):
    results = Results(tiny.profile, tmp_path)
    results.write_record({})
    for status, seconds, expected in (
        ("failed", 60, 60),
        ("done", 30, 90),  # it went on where the first attempt stopped
        ("done", 5, 90),  # it read what was kept
        ("done", 100, 100),  # it was made anew
    ):
        results.record_stage("01_select", status, seconds, 1.0)
        assert results.read_record()["stages"]["01_select"]["seconds"] == expected


def test_the_report_is_small_whole_and_inert(tiny):
    text = (tiny.results.folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert not re.search(r"<script|javascript:|\son\w+=", text)
    for target in re.findall(r'(?:src|href)="([^"#:]+)"', text):
        assert (tiny.results.folder / target).is_file(), target
    for claim in tiny.results.read_table("claims")["id"]:
        assert f"<b>{claim}</b>" in text


def test_the_run_record_has_every_stage(tiny):
    record = tiny.results.read_record()
    assert list(record["stages"]) == ["01_select", "02_train", "03_benchmark", "04_geometry", "05_report"]
    assert all(stage["seconds"] > 0 and stage["peak_memory_gb"] > 0.1 for stage in record["stages"].values())


def test_a_figure_and_a_table_are_cited(tiny, capsys):
    for name in ("fig3", "training"):
        assert cli.main(["cite", name, "--profile", str(tiny.path), "--results", str(tiny.results.root)]) == 0
        text = capsys.readouterr().out
        assert "2510.11278" in text and "sha256" in text


# ---- verification --------------------------------------------------------------------------------------------------


def faults(results) -> dict[str, str]:
    return {what: fault for what, fault in verify(results.profile, results) if fault}


def test_a_run_verifies(tiny):
    assert faults(tiny.results) == {}
    assert len(verify(tiny.profile, tiny.results)) > 30


def digit(path):
    text = path.read_text()
    at = re.search(r"\d(?=[^\d]*\Z)", text).start()
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def row(path):
    rows = json.loads(gzip.decompress(path.read_bytes()))
    rows["runs"][0]["steps"]["loss"][0] += 0.5
    path.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))


def both(path):
    """A table and its sidecar edited together."""
    digit(path)
    side = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(side | {"sha256": file_hash(path)}))


def of_another_file(path):
    side = json.loads(path.read_text())
    path.write_text(json.dumps(side | {"file": "/etc/passwd", "caption": "<script>x</script>"}))


def gone(path):
    path.unlink()


def says(content):
    return lambda path: path.write_bytes(content)


def other_caption(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"caption": "All is well."}))


TAMPERED = {  # of each group all at once: file, damage, what verify must name
    "edited": [
        ("tables/legibility.csv", digit, "table legibility"),
        ("raw/train.json.gz", row, "table training"),
        ("raw/train.json.gz", row, "rows of train"),
        ("tables/claims.csv", both, "table claims"),
        ("figures/fig3_training.png", says(b"x"), "figure fig3_training"),
        ("raw/geometry.json.gz", says(b"x"), "stage geometry"),
    ],
    "edited with care": [
        ("pieces/train/grpo-s0/*/steps.csv", says(b"step,reward\n1,0.99\n"), "rows of train"),
        ("tables/training.csv", both, "figure fig3_training"),
        ("figures/fig4_legibility.json", of_another_file, "figure fig4_legibility"),
        ("tables/legibility.json", says(b"[]"), "sidecar of table legibility"),
        ("tables/claims.csv", says(b"\xff\0\n\xfe"), "table claims"),
        ("tables/echo.json", other_caption, "table echo"),
    ],
    "removed": [
        ("tables/geometry.csv", gone, "table geometry"),
        ("tables/echo.json", gone, "table echo"),
        ("raw/select.json.gz", gone, "stage select"),
        ("figures/fig1_sufficiency.png", gone, "figure fig1_sufficiency"),
        ("figures/fig3_training.json", gone, "figure fig3_training"),
        ("figures/fig4_legibility.*", gone, "figure fig4_legibility"),
        ("tables/claims.csv", says(b""), "table claims"),
    ],
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_named(name, copied):
    for file, damage, _ in TAMPERED[name]:
        for path in copied.folder.glob(file):
            damage(path)
    found = faults(copied)
    assert not [expected for *_, expected in TAMPERED[name] if expected not in found]
    assert "table training_groups" not in found


def test_verify_does_not_pass_on_nothing(tiny, tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    assert cli.main(["verify", str(tiny.path), "--results", str(tmp_path)]) == 1
    assert "missing" in capsys.readouterr().out


def test_a_published_folder_is_checked_against_its_list(tiny, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny.results.folder, folder, ignore=shutil.ignore_patterns("pieces", ".*.lock"))
    listed = {p.relative_to(folder).as_posix(): file_hash(p) for p in folder.rglob("*") if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps(listed))
    reference = Results.reference(tiny.profile, tmp_path)
    assert faults(reference) == {}
    (folder / "extra.txt").write_text("x")
    (folder / "report.html").write_text("x")
    assert "extra.txt is not listed; report.html was changed" in faults(reference)[MANIFEST]
    with pytest.raises(InputError, match="only read"):
        reference.write_raw("select", {})


# ---- comparison, publication ---------------------------------------------------------------------------------------


def test_a_run_reproduces_itself_and_a_moved_interval_differs(tiny, copied):
    verdicts = {one.table: one.verdict for one in compare.compare(copied, tiny.results)}
    assert set(verdicts) == {name for stage in all_stages() for name in stage.CAPTIONS}
    assert compare.DIFFERS not in verdicts.values() and compare.REPRODUCED in verdicts.values()
    frame = copied.read_table("sufficiency")
    moved = frame.assign(si=frame.si + 5, si_low=frame.si_low + 5, si_high=frame.si_high + 5)
    assert compare.table_verdict("sufficiency", moved, frame).verdict == compare.DIFFERS
    scores = copied.read_table("benchmarks")
    far = scores.assign(value=scores["value"] + 5 * scores["stderr"].max() + 1)
    assert compare.table_verdict("benchmarks", scores, scores).verdict == compare.REPRODUCED
    assert compare.table_verdict("benchmarks", far, scores).verdict == compare.DIFFERS
    wide = frame.assign(si_low=-np.inf, si_high=np.inf)
    for other in (wide, frame.assign(si_low=np.nan, si_high=np.nan), frame.head(3)):
        assert compare.table_verdict("sufficiency", other, frame).verdict == compare.DIFFERS
    setting, claims = copied.read_table("setting"), copied.read_table("claims")
    assert compare.table_verdict("setting", setting.head(2), setting).verdict == compare.DIFFERS
    turned = claims.assign(verdict=["supported", *claims["verdict"][1:]])
    assert compare.table_verdict("claims", turned, claims).verdict == compare.DIFFERS
    text = compare.write(copied, compare.compare(copied, tiny.results))
    assert "reproduced" in text and (copied.folder / "reproduction.md").read_text() == text


def test_a_table_that_is_missing_stops_the_comparison(tiny, copied):
    (copied.tables / "claims.csv").unlink()
    (copied.tables / "claims.json").unlink()
    with pytest.raises(InputError, match=r"claims\.csv: is missing"):
        compare.compare(copied, tiny.results)


def test_a_stale_or_foreign_figure_is_not_shown(tiny, copied):
    of_another_file(copied.figures / "fig3_training.json")
    (copied.notebooks / '"><script>.ipynb').write_text("{}")
    text = report.publish_page(tiny.profile, copied).read_text(encoding="utf-8")
    assert 'id="fig4_legibility"' in text
    assert not re.search(r'<script|id="fig3_training"|/etc/passwd', text)


def test_figures_are_drawn_again_from_published_tables(tiny, copied, tmp_path):
    shutil.rmtree(copied.pieces)
    (copied.figures / "fig4_legibility.png").write_bytes(b"")
    files = {
        p.relative_to(copied.folder).as_posix(): file_hash(p) for p in copied.folder.rglob("*") if p.is_file()
    }
    (copied.folder / MANIFEST).write_text(json.dumps(files))
    with pytest.raises(InputError, match="fig4_legibility.png was changed"):
        redraw.redraw(tiny.profile, tmp_path)
    shutil.copy2(tiny.results.figures / "fig4_legibility.png", copied.figures)
    files["figures/fig4_legibility.png"] = file_hash(copied.figures / "fig4_legibility.png")
    (copied.folder / MANIFEST).write_text(json.dumps(files))
    redraw.redraw(tiny.profile, tmp_path)
    drawn = json.loads((copied.folder / MANIFEST).read_text())
    changed = {name for name in files | drawn if files.get(name) != drawn.get(name)}
    assert all(name == "run.json" or name.startswith("notebooks/") for name in changed), changed
    assert faults(Results.reference(tiny.profile, tmp_path)) == {}


def test_only_a_complete_run_of_one_clean_commit_is_published(tiny, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "code_commit", lambda: "0" * 40)
    with pytest.raises(InputError, match="expected rows of one commit"):
        publish.publish(tiny.profile, copied, tmp_path / "reference")
    shutil.rmtree(next(copied.pieces.glob("train/grpo-s0/*")))
    with pytest.raises(InputError, match="not complete"):
        publish.publish(tiny.profile, copied, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()
