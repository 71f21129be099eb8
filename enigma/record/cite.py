"""How to cite a figure or a table, and the paper."""

from enigma import __version__
from enigma.errors import InputError
from enigma.record.files import file_hash
from enigma.record.results import COLUMN, FIGURE, REFERENCE, REPOSITORY, TABLE, Item, Results

PAPER_BIBTEX = """@article{seneque2025enigma,
  title         = {{ENIGMA}: The Geometry of Reasoning and Alignment in Large-Language Models},
  author        = {Seneque, Gareth and Ho, Lap-Hang and Saeedi, Nafise Erfanian and Molendijk, Jeffrey and
                   Kuperman, Ariel and Elson, Tim},
  journal       = {arXiv preprint arXiv:2510.11278},
  eprint        = {2510.11278},
  archivePrefix = {arXiv},
  year          = {2025}
}"""

YEAR = 2026  # of this version


def cite(results: Results, name: str) -> str:
    """What to write under a figure or table taken from here: caption, files with their sha256, commits, BibTeX.

    `fig3` stands for fig3_training. Raises InputError naming what there is where no file, or more than one, has such a
    name.
    """
    items = results.catalogue()
    found = [item for item in items if item.name == name] or [
        i for i in items if i.name.startswith(f"{name}_")
    ]
    if len(found) != 1:
        there = ", ".join(sorted({item.name for item in found or items}))
        raise InputError(
            f"{results.folder}: found {'no' if not found else len(found)} figure or table {name!a:.60}; expected one of "
            f"{there or '(none yet)'}; correct the name, or run the notebooks first"
        )
    return _citation(found[0], results)


def _citation(item: Item, results: Results) -> str:
    sidecar, profile = item.sidecar, results.profile.name
    tables = [item.name] if "made" in sidecar else list(sidecar["inputs"])
    sides = [results.sidecar(TABLE, name) for name in tables]
    made = [one for side in sides for one in side.get("made", [])]
    # A table that is made from tables, such as the claims, goes back to the rows of the whole run.
    made = made or [one for each in results.catalogue() for one in each.sidecar.get("made", [])]
    record = results.read_record()
    rows = ", ".join(sorted({one["commit"] for one in made})) or record["commit"]
    # Figures may be drawn anew, from the same tables.
    shown = record.get("drawn" if item.kind == FIGURE else "", record["commit"])
    key = f"enigma_companion_{profile}_{item.name}".replace("-", "_")
    title = f"{{ENIGMA}} companion: {item.name}, profile {profile}".replace("_", r"\_")
    folder = REFERENCE.relative_to(REPOSITORY) if results.read_only else results.root
    path = folder / profile / item.kind / sidecar["file"]
    files = [path]
    if item.kind == FIGURE:
        files += [path.with_suffix(".pdf"), path.parent / COLUMN / f"{item.name}.pdf"]
        files += [path.parents[1] / TABLE / f"{table}.csv" for table in tables]
    places = {file: results.folder / file.relative_to(folder / profile) for file in files}
    lines = [
        f"caption: {sidecar['caption']}",
        *(
            f"file:    {file.as_posix()} (sha256 {file_hash(place)})"
            for file, place in places.items()
            if place.is_file()
        ),
        f"rows:    measured by commit {rows}",
        f"made:    of them, by commit {shown}",
        "",
        f"@misc{{{key},",
        f"  title  = {{{title}}},",
        "  author = {{The ENIGMA companion contributors}},",
        f"  year   = {{{YEAR}}},",
        f"  note   = {{Version {__version__}, rows of commit {rows}, sha256 {sidecar['sha256']}}}",
        "}",
        "",
        PAPER_BIBTEX,
    ]
    return "\n".join(lines)
