"""Stage 5: the paper's claims, each with a rule written before the run, and what was measured here.

One entry and one function per claim. A function reads tables and returns parts: named effects, signed so that above zero
favours the claim, each with a 95 % interval and what it is over. One rule for every part (`GENERAL_RULE`); a claim's
verdict is its weakest part's. Claims and their sources: docs/method.md, table 1; measures, margins and rules: ours [D].
"""

import math
import sys

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from enigma import stages
from enigma.data.principles import load_pool
from enigma.errors import InputError
from enigma.method.stats import Interval, own_label_test, student_interval
from enigma.profile import BASE
from enigma.record.cells import interval_text
from enigma.stages import comparison, prediction, setting
from enigma.stages.judging import (
    ABSTRACT,
    GENERAL_RULE,
    MARGIN,
    NOT_SUPPORTED,
    NOT_TESTED,
    OURS,
    PERPLEXITY_FACTOR,
    REGISTRY,
    SECONDARY,
    SEEDS,
    SETS,
    SUPPORTED,
    UNDECIDED,
    VERDICTS,
    Claim,
    Finding,
    Missing,
    Part,
    Tables,
    ablation_table,
    claim,
    end_rewards,
    log_unsteadiness,
    measured,
    over_questions,
    steadiness_table,
)
from enigma.tasks import robustness

NAME = "05_report"
CAPTIONS = {
    "setting": setting.CAPTION,
    "steadiness": "How steadily each run trained. probe: mean squared second difference of the probe curve, which has no "
    "sampling noise; reward_area and reward_drawdown of the graded reward; variation of the gradient norm.",
    "ablation": "What each arm changes against plain GRPO of the same seed: mean over paired seeds with Student's t interval. "
    "margin: benchmark margin in standard deviations of the untrained model's items, sensitive tasks weighted equally; "
    "untrained_bound: information (nats) that the untrained model reads in held-out completions; drift: Sinkhorn divergence, "
    "mean over layers; strict: format reward at the end of training.",
    "prediction_points": prediction.CAPTION_POINTS,
    "prediction": prediction.CAPTION,
    "neighbours": comparison.CAPTION,
    "claims": "The paper's claims and what was measured here. Value, low and high belong to the part that decided the "
    "verdict; the note has all parts. detectable: the smallest effect that such a run would have found in four of five "
    "cases. " + GENERAL_RULE,
}


# ---- the claims ----------------------------------------------------------------------------------------------------


@claim(
    "C1",
    "High-SI principles predict steadier training dynamics than low-SI ones.",
    ABSTRACT,
    "Effect: log of the mean squared second difference of the probe curve (teacher-forced, without sampling noise), enigma_low "
    f"minus enigma_high, over at least {SEEDS} paired seeds, Student's t. Negligible: 0.1 (a tenth).",
)
def steadier(tables: Tables) -> Finding:
    def part(name: str) -> Part:
        table = log_unsteadiness(tables.get("training"))
        low, high = (tables.by_seed(table, "value", f"enigma_{side}") for side in ("low", "high"))
        return tables.paired(name, low, high, 0.1)

    return Finding([measured("log unsteadiness, enigma_low - enigma_high", part)])


@claim(
    "C2",
    "High-SI principles predict better benchmark performance than GRPO ablations.",
    ABSTRACT,
    "Effects: benchmark margin of enigma_high minus grpo, and minus enigma_low, on the sensitive choice tasks, paired by item, "
    "in standard deviations of the untrained model's items, tasks weighted equally, over at least "
    f"{SEEDS} paired seeds. Negligible: {MARGIN:g}.",
)
def better_benchmarks(tables: Tables) -> Finding:
    def part(name: str, other: str) -> Part:
        effect = tables.effect("enigma_high", other)
        return tables.paired(name, effect, effect * 0, MARGIN)

    names = {other: f"benchmark margin, enigma_high - {other}" for other in ("grpo", "enigma_low")}
    return Finding([measured(name, lambda n, o=other: part(n, o)) for other, name in names.items()])


