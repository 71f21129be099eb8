"""Draw the figures of a published run again from its published tables: `python scripts/redraw.py cpu study`.

For maintainers, where only the drawing has changed. Tables and rows stay as they were measured; each figure, its place in
the executed notebook, the report and the list of hashes are made new. A run whose tables do not follow from its rows is refused.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from enigma import figures
from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record import report
from enigma.record.files import atomic_folder, atomic_write_json, atomic_write_text
from enigma.record.provenance import code_commit
from enigma.record.results import RECORD, REFERENCE, Results
from enigma.run.publish import list_files
from enigma.run.verify import verify


def shown(profile, results: Results, name: str) -> list:
    """What a notebook's cell shows of a figure that is drawn and saved anew."""
    InteractiveShell.instance()  # without one, nothing is captured
    with capture_output() as captured:
        figures.make(profile, results, name)
    return [
        nbformat.v4.new_output("display_data", data=one.data, metadata=one.metadata or {})
        for one in captured.outputs
    ]


def redraw(profile, root: Path = REFERENCE) -> None:
    reference = Results.reference(profile, root)
    published = reference.folder
    faults = [f"{what}: {fault}" for what, fault in verify(profile, reference) if fault]
    if faults:
        raise InputError(f"{published}: {faults[0]}; expected a published run that verifies")
    with tempfile.TemporaryDirectory() as folder:
        results = Results(profile, folder)
        shutil.copytree(published, results.folder)
        for path in sorted(results.notebooks.glob("*.ipynb")):
            notebook = nbformat.read(path, 4)
            for cell in notebook.cells:
                names = [one.get("metadata", {}).get("figure") for one in cell.get("outputs", ())]
                for figure in filter(None, names):
                    cell.outputs = shown(profile, results, figure)
            atomic_write_text(path, nbformat.writes(notebook) + "\n")
        atomic_write_json(results.folder / RECORD, results.read_record() | {"drawn": code_commit()})
        report.publish_page(profile, results)
        list_files(results.folder)
        with atomic_folder(published) as new:
            shutil.copytree(results.folder, new, dirs_exist_ok=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        redraw(load_profile(name))
        print(REFERENCE / name)
