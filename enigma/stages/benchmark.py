"""Stage 3: every model on the same items, through lm-eval, in memory.

Sensitivity comes first: a task judges only where the untrained model itself is clearly better than guessing, by the
margin with the prior taken away (docs/method.md, eq. 26). An insensitive task is shown, and judges nothing.
"""

import gc
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from enigma import stages
from enigma.method.stats import holm, mean_interval, paired_p_value, student_interval
from enigma.profile import BASE, run_name
from enigma.record.cache import Piece, Store
from enigma.record.files import atomic_write_json, read_json
from enigma.stages import harness, train
from enigma.tasks import lookup, robustness

NAME = "03_benchmark"
ABLATION = "grpo"  # the arm, beside base, that every other arm is compared with
LEVEL = 0.05
SENSITIVE_T = 4.0
CAPTIONS = {
    "benchmarks": "Scores by lm-eval and continuous marks, base and every run on the same items, drawn by seed. margin: "
    "log-probability per character of the right choice minus the mean of the others (nats); margin_prior: the same with "
    "each choice's own prior taken away; gold_bits_per_byte and gold_probability of the right choice. stderr: over items. "
    "at_chance: chance is not rejected at 0.05. sensitive: the untrained model's margin_prior lies more than four "
    "standard errors above zero; another task judges nothing.",
    "benchmark_items": "Score of every item, the raw material of the paired comparisons. part: the condition (robustness) or "
    "the principle (adherence) under which an item was asked.",
    "benchmark_differences": "Paired differences over items to base and to grpo of the same seed; an item that is asked more "
    "than once counts once, with its mean. Interval: 95 %, Student's t over items. p_value: exact McNemar test for scores of "
    "0 or 1, else paired t test. p_holm: corrected by Holm's method for all rows of the table. They speak of chance among items, "
    "not among training seeds.",
    "robustness": "Items under conditions that should not change an answer: the margin of the right option (nats per "
    "character), and how far it lies below that of the unchanged prompt, with a 95 % interval over items. worst case: each "
    "item's smallest margin.",
    "adherence": "Share of pairs in which the response that follows the principle is the likelier (acc), and likelier a letter "
    "(acc_norm): under the principle, under its antithesis, where the other response is right, and the mean of both. A model "
    "that does not read the principle has a mean of exactly 0.5. The rows named all have a 95 % bootstrap over pairs.",
    "benchmark_speed": "Prompts with all their choices, a second, as measured on this machine; not for comparing.",
}


def pieces(profile, store: Store) -> list[Piece]:
    """One piece for each model and task."""
    return [piece for mine in _by_model(profile, store).values() for piece in mine.values()]


def _by_model(profile, store: Store) -> dict[tuple, dict[str, Piece]]:
    from enigma.llm.loading import fingerprint

    spec = profile.benchmarks
    common = {"seed": profile.seeds.evaluation}
    common["model"] = fingerprint(profile.model, profile.seeds.initialisation)
    definitions = {task: lookup.definition(task) for task in spec.tasks}
    found = {}
    for arm, seed in [(BASE, None), *profile.runs()]:
        adapter = train.adapter_recipe(profile, store, arm, seed)
        name = BASE if seed is None else run_name(arm, seed)
        found[arm, seed] = mine = {}
        for task, what in definitions.items():
            own = {"adapter": adapter, "task": what, "limit": harness.limit_of(spec.limit, task)}
            mine[task] = Piece("benchmark", f"{name}.{what['task']}", common | own)
    return found


