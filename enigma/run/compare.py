"""Did a run reproduce what is published? Every table against the reference, by stated rules.

- Texts and counts that say what was asked (the table `setting`): exactly.
- Numbers with an interval or a standard error: the (95 %) intervals of both have a point in common, for at least 95 % of a table's rows, since of so
  many independent intervals a few miss by chance. A row that only one of the two has does not agree. The table `claims`:
  all verdicts, too.
- Other trained or sampled numbers are not judged by themselves: each goes into a number that has an interval.
- Seconds and memory belong to a machine, and are not compared.

One seed does not reproduce to the digit: another processor rounds a sampled token otherwise, and everything after it.
"""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from enigma.errors import InputError
from enigma.record.cells import markdown_table
from enigma.record.files import atomic_write_text
from enigma.record.results import Results
from enigma.stages import all_stages

REPRODUCED, DIFFERS, NOT_COMPARABLE = "reproduced", "differs", "not comparable"
# Columns that name a row; rows are matched by those that a table has.
KEYS = (
    *("level", "name", "span", "arm", "seed", "set", "versus", "task", "part", "metric", "measure"),
    *("layer", "principle", "condition", "id", "outcome", "what", "step"),
)
# Rows of these tables are named by what was drawn or chosen, or are of a machine.
EXACT = ("setting",)
AGREE = 0.95  # share of a table's intervals that must meet
UNMATCHED = (
    *("training_groups", "projection", "transcripts", "benchmark_speed", "selection"),
    *("selection_stability", "prediction_points"),
)


class Verdict(NamedTuple):
    """One table: its verdict, how many numbers were compared and how many of them agree, and a remark."""

    table: str
    verdict: str
    compared: int
    agree: int
    remark: str = ""


def compare(results: Results, reference: Results) -> list[Verdict]:
    """One verdict for each table of every stage. Raises InputError for a table that this run should have and has not."""
    found = []
    for stage in all_stages():
        for name in stage.CAPTIONS:
            mine = results.read_table(name)
            try:
                theirs = reference.read_table(name)
            except InputError as error:
                found.append(Verdict(name, NOT_COMPARABLE, 0, 0, str(error).split(";")[0].rpartition("/")[2]))
                continue
            found.append(table_verdict(name, mine, theirs))
    return found


def table_verdict(name: str, mine: pd.DataFrame, theirs: pd.DataFrame) -> Verdict:
    """The rules above for one table of a run and of the reference."""
    if list(mine) != list(theirs):
        return Verdict(name, NOT_COMPARABLE, 0, 0, "other columns")
    if name in UNMATCHED:
        return Verdict(name, NOT_COMPARABLE, 0, 0, "rows are named by what was drawn")
    if name in EXACT:
        rows = (set(frame.fillna("").itertuples(index=False, name=None)) for frame in (mine, theirs))
        same = len(set.intersection(*rows))
        every = max(len(mine), len(theirs))
        return Verdict(name, REPRODUCED if same == every else DIFFERS, every, same, "exactly")
    mine, theirs = _with_intervals(mine), _with_intervals(theirs)
    keys = [key for key in KEYS if key in mine]
    pairs = [(low, _high(low)) for low in mine if re.fullmatch(r"(.*_)?low", low) and _high(low) in mine]
    if not keys or not pairs:
        return Verdict(name, NOT_COMPARABLE, 0, 0, "no intervals; goes into tables that have them")
    both = mine.astype({key: str for key in keys}).merge(
        theirs.astype({key: str for key in keys}), on=keys, suffixes=("", "_reference")
    )
    alone = len(mine) + len(theirs) - 2 * len(both)
    agree, compared = 0, alone
    for low, high in pairs:
        ends = both[[low, high, f"{low}_reference", f"{high}_reference"]].astype(float).dropna(how="all")
        compared += len(ends)
        bounded = ~np.isinf(ends[[low, high]]).all(axis=1)  # an interval without ends meets everything
        meet = (ends[low] <= ends[f"{high}_reference"]) & (ends[f"{low}_reference"] <= ends[high])
        agree += int((meet & bounded).sum())
    remark = f"{alone} rows in one of the two alone" if alone else ""
    if name == "claims":
        same = int((both["verdict"] == both["verdict_reference"]).sum())
        remark = f"{same} of {len(both)} verdicts the same"
        if same < max(len(mine), len(theirs)):
            return Verdict(name, DIFFERS, len(both), same, remark)
    if not compared:
        empty = "" if len(mine) or len(theirs) else "empty in both"
        return Verdict(name, NOT_COMPARABLE, 0, 0, remark or empty or "no intervals in common")
    return Verdict(name, REPRODUCED if agree >= AGREE * compared else DIFFERS, compared, agree, remark)


def _with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """A table of values with standard errors has their 95 % intervals, too."""
    if "stderr" not in table or "low" in table:
        return table
    half = 1.96 * table["stderr"]
    return table.assign(low=table["value"] - half, high=table["value"] + half)


def _high(low: str) -> str:
    return low.removesuffix("low") + "high"


def write(results: Results, verdicts: list[Verdict]) -> str:
    """Write results/<profile>/reproduction.md, and return its text."""
    counts = {
        word: sum(one.verdict == word for one in verdicts) for word in (REPRODUCED, DIFFERS, NOT_COMPARABLE)
    }
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    table = markdown_table(pd.DataFrame(verdicts, columns=Verdict._fields))
    text = f"# Reproduction of profile {results.profile.name}\n\n{summary}. Rules: enigma/run/compare.py.\n\n{table}"
    atomic_write_text(results.folder / "reproduction.md", text)
    return text
