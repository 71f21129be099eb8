"""results/<profile>/ -> results/reference/<profile>/: what maintainers publish on purpose, and nothing else writes."""

import shutil
from pathlib import Path

from enigma.errors import InputError
from enigma.profile import run_name
from enigma.record import report
from enigma.record.files import atomic_folder, atomic_write_json, atomic_write_text, file_hash
from enigma.record.provenance import code_commit
from enigma.record.results import RECORD, REFERENCE, Results
from enigma.run.card import model_card
from enigma.run.status import check_skipped
from enigma.run.verify import MANIFEST, verify
from enigma.stages import all_stages, train

MAIN_ARMS = ("grpo", "enigma_high", "enigma_low")
FOLDERS = ("raw", "tables", "figures", "notebooks")


def publish(profile, results: Results, target: Path = REFERENCE) -> Path:
    """Copy a finished run into the reference, with the adapters of the main arms' first seed, and a list of hashes.

    Raises InputError for a run that is not complete, whose tables are not of the commit checked out, or where a tree had
    changes that were not committed. Rows may be of several commits: what is kept is what today's code would make.
    """
    try:
        check_skipped(profile, results, [stage.NAME for stage in all_stages()])
    except InputError:
        raise InputError(
            f"{results.folder}: the run is not complete; expected every piece and table; finish it first"
        ) from None
    store = results.store
    rows = {store.made(piece)["commit"] for stage in all_stages() for piece in stage.pieces(profile, store)}
    # A table of no stage, such as `enigma create` writes, is published with the others.
    for item in results.catalogue():
        rows |= {one["commit"] for one in item.sidecar.get("made", [])}
        if item.sidecar["profile_hash"] != profile.hash:
            raise InputError(
                f"{results.folder}: {item.name} was made with another profile; expected {profile.hash}; make it again, or remove it"
            )
    # Rows are kept where code that makes none has changed; tables and figures are always those of the code checked out.
    tables = {results.read_record()["commit"], code_commit()}
    if len(tables) > 1 or any("+" in one or one == "unknown" for one in rows | tables):
        raise InputError(
            f"{results.folder}: found rows of {', '.join(sorted(rows))} and tables of {', '.join(sorted(tables))}; expected "
            "tables of the commit that is checked out, and clean trees; run it again there"
        )
    faults = [f"{what}: {fault}" for what, fault in verify(profile, results) if fault]
    faults += [
        f"{path}: found a link; expected a file" for path in results.folder.rglob("*") if path.is_symlink()
    ]
    faults += [f"the profile names {path}, a path of this machine" for path in profile.outside()]
    if faults:
        raise InputError(f"{results.folder}: {faults[0]}; expected a run that verifies; run it again")
    report.publish_page(profile, results, published=True)  # from what was verified
    folder = target / profile.name
    with atomic_folder(folder) as new:
        for name in FOLDERS:
            shutil.copytree(results.folder / name, new / name)
        for name in (RECORD, report.NAME):
            shutil.copy2(results.folder / name, new / name)
        for arm, seed in profile.runs():
            if arm in MAIN_ARMS and seed == profile.seeds.runs[0]:
                place = new / "adapters" / run_name(arm, seed)
                shutil.copytree(train.adapter(profile, store, arm, seed), place)
                atomic_write_text(place / "README.md", model_card(profile, results, arm, seed))
        list_files(new)
    return folder


def list_files(folder: Path) -> None:
    """Write the list of hashes of what lies in a published folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    atomic_write_json(
        folder / MANIFEST, {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
    )