def measure(profile, store: Store) -> dict:
    """Scores and items of every model on every task: {"models": [{"arm", "seed", "tasks": {name: {...}}}]}.

    One model is in memory at a time. Raises InputError, before a model is loaded, for an unknown task or missing data.
    """
    by_model = _by_model(profile, store)
    if any(store.fault(piece) for mine in by_model.values() for piece in mine.values()):
        lookup.check_tasks(profile.benchmarks.tasks)
    loaded: dict = {}
    work = [
        (piece, partial(_score, profile, store, task, *model, loaded))
        for model, mine in by_model.items()
        for task, piece in mine.items()
    ]
    folders = iter(stages.made(store.get, store, work, "benchmarks", "task"))
    found = []
    for (arm, seed), mine in by_model.items():
        names = [piece.ingredients["task"]["task"] for piece in mine.values()]
        scores = {name: read_json(next(folders) / "scores.json") for name in names}
        found.append({"arm": arm, "seed": seed, "tasks": scores})
    return {"models": found}


def _score(profile, store: Store, task: str, arm: str, seed: int | None, loaded: dict, folder: Path) -> None:
    """One piece. `loaded` holds the model of the piece before, and then this one's."""
    from enigma.llm.loading import load_policy

    if (arm, seed) not in loaded:
        loaded.clear()
        gc.collect()
        adapter = None if seed is None else train.adapter(profile, store, arm, seed)
        loaded[arm, seed] = load_policy(profile.model, adapter, profile.seeds.initialisation)
    spec = profile.benchmarks
    started = time.perf_counter()
    options = {"limit": harness.limit_of(spec.limit, task), "batch_size": spec.batch_size}
    rows, items = harness.evaluate(*loaded[arm, seed], task, **options, seed=profile.seeds.evaluation)
    prompts = len({(row["part"], row["item"]) for row in items})
    speed = {"prompts": prompts, "seconds": time.perf_counter() - started}
    frame = pd.DataFrame(items).astype(object).where(lambda table: table.notna(), None)
    atomic_write_json(folder / "scores.json", {"rows": rows, "items": frame.to_dict("list"), "speed": speed})


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """The tables of `CAPTIONS`, from the items of every model."""
    rows, items, speed = [], [], []
    for model in raw["models"]:
        head = {"arm": model["arm"], "seed": model["seed"]}
        for task, scores in model["tasks"].items():
            rows += [head | {"task": task} | row for row in scores["rows"]]
            items.append(pd.DataFrame(head | {"task": task} | scores["items"]))
            speed.append(head | {"task": task} | scores["speed"])
    kinds = {"seed": "Int64", "value": float}
    every = pd.concat(items, ignore_index=True).astype(kinds | {"chance": float})
    benchmarks = pd.DataFrame(rows).astype(kinds | {"stderr": float, "chance": float})
    benchmarks["at_chance"] = [_at_chance(row, every) for row in benchmarks.itertuples()]
    sensitive = sensitive_tasks(every)
    benchmarks["sensitive"] = benchmarks["task"].isin(sensitive)
    every = every.drop(columns="chance")
    return {
        "benchmarks": benchmarks,
        "benchmark_items": every,
        "benchmark_differences": differences(every),
        "robustness": robustness.summary(every, profile.seeds.bootstrap),
        "adherence": adherence(every),
        "benchmark_speed": pd.DataFrame(speed).astype({"seed": "Int64"}),
    }


def sensitive_tasks(items: pd.DataFrame) -> list[str]:
    """Tasks on which the untrained model is clearly better than guessing: its margin_prior has t > 4 over items."""
    found = []
    base = items[(items["arm"] == BASE) & (items["metric"] == "margin_prior")]
    for task, rows in base.groupby("task", sort=False):
        values = rows.groupby("item")["value"].mean()
        if len(values) > 2 and values.mean() > SENSITIVE_T * values.sem():
            found.append(task)
    return found


