"""How a claim is judged: its parts, the one rule for every part, and the readings of the tables that several claims share.

The claims themselves are in `enigma.stages.claims`. Source: docs/method.md, section 10 [D].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from enigma.method import steadiness
from enigma.method.stats import Interval, student_interval
from enigma.profile import BASE
from enigma.record.cells import interval_text
from enigma.stages.benchmark import sensitive_tasks
from enigma.tasks import robustness

VERDICTS = ("not tested at this size", "not supported", "undecided", "supported")  # weakest first
NOT_TESTED, NOT_SUPPORTED, UNDECIDED, SUPPORTED = VERDICTS
ABSTRACT, SECONDARY, OURS = "paper, abstract", "secondary account of the paper", "this project"
SEEDS = 3  # paired seeds that a claim about training needs
SETS = 6  # sets that a claim about sets needs
MARGIN = 0.05  # standard deviations over items of the untrained model: called negligible
PERPLEXITY_FACTOR = 1.25
GENERAL_RULE = (
    "An effect above zero favours the claim. Supported: its 95 % interval lies above zero. Not supported: the interval lies "
    "below zero, or wholly inside the margin called negligible. Undecided: otherwise. Not tested at this size: an arm, a task "
    "or the seeds that the rule needs are not in this run. A claim of several parts has the verdict of the weakest."
)

UNMEASURED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Part:
    """One effect of a claim: its interval, what that is over ("6 seeds"), and the negligible margin in the effect's unit.
    `verdict` overrides the general rule where a claim's own rule says so."""

    name: str
    effect: Interval = UNMEASURED
    units: int = 0
    over: str = ""
    margin: float = 0.0
    detail: str = ""
    verdict: str = ""

    def judged(self) -> str:
        return self.verdict or decide(self.effect, self.margin)

    def detectable(self) -> float:
        """The effect found with 80 % power at the 5 % level, (t_.975 + t_.8) standard errors (eq. 30); NaN without an interval."""
        if self.units < 2:
            return math.nan
        t = scipy_stats.t(self.units - 1)
        return (self.effect.high - self.effect.low) / 2 / t.ppf(0.975) * (t.ppf(0.975) + t.ppf(0.8))

    def text(self) -> str:
        if self.judged() == NOT_TESTED:
            return f"{self.name}: {self.detail}"
        more = "; ".join(
            part for part in (f"over {self.units} {self.over}" if self.over else "", self.detail) if part
        )
        return f"{self.name}: {interval_text(*self.effect)}, {self.judged()}{f' ({more})' if more else ''}"


@dataclass(frozen=True)
class Finding:
    parts: list[Part]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """An entry of the registry. `paper` is the paper's own number, or empty."""

    id: str
    text: str
    source: str
    rule: str
    paper: str
    find: Callable[[Tables], Finding]


class Missing(LookupError):
    """A table, an arm or a measure that a claim needs is not there."""


REGISTRY: list[Claim] = []


def claim(id: str, text: str, source: str, rule: str, paper: str = ""):
    """Enter the decorated function in the registry."""

    def enter(find):
        REGISTRY.append(Claim(id, text, source, rule, paper, find))
        return find

    return enter


def decide(effect: Interval, margin: float = 0.0) -> str:
    """`GENERAL_RULE` for one effect; `margin` >= 0 in the effect's unit. Ends that are NaN leave it undecided."""
    if effect.low > 0:
        return SUPPORTED
    if effect.high < 0 or (-margin < effect.low and effect.high < margin):
        return NOT_SUPPORTED
    return UNDECIDED


def measured(name: str, make: Callable[[str], Part]) -> Part:
    """`make(name)`, or a part that was not tested, and why."""
    try:
        return make(name)
    except (Missing, KeyError) as missing:
        return Part(name, detail=f"not tested: needs {' '.join(map(str, missing.args))}", verdict=NOT_TESTED)


# ---- reading -------------------------------------------------------------------------------------------------------


