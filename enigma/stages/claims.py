"""The paper's claims, each with a rule written before the run, and what was measured here.

One entry and one function per claim. A function reads tables and returns parts: named effects, signed so that above
zero favours the claim, each with a 95% interval. One rule for every part (`GENERAL_RULE`); a claim's verdict is its
weakest part's. What is missing is said and leaves the claim undecided. Claims and their sources: METHOD section 1
[A] and [S]; measures, margins and rules: our choice [D].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import norm

from enigma.method.stats import Interval, mean_interval
from enigma.record.results import atomic_write_text, claims_view, interval_text, markdown_table
from enigma.record.runlock import one_writer
from enigma.stages import setting, steadiness

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
VERDICTS = (NOT_SUPPORTED, UNDECIDED, SUPPORTED)  # weakest first
GENERAL_RULE = (
    "An effect above zero favours the claim. Supported: its 95% interval lies above zero. Not supported: the interval "
    "lies below zero, or wholly inside the margin called negligible. Undecided: otherwise, or not measured. A claim "
    "of several parts has the verdict of the weakest."
)
CAPTION = (
    "The paper's claims and what was measured here. Value, low and high belong to the part that decided the verdict; "
    "the note has all parts. " + GENERAL_RULE
)
ABSTRACT, SECONDARY, OURS = "paper, abstract", "secondary account of the paper", "this project"
UNMEASURED = Interval(float("nan"), float("nan"), float("nan"))
SEEDS_NEEDED = steadiness.SEEDS_NEEDED
# What a benchmark stands for: own task, and the metric that decides, fixed before any run.
PRIMARY = {
    "reasoning": ("enigma_reasoning", "acc"),
    "truthfulness": ("enigma_truthfulness", "mc2"),
    "format": ("enigma_format", "strict_format"),
}
SCORE_MARGIN = 0.01  # a hundredth of a score of 0..1 is called negligible
REWARD_MARGIN = 0.01
ENERGY_MARGIN = 0.005  # of the displacement's energy
PERPLEXITY_FACTOR = 1.25


class Missing(LookupError):
    """A table, an arm or a measure that a claim needs is not there."""


@dataclass(frozen=True)
class Part:
    """One effect of a claim. `verdict` overrides the general rule where a claim's own rule says so."""

    name: str
    effect: Interval = UNMEASURED
    margin: float = 0.0
    detail: str = ""
    verdict: str = ""

    def judged(self) -> str:
        return self.verdict or decide(self.effect, self.margin)

    def text(self) -> str:
        if math.isnan(self.effect.value) and not self.verdict:
            return f"{self.name}: {self.detail}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.name}: {interval_text(*self.effect)}, {self.judged()}{detail}"


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


REGISTRY: list[Claim] = []


def claim(id: str, text: str, source: str, rule: str, paper: str = ""):
    """Enter the decorated function in the registry."""

    def enter(find):
        REGISTRY.append(Claim(id, text, source, rule, paper, find))
        return find

    return enter


# ---------------------------------------------------------------- deciding


def decide(effect: Interval, margin: float = 0.0) -> str:
    """`GENERAL_RULE` for one effect; `margin` >= 0 in the effect's unit. Ends that are NaN leave it undecided."""
    if effect.low > 0:
        return SUPPORTED
    if effect.high < 0 or (-margin < effect.low and effect.high < margin):
        return NOT_SUPPORTED
    return UNDECIDED


def weakest(parts: list[Part]) -> Part:
    """The first part with the weakest verdict."""
    return min(parts, key=lambda part: VERDICTS.index(part.judged()))


def difference(a: Interval, b: Interval) -> Interval:
    """a - b of two estimates that are independent, from their intervals alone (MOVER, Zou and Donner 2008).

    Where both come from the same prompts their errors go together and the interval is wider than it need be.
    """
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return Interval(a.value - b.value, a.value - b.value - low, a.value - b.value + high)


def average(intervals: list[Interval], independent: bool) -> Interval:
    """Mean of estimates. Independent errors (runs) shrink with their number; others (layers) do not shrink."""
    values = np.array(intervals, dtype=np.float64)
    mean, below, above = values[:, 0].mean(), values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]
    if independent:
        low, high = (np.linalg.norm(side) / len(side) for side in (below, above))
    else:
        low, high = below.mean(), above.mean()
    return Interval(float(mean), float(mean - low), float(mean + high))


# ---------------------------------------------------------------- reading


