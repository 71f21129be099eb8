"""How far a run is: every piece of work of a profile, kept or to do, and why. Nothing is written."""

from typing import NamedTuple

from enigma.record.cache import NotDone
from enigma.record.results import Results
from enigma.stages import all_stages, short_name


class Line(NamedTuple):
    """`state` is "kept", "to do" or "waits"."""

    stage: str
    piece: str
    state: str
    why: str = ""


def status(profile, root="results") -> list[Line]:
    """One line for each piece of each stage; a stage that waits for an earlier one has a single line."""
    results = Results(profile, root)
    lines = []
    for stage in all_stages():
        name = short_name(stage)
        try:
            for piece in stage.pieces(profile, results.store):
                why = results.store.why(piece)
                lines.append(Line(name, piece.name, "to do" if why else "kept", why))
        except NotDone as error:
            lines.append(Line(name, "", "waits", str(error).split(";")[0]))
    return lines


def is_complete(profile, results: Results) -> bool:
    """Whether every piece is kept and every table of every stage is there, of this profile's content."""
    store = results.store
    for stage in all_stages():
        if any(store.fault(piece) for piece in stage.pieces(profile, store)):
            return False
        for name in stage.CAPTIONS:
            if not results.has_table(name) or results.sidecar("tables", name)["profile_hash"] != profile.hash:
                return False
    return True