class Tables:
    """The tables of the earlier stages, and the few readings of them that several claims share."""

    def __init__(self, profile, tables):
        self.profile, self._tables = profile, tables

    def get(self, name: str) -> pd.DataFrame:
        try:
            return self._tables[name]
        except KeyError:
            raise Missing(f"table {name}") from None

    def by_seed(self, table: pd.DataFrame, value: str, arm: str) -> pd.Series:
        """Mean of a column for each seed of an arm. Raises Missing for an arm that is not there."""
        rows = table[(table["arm"] == arm) & table["seed"].notna()]
        if rows.empty:
            raise Missing(f"arm {arm}")
        return rows.groupby("seed")[value].mean()

    def paired(self, name: str, a: pd.Series, b: pd.Series, margin: float = 0.0, needed: int = SEEDS) -> Part:
        """a - b over the seeds that both have. Raises Missing where these are fewer than `needed`."""
        values = (a - b).dropna()
        if len(values) < needed:
            raise Missing(f"{needed} paired seeds, found {len(values)}")
        return Part(name, student_interval(values), len(values), "paired seeds", margin)

    def margins(self, tasks: list[str] | None = None) -> pd.DataFrame:
        """arm, seed, task, item, value: margins in standard deviations of the untrained model's items of that task.

        `tasks`: those alone; by default all sensitive choice tasks. Raises Missing where there is none.
        """
        items = self.get("benchmark_items")
        chosen = (
            sensitive_tasks(items) if tasks is None else [t for t in tasks if t in sensitive_tasks(items)]
        )
        chosen = [task for task in chosen if task not in (robustness.TASK, "enigma_adherence")]
        if not chosen:
            raise Missing("a sensitive task")
        rows = items[(items["metric"] == "margin") & items["task"].isin(chosen)].copy()
        spread = rows[rows["arm"] == BASE].groupby("task")["value"].std()
        rows["value"] = rows["value"] / rows["task"].map(spread)
        return rows

    def effect(self, a: str, b: str, tasks: list[str] | None = None) -> pd.Series:
        """Margin of arm `a` minus arm `b` for each seed, paired by item, tasks weighted equally. `b` may be base."""
        rows = self.margins(tasks)
        other = rows[rows["arm"] == b].drop(columns=["arm", "part", "metric"])
        mine = rows[rows["arm"] == a].drop(columns=["arm", "part", "metric"])
        for name, frame in ((a, mine), (b, other)):
            if frame.empty:
                raise Missing(f"arm {name}")
        keys = ["task", "item"] if b == BASE else ["task", "item", "seed"]
        pairs = mine.merge(
            other.drop(columns="seed") if b == BASE else other, on=keys, suffixes=("", "_other")
        )
        pairs["difference"] = pairs["value"] - pairs["value_other"]
        return pairs.groupby(["seed", "task"])["difference"].mean().groupby("seed").mean()

    def heldout(self, column: str, a: str, b: str) -> np.ndarray:
        """Column of `legibility_items` under the high set, arm `a` minus `b` question by question, mean over seeds."""
        rows = self.get("legibility_items").query("set == 'high'")
        sides = []
        for arm in (a, b):
            mine = rows[rows["arm"] == arm]
            if mine.empty:
                raise Missing(f"arm {arm} on the high set")
            sides.append(mine.groupby("question")[column].mean())
        return (sides[0] - sides[1]).to_numpy()

    def drift(self) -> pd.DataFrame:
        """The Sinkhorn divergences: arm, seed, layer, value, low, high."""
        table = self.get("geometry")
        return table[table["measure"] == "sinkhorn"]


def over_questions(name: str, values: np.ndarray, margin: float = 0.0, detail: str = "") -> Part:
    """A part whose interval is over held-out questions."""
    return Part(name, student_interval(values), len(values), "questions", margin, detail)


def steadiness_table(training: pd.DataFrame) -> pd.DataFrame:
    """arm, seed, measure, value: one row for each run and measure; runs of fewer than three steps have none."""
    measures = {
        "probe": ("probe", steadiness.unsteadiness),
        "reward_area": ("reward_graded", steadiness.area),
        "reward_drawdown": ("reward_graded", steadiness.drawdown),
        "gradient_variation": ("grad_norm", steadiness.variation),
    }
    rows = [
        [arm, seed, name, float(function(run[column].dropna().to_numpy()))]
        for (arm, seed), run in training.groupby(["arm", "seed"], sort=False)
        for name, (column, function) in measures.items()
        if run[column].notna().sum() >= 3
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "measure", "value"])


def log_unsteadiness(training: pd.DataFrame) -> pd.DataFrame:
    """arm, seed, value: log of the probe's unsteadiness; NaN for a run that did not move, which has no logarithm."""
    table = steadiness_table(training).query("measure == 'probe'")
    return table.assign(value=np.log(table["value"].where(table["value"] > 0)))


def ablation_table(read: Tables) -> pd.DataFrame:
    """Every arm against grpo, over paired seeds: arm, measure, value, low, high, seeds."""
    if "grpo" not in read.profile.arms:
        return pd.DataFrame(columns=["arm", "measure", "value", "low", "high", "seeds"])
    items = read.get("legibility_items")
    strict = read.get("training").groupby(["arm", "seed"])["reward_strict"]
    ends = strict.apply(lambda run: run.tail(max(1, len(run) // 5)).mean()).reset_index()
    measures = {
        "margin": lambda arm: read.effect(arm, "grpo"),
        "untrained_bound": lambda arm: _minus(read, items, "untrained", arm),
        "drift": lambda arm: _minus(read, read.drift(), "value", arm),
        "strict": lambda arm: _minus(read, ends, "reward_strict", arm),
    }
    rows = []
    for arm in read.profile.arms:
        for name, difference in measures.items():
            try:
                values = difference(arm).dropna()
            except Missing:
                continue
            rows.append([arm, name, *student_interval(values), len(values)])
    return pd.DataFrame(rows, columns=["arm", "measure", "value", "low", "high", "seeds"])


def _minus(read: Tables, table: pd.DataFrame, column: str, arm: str) -> pd.Series:
    return read.by_seed(table, column, arm) - read.by_seed(table, column, "grpo")


def end_rewards(tables: Tables, *arms: str) -> str:
    """The graded reward at the end of training, in words: two drifts are compared at rewards that may differ."""
    checks = tables.get("training_checks").groupby("arm")["reward_end"].mean()
    return "graded reward at the end " + ", ".join(
        f"{arm} {checks[arm]:.2f}" for arm in arms if arm in checks
    )
