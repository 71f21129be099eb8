"""How to cite a figure or a table, and the paper."""

from enigma import __version__
from enigma.errors import InputError
from enigma.record.results import COLUMN, FIGURE, REFERENCE, REPOSITORY, Item, Results

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
    """What to write under a figure or table taken from here: caption, file, sha256, commits, BibTeX.

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
    made = [one for name in tables for one in results.sidecar("tables", name).get("made", [])]
    commits = ", ".join(sorted({one["commit"] for one in made})) or results.read_record()["commit"]
    key = f"enigma_companion_{profile}_{item.name}".replace("-", "_")
    title = f"{{ENIGMA}} companion: {item.name}, profile {profile}".replace("_", r"\_")
    folder = REFERENCE.relative_to(REPOSITORY) if results.read_only else results.root
    path = folder / profile / item.kind / sidecar["file"]
    files = [path, path.with_suffix(".pdf"), path.parent / COLUMN / f"{item.name}.pdf"]
    lines = [
        f"caption: {sidecar['caption']}",
        *(f"file:    {file.as_posix()}" for file in (files if item.kind == FIGURE else files[:1])),
        f"sha256:  {sidecar['sha256']} ({sidecar['file']})",
        f"commit:  {commits} (of the code that made it)",
        "",
        f"@misc{{{key},",
        f"  title  = {{{title}}},",
        "  author = {{The ENIGMA companion contributors}},",
        f"  year   = {{{YEAR}}},",
        f"  note   = {{Version {__version__}, made by commit {commits}, sha256 {sidecar['sha256']}}}",
        "}",
        "",
        PAPER_BIBTEX,
    ]
    return "\n".join(lines)
