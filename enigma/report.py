"""The numbers of the README, rendered from the tables that were measured.

A block in README.md stands between `<!-- measured:NAME -->` and `<!-- end -->`; `update_readme` writes every block anew,
and a test holds that the committed README equals what the committed tables render to.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from enigma.errors import InputError
from enigma.results import atomic_write_text, claims_view, markdown_table

BLOCK = re.compile(r"(<!-- measured:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_readme(path: Path, results) -> Path:
    """Render every measured block of a README. Raises InputError for a block that is not known."""
    atomic_write_text(path, render(path.read_text(encoding="utf-8"), results))
    return path


def render(text: str, results) -> str:
    """The README's text with every block rendered from the tables of `results`."""

    def block(match: re.Match) -> str:
        if match[2] not in BLOCKS:
            raise InputError(f"README.md: found block {match[2]!r}; expected one of {', '.join(BLOCKS)}")
        return f"{match[1]}\n{BLOCKS[match[2]](results).strip()}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def costs(results) -> str:
    """Time and peak memory of each stage."""
    stages = json.loads((results.folder / "run.json").read_text())["stages"]
    rows = [
        {"stage": name, "minutes": f"{stage['seconds'] / 60:.1f}", "peak memory": f"{stage['peak_memory_gb']:.1f} GB"}
        for name, stage in stages.items()
    ]
    total = sum(stage["seconds"] for stage in stages.values()) / 60
    peak = max(stage["peak_memory_gb"] for stage in stages.values())
    rows.append({"stage": "all", "minutes": f"{total:.1f}", "peak memory": f"{peak:.1f} GB"})
    return markdown_table(pd.DataFrame(rows))


def learning(results) -> str:
    """What each run learned."""
    table = results.read_table("training_checks")
    rows = [
        {
            "arm": row.arm,
            "graded reward, first fifth of the steps": f"{row.reward_start:.2f}",
            "last fifth": f"{row.reward_end:.2f}",
            "gain [95 %]": f"{row.gain:.2f} [{row.gain_low:.2f}, {row.gain_high:.2f}]",
            "groups without spread": f"{row.zero_spread_share:.0%}",
        }
        for row in table.itertuples()
    ]
    return markdown_table(pd.DataFrame(rows))


def claims(results) -> str:
    """The claims table without its notes."""
    return markdown_table(claims_view(results.read_table("claims")).drop(columns="note"))


BLOCKS = {"costs": costs, "learning": learning, "claims": claims}