class Tables:
    """Read-only access to one profile's tables; `Missing` says what is not there."""

    def __init__(self, profile, results):
        self.profile, self._results = profile, results
        self.seed = profile.seeds.bootstrap
        self._steadiness = None

    def get(self, name: str) -> pd.DataFrame:
        if not self._results.has_table(name):
            raise Missing(f"table {name}")
        return self._results.read_table(name)

    def has_arm(self, name: str, arm: str) -> bool:
        return bool((self.get(name)["arm"] == arm).any())

    def steadiness(self) -> pd.DataFrame:
        """The steadiness table, from the training tables as they are now."""
        if self._steadiness is None:
            groups = (
                self.get("training_groups")
                if self._results.has_table("training_groups")
                else steadiness.NO_GROUPS
            )
            self._steadiness = steadiness.table(self.get("training"), groups, self.seed)
        return self._steadiness

    def contrast(self, frame: pd.DataFrame, what: str, a: str, b: str) -> tuple[Interval, int]:
        """Mean of arm `a` minus arm `b`, and the number of seeds that the interval is over (0: within runs).

        `frame`: arm, seed, value, low, high; several rows of one run (layers) are averaged. With three seeds or more
        in common the interval is over paired seeds. Otherwise each arm has its own: over seeds where it has three or
        more, else from its runs' intervals.
        """
        runs = {arm: _runs(frame, what, arm) for arm in (a, b)}
        common = [seed for seed in runs[a] if seed in runs[b]]
        if len(common) >= SEEDS_NEEDED:
            values = [runs[a][seed].value - runs[b][seed].value for seed in common]
            return mean_interval(values, seed=self.seed), len(common)
        sides = [self._side(list(runs[arm].values())) for arm in (a, b)]
        return difference(*sides), len(runs[a]) if len(runs[a]) >= SEEDS_NEEDED else 0

    def _side(self, runs: list[Interval]) -> Interval:
        if len(runs) >= SEEDS_NEEDED:
            return mean_interval([run.value for run in runs], seed=self.seed)
        return average(runs, independent=True)

    def items(self, task: str, metric: str, a: str, b: str) -> np.ndarray:
        """(n,) score of each item under arm `a` minus under arm `b`, each the mean over the arm's seeds."""
        table = self.get("benchmark_items")
        table = table[(table["task"] == task) & (table["metric"] == metric)]
        if table.empty:
            raise Missing(f"task {task} ({metric}) in table benchmark_items")
        means = {arm: table[table["arm"] == arm].groupby("item")["value"].mean() for arm in (a, b)}
        for arm, mean in means.items():
            if mean.empty:
                raise Missing(f"arm {arm} in table benchmark_items")
        paired = pd.concat(means, axis=1).dropna()
        return (paired[a] - paired[b]).to_numpy()


def _runs(frame: pd.DataFrame, what: str, arm: str) -> dict[float, Interval]:
    """{seed: interval} of an arm's runs, the rows of each averaged."""
    rows = frame[frame["arm"] == arm]
    rows = rows[np.isfinite(rows["value"])]
    if rows.empty:
        raise Missing(f"{what} of arm {arm}")
    grouped = rows.fillna({"seed": -1}).groupby("seed")[["value", "low", "high"]]
    return {
        seed: average([Interval(*row) for row in run.to_numpy()], independent=False) for seed, run in grouped
    }


def over_text(seeds: int) -> str:
    """What an interval of `Tables.contrast` is over, in words."""
    return f"interval over {seeds} seeds" if seeds else "interval within runs, not over seeds"


def measured(name: str, make: Callable[[], Part]) -> Part:
    """`make()`, or an undecided part that says what is missing."""
    try:
        return make()
    except Missing as missing:
        return Part(name, detail=f"not measured: {missing}")


def at_chance_notes(tables: Tables, arms: tuple[str, ...]) -> list[str]:
    """Which decisive benchmarks are at chance, and for which arms."""
    try:
        table = tables.get("benchmarks")
    except Missing:
        return []
    notes = []
    for aspect, (task, metric) in PRIMARY.items():
        rows = table[(table["task"] == task) & (table["metric"] == metric) & table["arm"].isin(arms)]
        found = list(dict.fromkeys(rows[rows["at_chance"].astype(bool)]["arm"]))
        if found:
            notes.append(f"{aspect} is at chance for {', '.join(found)}, so a difference there says little")
    return notes


# ---------------------------------------------------------------- the claims


