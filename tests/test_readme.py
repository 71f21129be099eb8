"""README.md and docs/: every number is that of what is committed, every link leads somewhere."""

import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)
MARKED = {
    f"{page.stem} {match[2]} {match[3] or ''}".strip(): match[0]
    for page in readme.PAGES
    for match in readme.BLOCK.finditer(page.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("block", MARKED.values(), ids=MARKED)
def test_numbers_are_those_that_are_committed(block):
    filled, absent = readme.fill(block)
    if absent:
        pytest.skip(absent[0])
    assert filled == block, "run: make docs"


def test_a_published_profile_fills_its_blocks(tmp_path):
    """A tiny reference of the default profile; a block whose table is not there stays as it was, and is named."""
    folder = tmp_path / "results" / "reference" / "cpu"
    (folder / "tables").mkdir(parents=True)
    rows = (
        "id,claim,measure,value,low,high,units,over,detectable,verdict",
        "C1,Steadier.,log unsteadiness,0.5,0.25,0.75,6,seeds,0.2,supported",
        "C2,Better.,margin,,,,,,,not tested at this size",
        "L,Legible.,bound,-1,-2,-0.5,12,questions,1,not supported",
    )
    (folder / "tables" / "claims.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    used = (("01_select", 90, 2.0), ("02_train", 630, 3.04))
    stages = {name: {"seconds": seconds, "peak_memory_gb": peak} for name, seconds, peak in used}
    record = {"stages": stages, "machine": {"cores": 2, "processor": "A processor"}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    names = ("verdicts", "costs", "stages", "claims", "setting")
    text = "".join(f"<!-- measured:{name} -->\nold\n<!-- end -->\n" for name in names)
    filled, absent = readme.fill(text, tmp_path)
    assert "supported 1, not supported 1, undecided 0, not tested 1" in filled
    assert "`make reproduce` 12 minutes and 3.0 GB" in filled and "| all | 12 | 3 |" in filled
    assert "| 0.5 [0.25, 0.75] | 6 | seeds |" in filled and "| not measured |" in filled
    assert absent == ["setting: results/reference/cpu/tables/setting.csv is not there"]
    assert filled.count("old") == 1
    assert readme.fill(filled, tmp_path)[0] == filled


def test_links_lead_somewhere():
    for page in readme.PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            reference = re.match(r"(?:\.\./)?results/reference/(cpu|study)\b", target)
            if reference and not (ROOT / "results" / "reference" / reference[1]).is_dir():
                continue  # nothing is published for that profile yet
            assert os.path.exists(page.parent / target), f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len(re.sub(r"```python.*?```", "", README, flags=re.DOTALL).split()) <= 1250


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "reference").glob("*/manifest.json")), ids=lambda p: p.parent.name
)
def test_every_published_file_is_the_one_that_was_published(path):
    """A formatter or an editor that touches a published file is noticed here."""
    for name, expected in json.loads(path.read_text(encoding="utf-8")).items():
        assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == expected, name