@claim(
    "C3a",
    "SI, measured on the untrained model, lets you select principles before training.",
    ABSTRACT,
    "Effects: do principles differ in SI at all (Friedman's test over all principles, paired by question; supported below "
    "0.05)? And SI of the high set minus the low set on held-out questions, paired, where the choice cannot flatter it. "
    "Negligible: 0.01. Whether the selection then pays is C1 and C2.",
)
def selection(tables: Tables) -> Finding:
    def omnibus(name: str) -> Part:
        items = tables.get("sufficiency_items").assign(mean=lambda rows: rows["information"] / rows["weight"])
        table = items.pivot(index="question", columns="principle", values="mean")
        p_value = scipy_stats.friedmanchisquare(*table.to_numpy().T).pvalue
        spread = Interval(float(table.mean().std()), math.nan, math.nan)
        detail, verdict = f"p = {p_value:.2g}, {table.shape[1]} principles", SUPPORTED
        return Part(
            name, spread, len(table), "questions", 0.0, detail, verdict if p_value < 0.05 else UNDECIDED
        )

    def heldout(name: str) -> Part:
        base = tables.get("legibility_items").query("arm == 'base'")
        sides = [base[base["set"] == side].set_index("question")["own"] for side in ("high", "low")]
        if any(side.empty for side in sides):
            raise Missing("arms on the high and on the low set")
        k = tables.get("legibility").query("arm == 'base' and set == 'high'")["k"].iloc[0]
        return over_questions(name, ((sides[0] - sides[1]) / np.log(k)).dropna().to_numpy(), 0.01)

    return Finding(
        [
            measured("information, standard deviation over principles (nats)", omnibus),
            measured("SI on held-out questions, high set - low set", heldout),
        ]
    )


@claim(
    "C3b",
    "SI, measured on the untrained model, lets you create principles before training.",
    ABSTRACT,
    "Effect: the SI gain of accepted texts on fresh questions, the largest, its interval widened by Bonferroni for the number "
    "of texts tried on them. A text is accepted only if its meaning stays near its seed's and its completions are recognised under the "
    "seed's own wording. Not supported when no proposal was accepted. Only a creation from this profile and its pool counts. "
    "Negligible: 0.01.",
)
def creation(tables: Tables) -> Finding:
    def part(name: str) -> Part:
        try:
            table = tables.get("creation")
        except InputError:
            raise Missing("table creation of this profile") from None
        pool = {p.name: p.text for p in load_pool(tables.profile.principles.pool)}
        if any(pool.get(seed) != text for seed, text in zip(table["seed"], table["seed_text"], strict=True)):
            raise Missing("table creation of this profile's pool")
        accepted = table[table["accepted"].astype(bool)]
        tried = f"{len(table)} proposals for {table['seed'].nunique()} of the pool's {len(pool)} principles"
        if accepted.empty:
            return Part(name, detail=f"none of {tried} accepted", verdict=NOT_SUPPORTED)
        best = accepted.loc[accepted["gain"].idxmax()]
        found = Interval(*best[["gain", "gain_low", "gain_high"]])
        return Part(name, found, margin=0.01, detail=f"{len(accepted)} of {tried} accepted")

    return Finding([measured("SI gain of the best created principle", part)])


@claim(
    "C4",
    "The optimal-transport regulariser bounds geometry drift.",
    ABSTRACT,
    "Effect: log of the Sinkhorn divergence to the untrained model on held-out prompts after training, mean over layers, without "
    "the term minus with it. Where they were trained, the pairs that differ in this term alone decide (grpo - grpo_ot, grpo_sami "
    f"- enigma_high); else grpo - enigma_high. Over paired seeds where there are {SEEDS}, else over layers of one run, as a lower "
    "bound of what is uncertain. Negligible: 0.05.",
)
def bounded_drift(tables: Tables) -> Finding:
    def part(name: str, without: str, with_term: str) -> Part:
        rows = tables.drift().assign(log=lambda frame: np.log(frame["value"].clip(lower=1e-12)))
        sides = [tables.by_seed(rows, "log", arm) for arm in (without, with_term)]
        rewards = end_rewards(tables, without, with_term)
        if len((sides[0] - sides[1]).dropna()) >= SEEDS:
            found = tables.paired(name, *sides, 0.05)
            matched = comparison.at_equal_reward(tables.get("training"), without, with_term)
            rewards += (
                f"; log drift while training, at equal reward: {interval_text(*student_interval(matched))}"
            )
        else:
            layers = [rows[rows["arm"] == arm].groupby("layer")["log"].mean() for arm in (without, with_term)]
            values = (layers[0] - layers[1]).dropna()
            found = Part(name, student_interval(values), len(values), "layers of one seed", 0.05)
        return Part(found.name, found.effect, found.units, found.over, found.margin, rewards)

    pairs = [("grpo", "grpo_ot"), ("grpo_sami", "enigma_high")]
    found = [measured(f"log drift, {a} - {b}", lambda n, a=a, b=b: part(n, a, b)) for a, b in pairs]
    isolating = [part for part in found if part.judged() != NOT_TESTED]
    if isolating:
        return Finding(isolating)
    both = measured("log drift, grpo - enigma_high", lambda n: part(n, "grpo", "enigma_high"))
    return Finding([both], ["the two arms differ in the SAMI term too, which adds drift of its own"])