@claim(
    "C1",
    "High-SI principles predict steadier training dynamics than low-SI ones.",
    ABSTRACT,
    "Effects: roughness (mean absolute step difference over range) and maximum drawdown of the graded-reward curve, "
    f"enigma_low minus enigma_high. Negligible: {REWARD_MARGIN:g}. Interval over seeds where both arms have three or "
    "more, else by resampling the prompts of each step.",
)
def steadier(tables: Tables) -> Finding:
    def part(measure: str, name: str) -> Part:
        table = tables.steadiness()
        runs = table[(table["measure"] == measure) & table["seed"].notna()]
        effect, seeds = tables.contrast(runs, measure, "enigma_low", "enigma_high")
        units = " and ".join(sorted(set(runs["over"]) - {""}))
        within = f"interval over the {units} of each step, not over seeds" if units else "no interval"
        return Part(name, effect, REWARD_MARGIN, over_text(seeds) if seeds else within)

    names = {
        "reward_roughness": "reward roughness, enigma_low - enigma_high",
        "reward_drawdown": "reward drawdown, enigma_low - enigma_high",
    }
    return Finding([measured(name, lambda m=measure, n=name: part(m, n)) for measure, name in names.items()])


@claim(
    "C2",
    "High-SI principles predict better benchmark performance than GRPO ablations.",
    ABSTRACT,
    "Effects: enigma_high minus grpo, and enigma_high minus enigma_low, mean over the pooled items of the own tasks "
    "(reasoning acc, truthfulness mc2, format strict_format), paired by item, seeds averaged. "
    f"Negligible: {SCORE_MARGIN:g}. Interval over items.",
)
def better_benchmarks(tables: Tables) -> Finding:
    def part(name: str, other: str) -> Part:
        differences = {
            aspect: tables.items(task, metric, "enigma_high", other)
            for aspect, (task, metric) in PRIMARY.items()
        }
        pooled = np.concatenate(list(differences.values()))
        by_aspect = ", ".join(f"{aspect} {values.mean():+.3f}" for aspect, values in differences.items())
        return Part(
            name, mean_interval(pooled, seed=tables.seed), SCORE_MARGIN, f"{len(pooled)} items; {by_aspect}"
        )

    names = {other: f"pooled score, enigma_high - {other}" for other in ("grpo", "enigma_low")}
    parts = [measured(name, lambda n=name, o=other: part(n, o)) for other, name in names.items()]
    return Finding(parts, at_chance_notes(tables, ("grpo", "enigma_low", "enigma_high")))


@claim(
    "C3a",
    "SI, measured on the untrained model, lets you select principles before training.",
    ABSTRACT,
    "Effects: SI of the best minus the worst principle (reasoning span; interval widened by Bonferroni for the choice "
    "among all pairs); SI of the high set minus the low set (reasoning span); the same difference on held-out questions "
    "(whole completions), where the choice cannot flatter it. Negligible: 0.01. Whether the selection then pays is C1 "
    "and C2.",
)
def selection(tables: Tables) -> Finding:
    def span(level: str) -> pd.DataFrame:
        table = tables.get("sufficiency")
        return table[(table["level"] == level) & (table["span"] == "reasoning")].dropna(subset=["si"])

    def principles(name: str) -> Part:
        rows = span("principle").sort_values("si")
        if len(rows) < 2:
            raise Missing("two principles in table sufficiency")
        best, worst = rows.iloc[-1], rows.iloc[0]
        effect = difference(
            *(Interval(*row[["si", "si_low", "si_high"]].astype(float)) for row in (best, worst))
        )
        pairs = len(rows) * (len(rows) - 1) / 2
        return Part(
            name, widened(effect, pairs), 0.01, f"{best['name']} against {worst['name']}, of {len(rows)}"
        )

    def sets(name: str) -> Part:
        rows = span("set").set_index("name")[["si", "si_low", "si_high"]]
        return Part(
            name, high_minus_low(rows, "sufficiency"), 0.01, "measured on the questions of the choice"
        )

    def heldout(name: str) -> Part:
        table = tables.get("legibility").query("arm == 'base'").set_index("set")
        bounds = table[["row_bound", "row_bound_low", "row_bound_high"]].div(np.log(table["k"]), axis=0)
        return Part(name, high_minus_low(bounds, "legibility"), 0.01)

    finders = {
        "SI, best - worst principle": principles,
        "SI, high set - low set": sets,
        "SI on held-out questions, high set - low set": heldout,
    }
    return Finding([measured(name, lambda n=name, f=find: f(n)) for name, find in finders.items()])


