"""Notebooks: pairs agree, hold no output, do no work of their own; committed results match the committed profile."""

import ast
import json
from pathlib import Path

import jupytext
import nbformat
import pytest

from enigma.profile import load_profile

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_pair_is_current(source):
    pair = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    fresh = jupytext.read(source)
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in pair.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in fresh.cells
    ], f"run: jupytext --to ipynb {source.relative_to(ROOT)}"
    assert all(not cell.get("outputs") for cell in pair.cells)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_cell_is_a_call_and_a_look(source):
    for cell in jupytext.read(source).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        assert not any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While) for node in ast.walk(tree)
        )
        if "parameters" in cell.metadata.get("tags", []):
            values = [ast.literal_eval(node.value) for node in tree.body]
            assert values == ["cpu", "../results"]


def results_folders():
    return sorted(
        path.parent for path in (ROOT / "results").glob("*/run.json") if path.parent.name != "smoke"
    )


def test_there_are_committed_results():
    assert [folder.name for folder in results_folders()][:1] == ["cpu"]


@pytest.mark.parametrize("folder", results_folders(), ids=lambda path: path.name)
def test_committed_results_are_of_the_committed_profile(folder):
    expected = load_profile(folder.name).hash
    sidecars = [*folder.glob("tables/*.json"), *folder.glob("figures/*.json")]
    assert len(sidecars) > 10
    for path in [folder / "run.json", *sidecars]:
        found = json.loads(path.read_text())["profile_hash"]
        assert found == expected, (
            f"{path.relative_to(ROOT)} was made from another text of profile {folder.name}"
        )


@pytest.mark.parametrize("folder", results_folders(), ids=lambda path: path.name)
def test_committed_results_hold_no_weights(folder):
    names = {
        path.suffix
        for path in folder.rglob("*")
        if "adapter" not in path.parts and "checkpoints" not in path.parts
    }
    assert not names & {".safetensors", ".pt", ".bin", ".pth", ".gguf"}
