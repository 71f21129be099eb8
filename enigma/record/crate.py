"""results/<profile>/ro-crate-metadata.json: the run record that other programs read.

An RO-Crate 1.1 with the profile Process Run Crate 0.5: one action for each notebook, with what it read, what it wrote and
the software it ran on, and the SHA-256 of every file. It is written from run.json, the sidecars and CITATION.cff, and has
no time but the run's day, so the same files give the same bytes. Source: https://w3id.org/ro/crate/1.1 and
https://w3id.org/ro/wfrun/process/0.5.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from enigma.record.results import FIGURE, Results, atomic_write_text, file_hash

NAME = "ro-crate-metadata.json"
CITATION = Path(__file__).resolve().parents[2] / "CITATION.cff"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
SOFTWARE = "#software"
PYTHON = "#python"
FORMATS = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".tex": "application/x-tex",
    ".yaml": "application/yaml",
}
LEFT_OUT = ("adapter", "checkpoints")  # weights: not kept with the results


def render(profile, results: Results) -> str:
    """The record as JSON-LD. Raises InputError where run.json or a sidecar is missing or damaged."""
    graph = {"@context": CONTEXT, "@graph": metadata(profile, results)}
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


def write(profile, results: Results) -> Path:
    """Write ro-crate-metadata.json into the results folder; returns its path."""
    return atomic_write_text(results.folder / NAME, render(profile, results))


def metadata(profile, results: Results) -> list[dict]:
    """The entities of the graph."""
    record = results.read_record("date", "licences")
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    files, actions = _files(results), _actions(results)
    authors = [
        {"@id": f"#{author['name'].replace(' ', '-')}", "@type": "Organization", "name": author["name"]}
        for author in citation["authors"]
    ]
    software = [
        {
            "@id": SOFTWARE,
            "@type": "SoftwareApplication",
            "name": citation["title"],
            "version": citation["version"],
            "softwareVersion": record["commit"],
            "license": _ref(LICENCE),
            "author": _refs(authors),
        },
        *(
            {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, "version": version}
            for name, version in record["versions"].items()
        ),
    ]
    return [
        {
            "@id": NAME,
            "@type": "CreativeWork",
            "conformsTo": _ref("https://w3id.org/ro/crate/1.1"),
            "about": _ref("./"),
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Results of profile {profile.name}, ENIGMA companion",
            "description": profile.description,
            "identifier": profile.hash,
            "datePublished": record["date"],
            "license": _ref(LICENCE),
            "author": _refs(authors),
            "conformsTo": _ref(PROFILE),
            "citation": _ref(paper["url"]),
            "hasPart": _refs(files),
            "mentions": _refs(actions),
        },
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": LICENCE, "@type": "CreativeWork", "name": "Apache License 2.0", "identifier": "Apache-2.0"},
        *_paper(paper),
        *authors,
        *software,
        {
            "@id": "#profile",
            "@type": "CreativeWork",
            "name": f"profile {profile.name}",
            "encodingFormat": "application/yaml",
            "identifier": profile.hash,
            "text": profile.text,
        },
        *actions,
        *_notebooks(files, software[1:]),
        *(file for file in files if not file["@id"].endswith(".ipynb")),
    ]


def _paper(paper: dict) -> list[dict]:
    authors = [
        {
            "@id": f"#{author['given-names']}-{author['family-names']}".replace(" ", "-"),
            "@type": "Person",
            "givenName": author["given-names"],
            "familyName": author["family-names"],
            "name": f"{author['given-names']} {author['family-names']}",
        }
        for author in paper["authors"]
    ]
    article = {
        "@id": paper["url"],
        "@type": "ScholarlyArticle",
        "name": paper["title"],
        "author": _refs(authors),
        "identifier": f"https://doi.org/{paper['doi']}",
        "datePublished": str(paper["year"]),
    }
    return [article, *authors]


def _files(results: Results) -> list[dict]:
    """Every file of the results folder but this record, with its hash; captions for figures and tables."""
    captions = {}
    for item in results.catalogue():
        names = (
            [item.sidecar["file"], item.sidecar.get("pdf")] if item.kind == FIGURE else [item.sidecar["file"]]
        )
        captions |= {f"{item.kind}/{name}": item.sidecar["caption"] for name in names if name}
    paths = sorted(
        path
        for path in results.folder.rglob("*")
        if path.is_file() and _is_kept(path.relative_to(results.folder))
    )
    return [_file(path, path.relative_to(results.folder).as_posix(), captions) for path in paths]


def _is_kept(path: Path) -> bool:
    hidden = any(part.startswith(".") or part in LEFT_OUT for part in path.parts)
    return not hidden and path.name != NAME and not path.name.endswith(".heartbeat.json")


def _file(path: Path, name: str, captions: dict[str, str]) -> dict:
    file = {
        "@id": name,
        "@type": "File",
        "name": name,
        "encodingFormat": FORMATS.get(path.suffix, "application/octet-stream"),
        "contentSize": str(path.stat().st_size),
        "sha256": file_hash(path),
    }
    return file | ({"description": captions[name]} if name in captions else {})


def _notebooks(files: list[dict], packages: list[dict]) -> list[dict]:
    """The executed notebooks: files, and the programs of the actions."""
    more = {
        "@type": ["File", "SoftwareSourceCode"],
        "programmingLanguage": _ref(PYTHON),
        "isPartOf": _ref(SOFTWARE),
        "softwareRequirements": _refs(packages),
    }
    return [file | more for file in files if file["@id"].endswith(".ipynb")]


def _actions(results: Results) -> list[dict]:
    """One CreateAction for each executed notebook that wrote something."""
    items, actions = results.catalogue(), []
    maker = {item.name: item for item in items}
    for path in sorted(results.notebooks.glob("*.ipynb")):
        made = [item for item in items if item.notebook == path.stem]
        inputs = dict.fromkeys(name for item in made for name in item.sidecar["inputs"])
        read = [maker[name] for name in inputs if name in maker and maker[name].notebook != path.stem]
        actions.append(
            {
                "@id": f"#run-{path.stem}",
                "@type": "CreateAction",
                "name": f"Run of the notebook {path.stem}",
                "instrument": _ref(f"notebooks/{path.name}"),
                "object": [_ref("#profile"), *map(_ref, _written(read))],
                "result": [_ref(name) for name in _written(made)],
            }
        )
    return actions


def _written(items: list) -> list[str]:
    """Paths of the files of figures and tables."""
    names = [
        (item.kind, name)
        for item in items
        for name in (item.sidecar["file"], item.sidecar.get("pdf"))
        if name
    ]
    return [f"{kind}/{name}" for kind, name in names]


def _ref(name: str) -> dict:
    return {"@id": name}


def _refs(entities: list[dict]) -> list[dict]:
    return [_ref(entity["@id"]) for entity in entities]