def high_minus_low(rows: pd.DataFrame, table: str) -> Interval:
    """Difference of the rows `high` and `low`, whose three columns are value, low end, high end."""
    for name in ("high", "low"):
        if name not in rows.index:
            raise Missing(f"set {name} in table {table}")
    return difference(*(Interval(*rows.loc[name].astype(float)) for name in ("high", "low")))


def widened(effect: Interval, comparisons: float) -> Interval:
    """A 95% interval made simultaneous for `comparisons` of its kind by Bonferroni, as if normal."""
    factor = norm.ppf(1 - 0.025 / comparisons) / norm.ppf(0.975)
    low, high = (effect.value + factor * (end - effect.value) for end in (effect.low, effect.high))
    return Interval(effect.value, float(low), float(high))


@claim(
    "C3b",
    "SI, measured on the untrained model, lets you create principles before training.",
    ABSTRACT,
    "Effect: the SI gain of accepted edits on fresh questions, from the table creation (accepted, gain, gain_low, "
    "gain_high), the largest, its interval widened by Bonferroni for the number of edits that were tried on them. Not "
    "supported when no proposal was accepted. Negligible: 0.01.",
)
def creation(tables: Tables) -> Finding:
    name = "SI gain of the best created principle"

    def part() -> Part:
        table = tables.get("creation")
        accepted = table[table["accepted"].astype(bool)]
        if accepted.empty:
            return Part(name, detail=f"none of {len(table)} proposals accepted", verdict=NOT_SUPPORTED)
        best = accepted.loc[accepted["gain"].idxmax()]
        effect = widened(
            Interval(*best[["gain", "gain_low", "gain_high"]].astype(float)), int(table["gain"].count())
        )
        return Part(name, effect, 0.01, f"{len(accepted)} of {len(table)} proposals accepted")

    return Finding([measured(name, part)])


@claim(
    "C4",
    "The optimal-transport regulariser bounds geometry drift.",
    ABSTRACT,
    "Effect: Sinkhorn divergence to the untrained model on held-out prompts at the end of training, mean over layers, "
    "without the term minus with it. Where they were trained, the pairs that differ in this term alone decide (grpo - "
    "grpo_ot, grpo_sami - enigma_high); else grpo - enigma_high, which differ in SAMI too. Negligible: 0.001. Layers "
    "share their prompts, so their errors are not averaged away.",
)
def bounded_drift(tables: Tables) -> Finding:
    def part(name: str, without: str, with_term: str) -> Part:
        table = tables.get("geometry")
        rows = table[table["measure"] == "sinkhorn"]
        effect, seeds = tables.contrast(rows, "Sinkhorn divergence", without, with_term)
        return Part(name, effect, 0.001, over_text(seeds))

    def pair(without: str, with_term: str) -> Part:
        name = f"Sinkhorn divergence, {without} - {with_term}"
        return measured(name, lambda: part(name, without, with_term))

    isolating = [pair("grpo", "grpo_ot"), pair("grpo_sami", "enigma_high")]
    isolating = [part for part in isolating if not math.isnan(part.effect.value)]
    if isolating:
        return Finding(isolating)
    return Finding(
        [pair("grpo", "enigma_high")],
        ["the two arms differ in the SAMI term too, which adds drift of its own"],
    )


@claim(
    "C5",
    "Training makes a desirable structural change in the manifold: states move along the principles' directions.",
    ABSTRACT,
    "Effect: share of the displacement's energy in the span of the arm's principle directions minus that of as many "
    "principles drawn from the pool, mean over layers, enigma_high; interval from the null's central 95%. Supported when above "
    "zero and twice the median over layers of the permutation p-values (valid whatever the layers' dependence) is below "
    f"0.05 in every seed; otherwise the general rule without its first case. Negligible: {ENERGY_MARGIN:g}.",
)
def directed_change(tables: Tables) -> Finding:
    name = "displacement along principle directions minus null, enigma_high"

    def part(arm: str) -> Part:
        table = tables.get("directions")
        rows = table[table["arm"] == arm].dropna(subset=["observed", "null_mean", "p_value"])
        if rows.empty:
            raise Missing(f"arm {arm} in table directions")
        effect = average(
            [
                Interval(o - m, o - h, o - low)
                for o, m, low, h in rows[["observed", "null_mean", "null_low", "null_high"]].to_numpy(
                    dtype=float
                )
            ],
            independent=False,
        )
        p_value = joint_p_value(rows)
        general = decide(effect, ENERGY_MARGIN)
        significant = p_value < 0.05 and effect.value > 0
        verdict = SUPPORTED if significant else (UNDECIDED if general == SUPPORTED else general)
        return Part(
            name, effect, ENERGY_MARGIN, f"p = {p_value:.3g} over {rows['layer'].nunique()} layers", verdict
        )

    notes = []
    contrast = measured(name, lambda: part("grpo"))
    if not math.isnan(contrast.effect.value):
        notes.append(f"grpo, for contrast: {interval_text(*contrast.effect)}, {contrast.detail}")
    return Finding([measured(name, lambda: part("enigma_high"))], notes)


