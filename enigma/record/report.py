"""What is rendered from the tables that were measured: the numbers of the README, and each results folder's own report.

A block in README.md stands between `<!-- measured:NAME -->` and `<!-- end -->`; `update_readme` writes every block anew,
and a test holds that the committed README equals what the committed tables render to.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record import crate, page
from enigma.record.results import atomic_write_text, claims_view, interval_text, markdown_table
from enigma.stages.setting import table as setting_table

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- measured:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish(profile, results) -> list[Path]:
    """Write README.md, report.html and ro-crate-metadata.json of a results folder, in this order: the last hashes all.

    Raises InputError where run.json or a sidecar is missing or damaged.
    """
    return [results.write_index(), page.write(profile, results), crate.write(profile, results)]


def update_readme(path: Path, results) -> Path:
    """Render every measured block of a README. Raises InputError for a block that is not known, and for no README."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a README in UTF-8; go to the repository's folder"
        ) from None
    atomic_write_text(path, render(text, results))
    return path


def render(text: str, results) -> str:
    """The README's text with every block rendered from the tables of `results`."""

    def block(match: re.Match) -> str:
        if match[2] not in BLOCKS:
            raise InputError(
                f"README.md: found block {match[2]!r}; expected one of {', '.join(BLOCKS)}; correct its name"
            )
        return f"{match[1]}\n{BLOCKS[match[2]](results).strip()}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def setting(results) -> str:
    """The paper's setting beside this profile's."""
    return markdown_table(setting_table(results.profile))


def costs(results) -> str:
    """Time and peak memory of each stage."""
    stages = results.read_record()["stages"]
    rows = [
        {
            "stage": name,
            "minutes": f"{stage['seconds'] / 60:.1f}",
            "peak memory": f"{stage['peak_memory_gb']:.1f} GB",
        }
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


def benchmarks(results) -> str:
    """The trainer's cost against named peers, and the machine that it was measured on."""
    return _measured("cpu.json", ["name", "against", "ours", "theirs", "ratio", "target", "met"])


def geometry_cost(results) -> str:
    """What stage 4 costs on many prompts."""
    return _measured("geometry_cpu.json", ["name", "ours", "target", "met"])


def _measured(file: str, columns: list[str]) -> str:
    measured = json.loads((REPOSITORY / "benchmarks" / file).read_text(encoding="utf-8"))
    rows = [
        {
            **row,
            "ours": _amount(row, ""),
            "theirs": _amount(row, "peer_"),
            "ratio": f"{row['ratio']:.2f}",
            "target": f"{row['target']:.2f}" if row["against"] != "absolute" else f"{row['target']:g}",
            "met": "yes" if row["met"] else "no",
        }
        for row in measured["rows"]
    ]
    machine = measured["machine"]
    head = (
        f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}, "
        f"TRL {machine['trl']}."
    )
    return f"{markdown_table(pd.DataFrame(rows)[columns].rename(columns={'name': 'measured'}))}\n{head}"


def _amount(row: dict, side: str) -> str:
    for key, unit in (("seconds", "s"), ("memory_gb", "GB")):
        if f"{side}{key}" in row:
            return f"{row[f'{side}{key}']:.2f} {unit}"
    return "" if side else f"{row['value']:.1f}"


def kernels(results) -> str:
    """Where the time of the trainer's phases goes."""
    measured = json.loads((REPOSITORY / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    shares = [
        {key: value if key == "phase" else f"{value:.0%}" for key, value in row.items()}
        for row in measured["kernels"]
    ]
    return markdown_table(pd.DataFrame(shares))


def placement(results) -> str:
    """SI under each placement and contrast."""
    profile = load_profile("cpu")
    table = type(results)(profile.model_copy(update={"name": "placement"}), results.root).read_table(
        "placement"
    )
    values = [interval_text(*ends) for ends in zip(table.si, table.si_low, table.si_high, strict=True)]
    shown = table[["placement", "contrast"]].assign(
        **{"K": table.k, "SI [95 %]": values, "carried": table.carried}
    )
    return markdown_table(shown)


def sweep(results) -> str:
    """What the weights of the extra terms did."""
    table = type(results)(load_profile(REPOSITORY / "benchmarks" / "sweep.yaml"), results.root).read_table(
        "sweep"
    )
    rows = [
        {
            "SAMI coefficient": "" if pd.isna(row.lambda_sami) else f"{row.lambda_sami:g}",
            "held by": "(untrained)" if pd.isna(row.held_by) else _holder(row),
            "strict format": f"{row.reward_strict:.2f}",
            "row bound, own critic": f"{row.row_bound:.2f}",
            "row bound, untrained critic": interval_text(
                row.row_bound_base_critic, row.row_bound_base_critic_low, row.row_bound_base_critic_high
            ),
            "perplexity, untrained": f"{row.perplexity_base:.1f}",
            "drift": "" if pd.isna(row.drift) else f"{row.drift:.3f}",
        }
        for row in table.itertuples()
    ]
    return markdown_table(pd.DataFrame(rows))


def _holder(row) -> str:
    return f"Sinkhorn, budget {row.budget:g}" if row.held_by == "Sinkhorn" else row.held_by


BLOCKS = {
    "costs": costs,
    "learning": learning,
    "claims": claims,
    "setting": setting,
    "placement": placement,
    "benchmarks": benchmarks,
    "kernels": kernels,
    "geometry_cost": geometry_cost,
    "sweep": sweep,
}