@claim(
    "C5",
    "Training makes a desirable structural change in the manifold: states move along the principles' directions.",
    ABSTRACT,
    "Effect: share of each run's displacement in the span of its own set's principle directions minus the mean share in the other "
    f"arms' sets, mean over layers. The unit is the set: at least {SETS} sets, and the labels of the sets are permuted over the "
    "arms; supported when positive with p below 0.05.",
)
def directed_change(tables: Tables) -> Finding:
    def part(name: str) -> Part:
        shares = tables.get("set_shares").groupby(["arm", "set"])["share"].mean().unstack()
        arms = [arm for arm in shares.index if tables.profile.arms[arm].lambda_sami > 0]
        # Arms on the same set are one row: the set is the unit.
        own = np.array([tables.profile.arms[arm].set for arm in arms])
        by_set = shares.loc[arms].groupby(own).mean()
        if len(by_set) < SETS:
            raise Missing(f"{SETS} sets, found {len(by_set)}")
        matrix = by_set[by_set.index].to_numpy()
        values, p_value = own_label_test(matrix, tables.profile.seeds.bootstrap)
        found = student_interval(values)
        verdict = UNDECIDED if found.high > 0 else NOT_SUPPORTED
        if p_value < 0.05 and found.value > 0:
            verdict = SUPPORTED
        return Part(name, found, len(values), "sets", detail=f"p = {p_value:.3g}", verdict=verdict)

    return Finding([measured("share along own principles - along other sets'", part)])


@claim(
    "C6",
    "Reasoning, alignment and robustness improve jointly, without a reward model.",
    ABSTRACT,
    "Effects: enigma_high minus base on reasoning and on truthfulness tasks that are sensitive (margins in standard deviations of "
    "the untrained model's items), on the margin in the worst case over perturbations, and on the strict format, over at least "
    f"{SEEDS} seeds. All must be supported. Negligible: {MARGIN:g}.",
)
def joint_improvement(tables: Tables) -> Finding:
    def margin(name: str, tasks: list[str]) -> Part:
        effect = tables.effect("enigma_high", BASE, tasks)
        return tables.paired(name, effect, effect * 0, MARGIN)

    def worst_case(name: str) -> Part:
        items = robustness.worst(tables.get("benchmark_items"))
        base = items[items["arm"] == BASE].set_index("item")["value"]
        mine = items[items["arm"] == "enigma_high"]
        if base.empty or mine.empty:
            raise Missing(f"task {robustness.TASK}")
        effect = mine.groupby("seed").apply(
            lambda run: (run.set_index("item")["value"] - base).mean() / base.std()
        )
        return tables.paired(name, effect, effect * 0, MARGIN)

    def strict(name: str) -> Part:
        items = tables.get("benchmark_items").query("metric == 'strict_format'")
        base = items[items["arm"] == BASE]["value"].mean()
        effect = tables.by_seed(items, "value", "enigma_high") - base
        return tables.paired(name, effect, effect * 0, 0.01)

    kinds = {
        "reasoning": [
            *("enigma_knowledge", "enigma_reasoning", "arc_easy", "arc_challenge", "piqa"),
            "hellaswag",
        ],
        "truthfulness": ["enigma_truthfulness", "truthfulqa_mc1", "truthfulqa_mc2"],
    }
    parts = [
        measured(f"{kind}, enigma_high - base", lambda n, t=tasks: margin(n, t))
        for kind, tasks in kinds.items()
    ]
    parts.append(measured("worst case over perturbations, enigma_high - base", worst_case))
    parts.append(measured("strict format, enigma_high - base", strict))
    return Finding(parts)


