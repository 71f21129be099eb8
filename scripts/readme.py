"""Fill the measured blocks of README.md and docs/*.md from what is committed: no number there is written by hand.

A block stands between `<!-- measured:NAME -->` or `<!-- measured:NAME PROFILE -->` (cpu by default) and `<!-- end -->`.
`make docs` fills all; a block whose source is not there stays as it is, and is named. A test says that none is stale.
"""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from enigma.record.cells import interval_text, markdown_table, read_csv
from enigma.stages import claims
from enigma.stages.comparison import AT_DRIFT, MEASURES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- measured:(\w+)(?: (\w+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Block and table below results/reference/PROFILE: its columns; a column with an interval shows it.
TABLES = {
    "claims": "id claim measure value units over detectable verdict",
    "setting": "what paper source here",
    "training_checks": "arm seed reward_start reward_end gain zero_spread_share",
    "sweep": "lambda_sami held_by budget reward_strict row_bound_base_critic perplexity_base drift",
    "placement": "placement contrast k questions si carried",
    "prediction": "outcome sets correlation p_value",
    "test_retest": "span principles questions_per_half correlation full",
    "coverage": "of k share questions coverage percentile student",
    "rates": "optimizer learning_rate reward_start reward_end gain chosen",
}
# Block: file below benchmarks, its part, and those of these columns that it has.
MEASURED = {
    "benchmarks": (
        "cpu",
        "rows",
        "name seconds peer_seconds memory_gb peer_memory_gb ratio processor_ratio target met",
    ),
    "kernels": ("cpu", "kernels"),
    "flops": ("flops", "rows", "name teraflops peer_teraflops ratio target"),
    "growth": (
        "growth",
        "rows",
        "varied width k tokens sets processes update update_by_model reference reference_by_model",
    ),
    "growth_large": (
        "growth",
        "large",
        "model gpus checkpointing sampling reference update seconds memory_gb",
    ),
}


def compact(frame: pd.DataFrame) -> str:
    """A Markdown table without padding."""
    frame = frame.map(lambda cell: ("yes" if cell else "no") if isinstance(cell, bool | np.bool_) else cell)
    text = markdown_table(frame.rename(columns=lambda name: name.replace("_", " ")))
    return re.sub(r":?-{3,}", "---", re.sub(r" +\|", " |", text))


def read(root: Path, profile: str, name: str) -> pd.DataFrame:
    return read_csv(root / "results/reference" / profile / "tables" / f"{name}.csv", [])


def intervals(frame: pd.DataFrame, *columns: str) -> list[str]:
    return [interval_text(*row) for row in frame[list(columns)].itertuples(index=False)]


def table(root: Path, profile: str, name: str) -> str:
    frame = read(root, profile, name)
    shown = frame[TABLES[name].split()].copy()
    for column in shown:
        ends = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
        if set(ends) <= set(frame):
            shown[column] = intervals(frame, column, *ends)
        elif not pd.api.types.is_numeric_dtype(shown[column]):
            shown[column] = shown[column].fillna("")
    return compact(shown)


def rules(root: Path, profile: str) -> str:
    return compact(pd.DataFrame(map(vars, claims.REGISTRY))[["id", "text", "source", "rule"]])


def verdicts(root: Path, profile: str) -> str:
    found = read(root, profile, "claims")["verdict"].tolist()
    order = (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.UNDECIDED, claims.NOT_TESTED)
    return ", ".join(f"{each.removesuffix(' at this size')} {found.count(each)}" for each in order)


def stages(root: Path, profile: str) -> str:
    found = json.loads((root / "results/reference" / profile / "run.json").read_bytes())["stages"]
    rows = [[name, stage["seconds"] / 60, stage["peak_memory_gb"]] for name, stage in found.items()]
    rows.append(["all", sum(row[1] for row in rows), max(row[2] for row in rows)])
    return compact(pd.DataFrame(rows, columns=["stage", "minutes", "peak memory, GB"]).round(1))


def sentences(root: Path, profile: str) -> str:
    """One sentence a claim: its verdict, and every effect that it rests on."""
    found = read(root, profile, "claims").to_dict("records")
    return "\n".join(f"- **{row['id']}**, *{row['verdict']}*. {row['note']}." for row in found)


def ablation(root: Path, profile: str) -> str:
    """What each arm changes against grpo, one column a measure."""
    frame = read(root, profile, "ablation").query("arm != 'grpo'")
    wide = frame.assign(cell=intervals(frame, "value", "low", "high")).pivot(
        index=["arm", "seeds"], columns="measure", values="cell"
    )
    order = frame[["arm", "seeds"]].drop_duplicates().itertuples(index=False, name=None)
    return compact(wide.loc[list(order), list(dict.fromkeys(frame["measure"]))].reset_index())


def instruments(root: Path, profile: str) -> str:
    """Which tasks tell the untrained model from guessing, and how fast items are read."""
    found = read(root, profile, "benchmarks").query("arm == 'base'").set_index(["metric", "task"])
    speed = read(root, profile, "benchmark_speed").groupby("task")[["prompts", "seconds"]].sum()
    rows = []
    for task, row in found.loc["margin_prior"].iterrows():
        accuracy = found.loc[("acc", task)] if ("acc", task) in found.index else {}
        told = [task, row["n"], accuracy.get("value"), accuracy.get("chance"), row["value"] / row["stderr"]]
        rows.append([*told, row["sensitive"], speed["prompts"][task] / speed["seconds"][task]])
    return compact(
        pd.DataFrame(
            rows, columns=["task", "items", "accuracy", "chance", "t", "sensitive", "prompts_a_second"]
        )
    )


def neighbours(root: Path, profile: str) -> str:
    """The means of each arm, and which differences to a control are clear of zero."""
    frame = read(root, profile, "neighbours")
    own, pairs = frame[frame["versus"].isna()], frame.dropna(subset=["versus"])
    shown = own[["arm", "learned", *MEASURES]].dropna(axis="columns", how="all")
    shown.insert(1, "control", own["arm"].map(pairs.set_index("arm")["versus"]).fillna(""))
    told, clear = 0, []
    for row in pairs.to_dict("records"):
        for name in (*MEASURES, AT_DRIFT):
            value, low, high = (row[name + end] for end in ("", "_low", "_high"))
            told += pd.notna(low)
            if low > 0 or high < 0:
                text = f"{name.replace('_', ' ')} {interval_text(value, low, high)}"
                clear.append(f"- {row['arm']} - {row['versus']}: {text}")
    chance = f"by chance alone about {told / 20:.0f} would"
    head = f"Of {told} differences to a control {len(clear)} have an interval clear of zero ({chance}):"
    return "\n".join([compact(shown), head, "", *clear])


def costs(root: Path, profile: str) -> str:
    record = json.loads((root / "results/reference" / profile / "run.json").read_bytes())
    done, on, tests = record["stages"].values(), record["machine"], root / "benchmarks/tests.json"
    minutes, peak = sum(one["seconds"] for one in done) / 60, max(one["peak_memory_gb"] for one in done)
    where = f"Measured on {on['cores']} cores ({on['processor']}), set-up not counted"
    more = f"; `make test` {json.loads(tests.read_bytes())['minutes']:.0f} minutes" if tests.is_file() else ""
    return f"{where}: `make reproduce` {minutes:.0f} minutes and {peak:.1f} GB at its peak{more}."


def measured(root: Path, file: str, part: str, columns: str = "") -> str:
    found = json.loads((root / "benchmarks" / f"{file}.json").read_bytes())
    rows, on = pd.DataFrame(found[part]).round(2), found.get("machine")
    end = f"\n{on['device']}, {on['threads']} threads, {on['dtype']}, TRL {on['trl']}." if on else ""
    return compact(rows.filter(columns.split()) if columns else rows) + end


BLOCKS = {name: partial(table, name=name) for name in TABLES}
BLOCKS |= {
    each.__name__: each
    for each in (rules, verdicts, sentences, ablation, instruments, neighbours, costs, stages)
}
BLOCKS |= {name: lambda root, _, of=of: measured(root, *of) for name, of in MEASURED.items()}


def fill(text: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """The text with its blocks filled, and the blocks that could not be: "NAME: the file that is not there"."""
    absent = []

    def block(match: re.Match) -> str:
        try:
            body = BLOCKS[match[2]](root, match[3] or "cpu")
        except FileNotFoundError as error:
            absent.append(f"{match[2]}: {Path(error.filename).relative_to(root)} is not there")
            return match[0]
        return f"{match[1]}\n{body.strip()}\n\n{match[5]}"

    return BLOCK.sub(block, text), absent


if __name__ == "__main__":
    for page in PAGES:
        text, absent = fill(page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT), *absent, sep="\n  ")
