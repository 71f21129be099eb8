"""results/<profile>/report.html: claims, figures, tables, transcripts and provenance in one page that needs no network.

Everything is read from the results folder and from the profile; the page has no time stamp, so the same files give the
same bytes. What a model or a user wrote is escaped, and the page's own policy forbids it to load or send anything.

Transcripts are chosen by `TRANSCRIPTS_RULE`, which nobody's taste enters. Source: our choice [D].
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from enigma.errors import InputError
from enigma.profile import run_name
from enigma.record.results import (
    FIGURE,
    PAPER_BIBTEX,
    TABLE,
    Results,
    atomic_write_text,
    format_number,
    interval_text,
)
from enigma.stages import claims, setting

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
LONG = 12  # rows; a longer table scrolls, and can be sorted
PRINTED = 20  # rows of a table on paper
MOST = 3000  # rows of a table in the page
TRANSCRIPTS = 6
TRANSCRIPTS_RULE = (
    f"Of all pairs of a held-out question and an arm, the first {TRANSCRIPTS}, ordered by the question's SHA-256 and then "
    "by the arm's place in the profile. Of each: the first training seed, that principle of the arm's set whose "
    "SHA-256 together with the question comes first, and the first completion sampled under it from the untrained "
    "and from the trained model."
)


class Transcript(NamedTuple):
    """One question and principle: what the untrained model wrote, and what the trained arm did."""

    arm: str
    question: str
    principle: str
    before: str
    after: str


def render(profile, results: Results) -> str:
    """The page. Raises InputError where run.json or a sidecar is missing or damaged."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    items = results.catalogue()
    return template.render(
        profile=profile,
        record=results.read_record("date", "licences"),
        claims=_claims(results),
        general_rule=claims.GENERAL_RULE,
        setting=setting.table(profile).to_dict("records"),
        setting_caption=setting.CAPTION,
        figures=[(item, _image(results, item)) for item in items if item.kind == FIGURE],
        tables=[(item, _table(results, item)) for item in items if item.kind == TABLE],
        transcripts=transcripts(profile, results),
        transcripts_rule=TRANSCRIPTS_RULE,
        items=items,
        bibtex=PAPER_BIBTEX,
        long=LONG,
        printed=PRINTED,
    )


def write(profile, results: Results) -> Path:
    """Write report.html into the results folder; returns its path."""
    return atomic_write_text(results.folder / NAME, render(profile, results))


def _claims(results: Results) -> list[dict]:
    if not results.has_table("claims"):
        return []
    table = results.read_table("claims")
    shown = [interval_text(*row) for row in zip(table["value"], table["low"], table["high"], strict=True)]
    return table.fillna({"paper": "", "note": ""}).assign(shown=shown).to_dict("records")


def _image(results: Results, item) -> str:
    data = (results.figures / item.sidecar["file"]).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _table(results: Results, item) -> dict:
    """Header, which columns are numbers, rows as text, and how many there are."""
    if not results.has_table(item.name):
        return {"text": (results.tables / item.sidecar["file"]).read_text(encoding="utf-8")}
    frame = results.read_table(item.name)
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    rows = [[_cell(value) for value in row] for row in frame.head(MOST).itertuples(index=False)]
    return {"header": list(zip(frame.columns, numeric, strict=True)), "rows": rows, "count": len(frame)}


def _cell(value) -> str:
    if isinstance(value, str | bool):
        return str(value)
    return (
        ""
        if pd.isna(value) or math.isnan(value)
        else format_number(float(f"{value:.4g}") if value % 1 else value)
    )


# ---- transcripts ---------------------------------------------------------------------------------------------------


def transcripts(profile, results: Results) -> list[Transcript]:
    """Completions before and after training, chosen by `TRANSCRIPTS_RULE`; empty where nothing was sampled."""
    seed = profile.seeds.runs[0]
    try:
        sets = results.read_yaml("selection")
        before = {
            name: _sampled(results, f"base-{name}") for name in {arm.set for arm in profile.arms.values()}
        }
        after = {arm: _sampled(results, run_name(arm, seed)) for arm in profile.arms}
    except (InputError, FileNotFoundError):
        return []
    questions = sorted(next(iter(after.values()))["questions"], key=_digest)
    pairs = itertools.islice(itertools.product(questions, profile.arms), TRANSCRIPTS)
    return [_transcript(question, arm, sets, before, after, profile) for question, arm in pairs]


def _transcript(question: str, arm: str, sets: dict, before: dict, after: dict, profile) -> Transcript:
    name = profile.arms[arm].set
    principles = sets[name]["principles"]
    principle = min(principles, key=lambda principle: _digest(f"{question} {principle}"))
    texts = [_first(sampled, question, principles.index(principle)) for sampled in (before[name], after[arm])]
    return Transcript(arm, question, principle, *texts)


def _first(sampled: dict, question: str, principle: int) -> str:
    """The first completion of a question under the principle of this number."""
    return sampled["texts"][
        sampled["questions"].index(question) * len(sampled["source"]) + sampled["source"].index(principle)
    ]


def _sampled(results: Results, run: str) -> dict:
    return json.loads((results.runs / run / "legibility.json").read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