def joint_p_value(rows: pd.DataFrame) -> float:
    """Largest over seeds of twice the median p-value over layers, a valid p-value however the layers depend."""
    return max(min(1.0, 2 * float(run.median())) for _, run in rows.groupby("seed")["p_value"])


@claim(
    "C6",
    "Reasoning, alignment and robustness improve jointly, without a reward model.",
    ABSTRACT,
    "Effects: enigma_high minus base on the own tasks for reasoning (acc), truthfulness (mc2) and format "
    f"(strict_format), paired by item, seeds averaged, and on robustness once a task measures it. Negligible: "
    f"{SCORE_MARGIN:g}. All must be supported: an unmeasured part leaves the claim undecided at best.",
)
def joint_improvement(tables: Tables) -> Finding:
    def part(name: str, task: str, metric: str) -> Part:
        values = tables.items(task, metric, "enigma_high", "base")
        return Part(name, mean_interval(values, seed=tables.seed), SCORE_MARGIN, f"{len(values)} items")

    aspects = PRIMARY | {"robustness": ("enigma_robustness", "acc")}
    names = {aspect: f"{aspect}, enigma_high - base" for aspect in aspects}
    parts = [measured(names[aspect], lambda a=aspect: part(names[a], *aspects[a])) for aspect in aspects]
    return Finding(parts, at_chance_notes(tables, ("base", "enigma_high")))


@claim(
    "H",
    "Gemma-3-1B-it with LoRA r=16 on 20k rows of CoT-Collection improves on GPQA and on TruthfulQA.",
    SECONDARY,
    "Effects: enigma_high minus base on lm-eval's gpqa (any variant) and truthfulqa tasks, paired by item, seeds "
    f"averaged. Judged is the direction; the sizes belong to another model. Negligible: {SCORE_MARGIN:g}.",
    "GPQA 13.62 % -> 20.54 % (+6.92), TruthfulQA 38.07 % -> 50.18 % (+12.11)",
)
def headline(tables: Tables) -> Finding:
    def part(name: str, prefix: str) -> Part:
        table = tables.get("benchmark_items")
        rows = table[table["task"].str.startswith(prefix)]
        if rows.empty:
            raise Missing(f"a {prefix} task in table benchmark_items")
        # truthfulqa_mc2 before mc1, and acc before acc_norm: one number for each benchmark, fixed here.
        task = max(rows["task"])
        metric = min(rows.loc[rows["task"] == task, "metric"])
        values = tables.items(task, metric, "enigma_high", "base")
        means = table[(table["task"] == task) & (table["metric"] == metric)].groupby("arm")["value"].mean()
        detail = f"{task} {metric}: {means['base']:.2%} -> {means['enigma_high']:.2%}, {len(values)} items"
        return Part(name, mean_interval(values, seed=tables.seed), SCORE_MARGIN, detail)

    names = {"GPQA, enigma_high - base": "gpqa", "TruthfulQA, enigma_high - base": "truthfulqa"}
    parts = [measured(name, lambda n=name, p=prefix: part(n, p)) for name, prefix in names.items()]
    return Finding(parts, [_setting(tables.profile), "the project's own truthfulness items are another test"])


def _setting(profile) -> str:
    model, trainer = profile.model, profile.trainer
    steps = f"{trainer.max_steps} steps of {trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps}"
    questions = profile.questions.dataset or profile.questions.source
    return f"here: model {model.id or model.source}, {questions} questions, {steps} completions, LoRA r={trainer.lora.r}"