@claim(
    "H",
    "Gemma-3-1B-it with LoRA r=16 on 20k rows of CoT-Collection improves on GPQA and on TruthfulQA.",
    SECONDARY,
    "Effects: accuracy of enigma_high minus base on lm-eval's gpqa (any variant) and truthfulqa_mc2, over at least "
    f"{SEEDS} seeds. Judged is the direction; the sizes belong to another model. Negligible: 0.01.",
    "GPQA 13.62 % -> 20.54 % (+6.92), TruthfulQA 38.07 % -> 50.18 % (+12.11)",
)
def headline(tables: Tables) -> Finding:
    def part(name: str, prefix: str, metrics: tuple[str, ...]) -> Part:
        items = tables.get("benchmark_items")
        rows = items[items["task"].str.startswith(prefix) & items["metric"].str.startswith(metrics)]
        if rows.empty:
            raise Missing(f"a {prefix} task")
        base = rows[rows["arm"] == BASE]["value"].mean()
        effect = tables.by_seed(rows, "value", "enigma_high") - base
        return tables.paired(name, effect, effect * 0, 0.01)

    return Finding(
        [
            measured("GPQA, enigma_high - base", lambda n: part(n, "gpqa", ("acc", "exact_match"))),
            measured("TruthfulQA, enigma_high - base", lambda n: part(n, "truthfulqa_mc2", ("acc", "mc2"))),
        ]
    )


@claim(
    "L",
    "After training the principles are carried legibly, not as a private code.",
    OURS,
    "Effects, on held-out questions under the high set, paired by question: information that the untrained model reads, enigma_high "
    "minus base (nats; negligible 0.01), and log perplexity under the untrained model, base minus enigma_high plus log "
    f"{PERPLEXITY_FACTOR:g} (above zero: at most a quarter higher than the untrained model's own text).",
)
def legible(tables: Tables) -> Finding:
    def bound(name: str) -> Part:
        return over_questions(name, tables.heldout("untrained", "enigma_high", BASE), 0.01)

    def perplexity(name: str) -> Part:
        return over_questions(name, tables.heldout("nll", BASE, "enigma_high") + math.log(PERPLEXITY_FACTOR))

    return Finding(
        [
            measured("information the untrained model reads, enigma_high - base", bound),
            measured(f"log perplexity, base - enigma_high + log {PERPLEXITY_FACTOR:g}", perplexity),
        ]
    )


@claim(
    "E",
    "The trained chain of thought carries more of its principles than GRPO's, to a reader who did not learn the code.",
    OURS,
    "Effect: information that the untrained model reads in held-out completions under the high set (nats), enigma_high minus grpo, "
    "paired by question, seeds averaged. Negligible: 0.01.",
)
def encodes(tables: Tables) -> Finding:
    def part(name: str) -> Part:
        return over_questions(name, tables.heldout("untrained", "enigma_high", "grpo"), 0.01)

    return Finding([measured("information the untrained model reads, enigma_high - grpo", part)])


# ---- tables --------------------------------------------------------------------------------------------------------

COLUMNS = [
    *("id", "claim", "source", "measure", "value", "low", "high", "units", "over", "detectable"),
    *("verdict", "rule", "paper", "note"),
]


def pieces(profile, store) -> list:
    """None: everything follows from the tables of the earlier stages."""
    return []


def measure(profile, store) -> dict:
    """Nothing new is measured."""
    return {}


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """The claims and what they rest on. A table that is missing leaves its claims untested, and they say so."""
    read = Tables(profile, earlier)
    points = prediction.points(profile, read)
    return {
        "setting": setting.table(profile),
        "steadiness": steadiness_table(read.get("training")),
        "ablation": ablation_table(read),
        "prediction_points": points,
        "prediction": prediction.table(points, profile.seeds.bootstrap),
        "neighbours": comparison.table(profile, read),
        "claims": pd.DataFrame([_row(entry, entry.find(read)) for entry in REGISTRY], columns=COLUMNS),
    }


def _row(entry: Claim, finding: Finding) -> list:
    tested = [part for part in finding.parts if part.judged() != NOT_TESTED]
    part = min(tested or finding.parts, key=lambda part: VERDICTS.index(part.judged()))
    # A part that was not tested leaves the claim no better than undecided.
    verdict = part.judged()
    if tested and len(tested) < len(finding.parts) and verdict == SUPPORTED:
        verdict = UNDECIDED
    note = "; ".join([*(each.text() for each in finding.parts), *finding.notes])
    found = [part.name, *part.effect, part.units or None, part.over, part.detectable()]
    return [entry.id, entry.text, entry.source, *found, verdict, entry.rule, entry.paper, note]


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 5: judge the claims. Returns and writes the tables."""
    return stages.run(sys.modules[__name__], profile, results)