def _at_chance(row, items: pd.DataFrame) -> bool | None:
    """Whether a score may be guessing, at the 5 % level and on either side; None where no score of guessing is known.

    Accuracies: exact binomial test with the mean chance. Other scores: chance within 1.96 standard errors.
    """
    if np.isnan(row.chance):
        return None
    same = items["seed"].isna() if pd.isna(row.seed) else items["seed"] == row.seed
    mine = items[
        (items["arm"] == row.arm) & same & (items["task"] == row.task) & (items["metric"] == row.metric)
    ]
    values = mine.groupby("item")["value"].mean().to_numpy()
    if np.isin(values, (0, 1)).all():
        return bool(scipy_stats.binomtest(int(values.sum()), len(values), row.chance).pvalue >= LEVEL)
    # One value has no standard error, and rejects nothing.
    return not abs(values.mean() - row.chance) > 1.96 * row.stderr


def differences(items: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over items: every run minus base, and every other run minus `grpo` of the same seed.

    `items`: arm, seed, task, item, metric, value; rows of the same item are averaged first. Returns arm, seed, versus,
    task, metric, difference (in the metric's unit), low, high, n (pairs), p_value, p_holm.
    """
    scores = (
        items.groupby(["arm", "seed", "task", "metric", "item"], sort=False, dropna=False)["value"]
        .mean()
        .reset_index()
    )
    by_run = {run: table for run, table in scores.groupby(["arm", scores["seed"].fillna(-1)], sort=False)}
    rows = []
    for (arm, run_seed), mine in by_run.items():
        for versus, other in ((BASE, (BASE, -1)), (ABLATION, (ABLATION, run_seed))):
            if arm in (BASE, versus) or other not in by_run:
                continue
            pairs = mine.merge(by_run[other], on=["task", "item", "metric"])
            for (task, metric), pair in pairs.groupby(["task", "metric"], sort=False):
                a, b = pair["value_x"].to_numpy(), pair["value_y"].to_numpy()
                found = *student_interval(a - b), len(a), paired_p_value(a, b)
                rows.append([arm, run_seed, versus, task, metric, *found])
    names = ["arm", "seed", "versus", "task", "metric", "difference", "low", "high", "n", "p_value"]
    table = pd.DataFrame(rows, columns=names).astype({"seed": "Int64"})
    return table.assign(p_holm=holm(table["p_value"].to_numpy(dtype=float)))


def adherence(items: pd.DataFrame) -> pd.DataFrame:
    """The table `adherence`, from rows of benchmark_items: a row for each run, metric and principle, and one for all.

    Columns: arm, seed, metric, principle, under_principle, under_antithesis, mean (shares of pairs in [0, 1]), low, high
    (95 % bootstrap over pairs of `mean`, for all principles together), pairs.
    """
    rows = []
    asked = items[(items["task"] == "enigma_adherence") & items["metric"].isin(("acc", "acc_norm"))]
    for (arm, seed, metric), run in asked.groupby(["arm", "seed", "metric"], sort=False, dropna=False):
        turned = run["part"].str.startswith("not ")
        named = run.assign(principle=run["part"].str.removeprefix("not "))
        sides = {
            side: named[chosen].set_index(["principle", "item"])["value"]
            for side, chosen in (("under_principle", ~turned), ("under_antithesis", turned))
        }
        pairs = pd.DataFrame(sides)
        pairs["mean"] = pairs.mean(axis=1)
        table = pairs.groupby(level="principle", sort=False).mean()
        counts = pairs.groupby(level="principle", sort=False).size()
        whole = mean_interval(pairs["mean"].to_numpy(), support=(0, 1))
        table.loc["all"] = pairs.mean()
        table = table.assign(low=np.nan, high=np.nan, pairs=[*counts, len(pairs)])
        table.loc["all", ["low", "high"]] = whole.low, whole.high
        rows.append(table.reset_index().assign(arm=arm, seed=seed, metric=metric))
    columns = [
        *("arm", "seed", "metric", "principle", "under_principle", "under_antithesis", "mean"),
        *("low", "high", "pairs"),
    ]
    table = pd.concat(rows) if rows else pd.DataFrame(columns=columns)
    return table[columns].astype({"seed": "Int64"}).reset_index(drop=True)


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 3: base and every run on every task. Returns and writes the tables."""
    return stages.run(sys.modules[__name__], profile, results)
