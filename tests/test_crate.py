"""The machine-readable record: valid RO-Crate, complete, and the same bytes from the same files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rocrate.rocrate import ROCrate

from enigma.profile import load_profile
from enigma.record import crate
from enigma.record.results import Results, atomic_write_text, file_hash

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def results(tmp_path):
    from matplotlib.figure import Figure

    profile = load_profile("smoke")
    results = Results(profile, tmp_path)
    results.write_yaml("selection", {"high": ["a"]}, "Sets <b>.")
    results.write_table("training", pd.DataFrame({"x": [1]}), "Steps.", inputs=["selection"])
    results.write_table("geometry", pd.DataFrame({"x": [1]}), "Distances.", inputs=["selection"])
    results.save_figure("fig2_training", Figure(), "Curves.", inputs=["training"])
    for stage in ("01_select", "02_train", "04_geometry"):
        atomic_write_text(results.notebooks / f"{stage}.ipynb", "{}")
    atomic_write_text(results.runs / "grpo-s0" / "steps.csv", "x\n1\n")
    for left_out in ("runs/grpo-s0/adapter/a.safetensors", "runs/02_train.heartbeat.json", ".run.lock"):
        atomic_write_text(results.folder / left_out, "")
    results.write_record()
    crate.write(profile, results)
    return results


@pytest.fixture
def entities(results):
    text = (results.folder / crate.NAME).read_text(encoding="utf-8")
    return {entity["@id"]: entity for entity in json.loads(text)["@graph"]}


def references(value):
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_the_rocrate_library_reads_it_back(results):
    read = ROCrate(results.folder)
    assert read.name == "Results of profile smoke, ENIGMA companion"
    assert read.root_dataset["datePublished"] == json.loads((results.folder / "run.json").read_text())["date"]
    actions = {action.id: action for action in read.root_dataset["mentions"]}
    assert list(actions) == ["#run-01_select", "#run-02_train", "#run-04_geometry"]
    training = actions["#run-02_train"]
    assert training["instrument"].id == "notebooks/02_train.ipynb"
    assert {thing.id for thing in training["object"]} == {"#profile", "tables/selection.yaml"}
    assert {thing.id for thing in training["result"]} == {
        "tables/training.csv",
        "figures/fig2_training.png",
        "figures/fig2_training.pdf",
    }


def test_required_of_the_specification(entities):
    descriptor, root = entities[crate.NAME], entities["./"]
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"} and descriptor["about"] == {
        "@id": "./"
    }
    assert root["@type"] == "Dataset"
    assert all(root[key] for key in ("name", "description", "datePublished", "license", "author", "citation"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", root["datePublished"])
    assert root["conformsTo"]["@id"] in entities
    for entity in entities.values():
        assert "@type" in entity and "time" not in " ".join(entity).lower()


def test_every_reference_is_described_and_every_file_is_there(results, entities):
    assert set(references(list(entities.values()))) - entities.keys() <= {"https://w3id.org/ro/crate/1.1"}
    files = [entity for entity in entities.values() if "File" in entity["@type"]]
    assert {file["@id"] for file in files} == {part["@id"] for part in entities["./"]["hasPart"]}
    for file in files:
        path = results.folder / file["@id"]
        assert file["sha256"] == file_hash(path) and file["contentSize"] == str(path.stat().st_size)
    assert {"run.json", "runs/grpo-s0/steps.csv", "tables/training.json"} <= entities.keys()
    assert not any("adapter" in name or "heartbeat" in name or name.startswith(".r") for name in entities)


def test_no_identifier_stands_twice(results):
    graph = json.loads((results.folder / crate.NAME).read_text(encoding="utf-8"))["@graph"]
    names = [entity["@id"] for entity in graph]
    assert len(names) == len(set(names))


def test_software_and_authors_are_those_of_the_run_and_the_citation(results, entities):
    record = json.loads((results.folder / "run.json").read_text())
    assert all(entities[f"#{name}"]["version"] == version for name, version in record["versions"].items())
    assert entities[crate.SOFTWARE]["softwareVersion"] == record["commit"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = entities[citation["preferred-citation"]["url"]]
    assert [entities[author["@id"]]["familyName"] for author in paper["author"]] == [
        author["family-names"] for author in citation["preferred-citation"]["authors"]
    ]
    assert entities["tables/selection.yaml"]["description"] == "Sets <b>."


def test_the_same_files_give_the_same_bytes(results):
    path = results.folder / crate.NAME
    first = path.read_bytes()
    assert crate.write(results.profile, Results(results.profile, results.root)).read_bytes() == first
