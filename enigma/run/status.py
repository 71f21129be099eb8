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


def check_skipped(profile, results: Results, names: list[str]) -> None:
    """Raise InputError unless every piece of the stages `names` is kept, and every table is there and of this profile."""
    for stage in all_stages():
        if stage.NAME in names:
            for piece in stage.pieces(profile, results.store):
                results.store.need(piece)
            for table in stage.CAPTIONS:
                results.read_table(table)