@claim(
    "L",
    "After training the principles are carried legibly, not as a private code.",
    OURS,
    "Effects, on held-out questions under the high set: information bound with the untrained model as critic, "
    f"enigma_high minus base (nats; negligible 0.01), and log perplexity under the untrained model, grpo minus "
    f"enigma_high plus log {PERPLEXITY_FACTOR:g} (above zero: at most a quarter higher than plain GRPO). Not supported while the policy's "
    "own bound rises is a private code.",
)
def legible(tables: Tables) -> Finding:
    def bounds(column: str) -> pd.DataFrame:
        table = tables.get("legibility").query("set == 'high'")
        columns = {column: "value", f"{column}_low": "low", f"{column}_high": "high"}
        return table[["arm", "seed", *columns]].rename(columns=columns)

    def bound(name: str, column: str) -> Part:
        effect, seeds = tables.contrast(bounds(column), "information bound", "enigma_high", "base")
        return Part(name, effect, 0.01, over_text(seeds))

    def perplexity(name: str) -> Part:
        logs = bounds("perplexity_base")
        logs[["value", "low", "high"]] = np.log(logs[["value", "low", "high"]])
        effect, seeds = tables.contrast(logs, "perplexity", "grpo", "enigma_high")
        shift = math.log(PERPLEXITY_FACTOR)
        return Part(name, Interval(*(end + shift for end in effect)), 0.0, over_text(seeds))

    critic = "bound under the untrained critic, enigma_high - base"
    fluent = f"log perplexity, grpo - enigma_high + log {PERPLEXITY_FACTOR:g}"
    parts = [
        measured(critic, lambda: bound(critic, "row_bound_base_critic")),
        measured(fluent, lambda: perplexity(fluent)),
    ]
    own = measured("policy", lambda: bound("policy", "row_bound"))
    notes = [f"the policy's own bound, enigma_high - base: {interval_text(*own.effect)}"]
    if own.judged() == SUPPORTED:
        words = {SUPPORTED: "carried legibly", NOT_SUPPORTED: "a private code", UNDECIDED: "undecided which"}
        notes.append(f"it rises: {words[weakest(parts).judged()]}")
    return Finding(parts, notes)


# ---------------------------------------------------------------- judging and writing


INPUTS = (
    "sufficiency",
    "creation",
    "training",
    "training_groups",
    "benchmarks",
    "benchmark_items",
    "geometry",
    "directions",
    "legibility",
)
COLUMNS = ["id", "claim", "source", "measure", "value", "low", "high", "rule", "verdict", "paper", "note"]


def judge(profile, results) -> pd.DataFrame:
    """The claims table: id, claim, source, measure, value, low, high, rule, verdict, paper, note. Writes nothing.

    Value, low and high are the deciding part's effect, signed so that above zero favours the claim. Missing tables and
    arms leave a claim undecided and are named in its note.
    """
    tables = Tables(profile, results)
    return pd.DataFrame([_row(entry, entry.find(tables)) for entry in REGISTRY], columns=COLUMNS)


def _row(entry: Claim, finding: Finding) -> list:
    part = weakest(finding.parts)
    note = "; ".join([*(each.text() for each in finding.parts), *finding.notes])
    return [
        entry.id,
        entry.text,
        entry.source,
        part.name,
        *part.effect,
        entry.rule,
        part.judged(),
        entry.paper,
        note,
    ]


@one_writer
def run(profile, results) -> pd.DataFrame:
    """Judge, and write the tables `setting`, `claims` (also as LaTeX and Markdown) and, where training was measured,
    `steadiness`."""
    results.write_table("setting", setting.table(profile), setting.CAPTION)
    if results.has_table("training"):
        steadiness.run(profile, results)
    table = judge(profile, results)
    inputs = [name for name in INPUTS if results.has_table(name)]
    path = results.write_table("claims", table, CAPTION, inputs=inputs)
    atomic_write_text(path.with_suffix(".tex"), to_latex(table))
    atomic_write_text(path.with_suffix(".md"), to_markdown(table))
    return table


def to_markdown(table: pd.DataFrame) -> str:
    """The claims table for a README: without rule and source, the interval beside its value."""
    return markdown_table(claims_view(table))


def to_latex(table: pd.DataFrame) -> str:
    """A booktabs tabular of id, claim, measure, value with interval, verdict and the paper's number."""
    shown = claims_view(table).drop(columns="note")
    lines = [r"\begin{tabular}{lp{4.2cm}p{3.2cm}p{2.6cm}lp{2.2cm}}", r"\toprule"]
    lines += [_latex_line(name.capitalize() if name != "id" else "Id" for name in shown.columns), r"\midrule"]
    lines += [_latex_line(row) for row in shown.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex_line(cells) -> str:
    # Missing text is read back from CSV as NaN.
    texts = ("" if not isinstance(cell, str) else "".join(_LATEX.get(c, c) for c in cell) for cell in cells)
    return " & ".join(texts) + r" \\"
