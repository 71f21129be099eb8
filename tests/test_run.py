"""A whole run, as `make reproduce` does it: notebooks that show figures, a report, verification, comparison, citation."""

import gzip
import importlib.util
import json
import re
import shutil
import socket
from pathlib import Path

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


def test_nothing_of_this_machine_is_in_what_a_run_writes(tiny):
    written = (".ipynb", ".html", ".csv", ".json", ".md")
    words = [str(tiny.results.root), *[name for name in [socket.gethostname()] if len(name) > 5]]
    for path in tiny.results.folder.rglob("*"):
        if path.is_file() and path.suffix in written and "pieces" not in path.parts:
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
    found = verify(tiny.profile, tiny.results)
    assert len(found) > 30 and not [what for what, fault in found if fault]


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
    sidecar(sha256=file_hash(path))(path.with_suffix(".json"))


def says(content):
    return lambda path: path.write_bytes(content)


def sidecar(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


of_another_file = sidecar(file="/etc/passwd", caption="<script>x</script>")

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
        ("tables/echo.json", sidecar(caption="All is well."), "table echo"),
    ],
    "removed": [
        ("tables/geometry.csv", Path.unlink, "table geometry"),
        ("tables/echo.json", Path.unlink, "table echo"),
        ("raw/select.json.gz", Path.unlink, "stage select"),
        ("figures/fig1_sufficiency.png", Path.unlink, "figure fig1_sufficiency"),
        ("figures/fig3_training.json", Path.unlink, "figure fig3_training"),
        ("figures/fig4_legibility.*", Path.unlink, "figure fig4_legibility"),
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


def test_a_published_folder_is_checked_against_its_list(tiny, copied, tmp_path):
    publish.list_files(copied.folder)
    (copied.folder / "extra.txt").write_text("x")
    (copied.folder / "report.html").write_text("x")
    reference = Results.reference(tiny.profile, tmp_path)
    assert faults(reference) == {MANIFEST: "extra.txt is not listed; report.html was changed"}
    with pytest.raises(InputError, match="only read"):
        reference.write_raw("select", {})


# ---- comparison, publication ---------------------------------------------------------------------------------------


def test_a_run_reproduces_itself_and_a_moved_interval_differs(tiny, copied):
    verdicts = {one.table: one.verdict for one in compare.compare(copied, tiny.results)}
    assert set(verdicts) == {name for stage in all_stages() for name in stage.CAPTIONS}
    assert compare.DIFFERS not in verdicts.values() and compare.REPRODUCED in verdicts.values()
    frame = copied.read_table("sufficiency")
    moved = frame.assign(si=frame.si + 5, si_low=frame.si_low + 5, si_high=frame.si_high + 5)
    scores = copied.read_table("benchmarks")
    far = scores.assign(value=scores["value"] + 5 * scores["stderr"].max() + 1)
    assert compare.table_verdict("benchmarks", scores, scores).verdict == compare.REPRODUCED
    wide, without = (frame.assign(si_low=-end, si_high=end) for end in (np.inf, np.nan))
    setting, claims = copied.read_table("setting"), copied.read_table("claims")
    turned = claims.assign(verdict=["supported", *claims["verdict"][1:]])
    for name, mine, theirs in (
        *(("sufficiency", other, frame) for other in (moved, wide, without, frame.head(3))),
        ("benchmarks", far, scores),
        ("setting", setting.head(2), setting),
        ("claims", turned, claims),
    ):
        assert compare.table_verdict(name, mine, theirs).verdict == compare.DIFFERS
    text = compare.write(copied, compare.compare(copied, tiny.results))
    assert "reproduced" in text and (copied.folder / "reproduction.md").read_text() == text
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


def test_a_published_report_does_not_compare_itself_with_what_is_published(tiny, copied):
    (copied.folder / "reproduction.md").write_text("# Reproduction")
    assert 'id="reproduction"' in report.publish_page(tiny.profile, copied).read_text(encoding="utf-8")
    page = report.publish_page(tiny.profile, copied, published=True).read_text(encoding="utf-8")
    assert "#reproduction" not in page and 'id="reproduction"' not in page and 'id="claims"' in page


def test_figures_are_drawn_again_from_published_tables(tiny, copied, tmp_path):
    shutil.rmtree(copied.pieces)
    (copied.figures / "fig4_legibility.png").write_bytes(b"")
    publish.list_files(copied.folder)
    with pytest.raises(InputError, match="fig4_legibility.png was changed"):
        redraw.redraw(tiny.profile, tmp_path)
    shutil.copy2(tiny.results.figures / "fig4_legibility.png", copied.figures)
    publish.list_files(copied.folder)
    files = json.loads((copied.folder / MANIFEST).read_text())
    redraw.redraw(tiny.profile, tmp_path)
    drawn = json.loads((copied.folder / MANIFEST).read_text())
    changed = {name for name in files | drawn if files.get(name) != drawn.get(name)}
    assert all(name == "run.json" or name.startswith("notebooks/") for name in changed), changed
    assert faults(Results.reference(tiny.profile, tmp_path)) == {}


def test_only_a_complete_run_of_clean_commits_is_published(tiny, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "code_commit", lambda: "0" * 40)
    with pytest.raises(InputError, match="expected tables of the commit that is checked out"):
        publish.publish(tiny.profile, copied, tmp_path / "reference")
    shutil.rmtree(next(copied.pieces.glob("train/grpo-s0/*")))
    with pytest.raises(InputError, match="not complete"):
        publish.publish(tiny.profile, copied, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()
