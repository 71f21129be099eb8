"""Stage 3: every model on the same items, through lm-eval, in memory.

Own tasks lie in `enigma/tasks`; the others are lm-eval's, from the hub, or from the folder that the environment
variable ENIGMA_DATA names. All arms see the same prompts. Multiple-choice tasks are plain text without a chat template,
as lm-eval runs them by default and as published numbers mostly are. Two tasks use the template, because a format is a
habit of the chat, and a principle a request in it: `enigma_format`, and `enigma_adherence`, the only one with a principle
in its prompts. Log-softmax is in float32 whatever the model's dtype: in bfloat16 the choices of one question tie. No
score is cached across weights: a result is reused only for the same profile, adapter bytes, items, limit and seed.
Source: our choice [D]; scores and standard errors lm-eval's.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import yaml
from scipy import stats as scipy_stats

from enigma.errors import InputError
from enigma.method.stats import holm, mean_interval, paired_p_value
from enigma.record.progress import headless, track
from enigma.record.results import atomic_write_json, atomic_write_text, file_hash
from enigma.record.runlock import one_writer
from enigma.tasks import robustness
from enigma.tasks.external import EXTERNAL, OWN_TASKS, External, check_file, check_names, data_folder

TASKS = Path(__file__).parents[1] / "tasks"
TEMPLATED = ("enigma_format", "enigma_adherence")  # the tasks that are asked in the chat template
# Tasks that ask each item more than once, and the field that says how.
REPEATED = {robustness.TASK: "condition", "enigma_adherence": "asked"}
BASE = "base"
GENERATED_CHOICE = ("gpqa_main_generative_n_shot", "gpqa_main_cot_zeroshot")
NO_ANSWER = "[invalid]"  # what lm-eval's filters leave of a text without an answer
ABLATION = "grpo"  # the arm, beside base, that every other arm is compared with
LEVEL = 0.05


# ---- the stage -----------------------------------------------------------------------------------------------------


@one_writer
def run(profile, results) -> dict[str, pd.DataFrame]:
    """Evaluate base and every arm; write and return the tables benchmarks, benchmark_items, benchmark_differences,
    robustness, adherence and benchmark_speed (the last depends on the machine and is not for comparing).

    One model is in memory at a time. Each model's scores are kept in runs/<run>/benchmark.json, so that an
    interrupted run resumes. Raises InputError, before a model is loaded, for an unknown task, missing data or an arm
    that was not trained.
    """
    check_tasks(profile.benchmarks.tasks)
    arms = [(BASE, None), *profile.runs()]
    adapters = {(arm, seed): _adapter(results, arm, seed) for arm, seed in arms}
    keys = {pair: _key(profile, adapter) for pair, adapter in adapters.items()}
    scores = {}
    for pair in track(arms, "benchmarks", unit="model"):
        path = _folder(results, *pair) / "benchmark.json"
        scores[pair] = _kept(path, keys[pair]) or _scored(profile, adapters[pair], path, keys[pair])
    tables = {
        "benchmarks": _stacked(scores, "rows"),
        "benchmark_items": _stacked(scores, "items"),
        "benchmark_speed": _stacked(scores, "speed"),
    }
    items, seed = tables["benchmark_items"], profile.seeds.bootstrap
    tables["benchmark_differences"] = differences(items, seed=seed)
    tables["robustness"] = robustness.summary(items, robustness.hints(), seed=seed)
    tables["adherence"] = adherence(items)
    for name, table in tables.items():
        results.write_table(name, table, _captions(profile)[name])
    return tables


def _scored(profile, adapter: Path | None, path: Path, key: dict) -> dict:
    """Load one model, evaluate it, keep the scores at `path`, let the model go."""
    from enigma.llm.loading import load_policy

    settings = profile.benchmarks
    model, tokenizer = load_policy(profile.model, adapter, seed=profile.seeds.initialisation)
    start = time.perf_counter()
    rows, items = evaluate(
        model,
        tokenizer,
        settings.tasks,
        limit=settings.limit,
        batch_size=settings.batch_size,
        seed=profile.seeds.evaluation,
        log_samples=path.parent / "samples" if settings.log_samples else None,
    )
    seconds = time.perf_counter() - start
    count = len(items[["task", "part", "item"]].drop_duplicates())
    speed = pd.DataFrame([{"items": count, "seconds": seconds, "items_per_second": count / seconds}])
    del model
    gc.collect()
    tables = {"rows": rows, "items": items, "speed": speed}
    kept = {"key": key} | {name: table.to_dict(orient="list") for name, table in tables.items()}
    atomic_write_json(path, kept)
    return json.loads(path.read_text(encoding="utf-8"))  # the same numbers now and when resumed


def _kept(path: Path, key: dict) -> dict | None:
    """The scores at `path` where they belong to `key`, else None."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if kept.get("key") == key else None


def _key(profile, adapter: Path | None) -> dict:
    """What scores depend on: profile, weights, items, limit and seed."""
    local = (
        sorted(Path(profile.model.id).expanduser().glob("*.safetensors"))
        if profile.model.source == "local"
        else []
    )
    weights = [*local, *sorted(adapter.glob("adapter_*"))] if adapter else local
    settings = profile.benchmarks
    return {
        "profile": profile.hash,
        "weights": {path.name: file_hash(path) for path in weights},
        "tasks": list(settings.tasks),
        "limit": settings.limit,
        "seed": profile.seeds.evaluation,
        "data": {name: _data_hash(name) for name in settings.tasks},
    }


def _data_hash(task: str) -> str:
    """sha256 over the files that a task's items come from; "hub" where lm-eval fetches them."""
    if task in OWN_TASKS:
        paths = sorted(path for path in TASKS.iterdir() if path.suffix in (".jsonl", ".yaml", ".py"))
        paths += [TASKS.parent / "data" / "pools" / "default.yaml", TASKS.parent / "data" / "questions.jsonl"]
    elif (folder := data_folder()) is None:
        return "hub"
    else:
        paths = [folder / file for file in EXTERNAL[task].files.values()]
    return hashlib.sha256("".join(file_hash(path) for path in paths).encode()).hexdigest()


def _folder(results, arm: str, seed: int | None) -> Path:
    return results.runs / BASE if arm == BASE else results.run_folder(arm, seed)


def _adapter(results, arm: str, seed: int | None) -> Path | None:
    if arm == BASE:
        return None
    adapter = _folder(results, arm, seed) / "adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{adapter}: found no adapter, expected that of a trained arm; run notebook 02_train first"
        )
    return adapter


def _stacked(scores: dict[tuple[str, int | None], dict], part: str) -> pd.DataFrame:
    frames = [pd.DataFrame({"arm": arm, "seed": seed} | kept[part]) for (arm, seed), kept in scores.items()]
    table = pd.concat([frame.astype({"seed": "Int64"}) for frame in frames], ignore_index=True)
    kinds = {"stderr": float, "answer": "Int64"}
    return table.astype({column: kind for column, kind in kinds.items() if column in table})


def _captions(profile) -> dict[str, str]:
    items = (
        "all items"
        if profile.benchmarks.limit is None
        else f"at most {profile.benchmarks.limit} items a task"
    )
    return {
        "benchmarks": f"Benchmark scores by lm-eval, base and every arm on the same items ({items}, drawn by seed). "
        "stderr: standard error over items. chance: score of guessing evenly (0 for generated text). at_chance: chance "
        "is not rejected at 0.05 (exact binomial test; for shares, within 1.96 standard errors). Where items are asked more "
        "than once (robustness, adherence), n and stderr count items. Multiple choice by generated text (gpqa): chance "
        "counts the texts from which an answer could be extracted.",
        "benchmark_items": "Score of every item, the raw material of the paired comparisons. part: the condition "
        "(robustness) or the principle (adherence) under which an item was asked. answer: number of the likeliest option.",
        "benchmark_differences": "Paired differences over items to base and to grpo of the same seed; an item that is "
        "asked more than once counts once, with its mean. Interval: 95 % bootstrap over items. p_value: exact McNemar test "
        "for scores of 0 or 1, else paired permutation test. p_holm: corrected by Holm's method for all rows of the table. "
        "They tell chance of items, not of training seeds.",
        "robustness": "The same items under conditions that should not change an answer. Value: share of items answered "
        "right; for consistency answered alike under all conditions, for worst_case right under all, for follows_hint "
        "with the wrong option that the hint names; low, high: Wilson's 95 % interval. chance: even guessing, afresh each "
        "time; independent: answers of these accuracies that have nothing to do with each other. A value of consistency "
        "near independent is no robustness, and a high one with accuracy at chance is steadiness in guessing. Differences "
        "are paired by item, to the original; same_answer: share answered as in it. Interval: 95 % bootstrap over items; "
        "p_value: exact McNemar test; p_holm: Holm's method over the table.",
        "adherence": "Share of pairs in which the response that follows the principle is the likelier (acc), and likelier "
        "a letter (acc_norm): under the principle, under its antithesis, where the other response is right, and the mean "
        "of both. A model that does not read the principle has a mean of exactly 0.5. Two pairs a principle say little "
        "about one principle; the rows named all have the interval, a 95 % bootstrap over pairs.",
        "benchmark_speed": "Items a second, as measured on this machine; not for comparing across machines.",
    }


# ---- one model -----------------------------------------------------------------------------------------------------


def evaluate(
    model,
    tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    log_samples: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, items) of a causal language model in memory, scored as it is, adapters on or off.

    rows: task, metric, value, stderr, n, chance, at_chance, one for each metric. items: task, part (how an item of
    `REPEATED` was asked, else None), item (its number; elsewhere the row number in the task's data), metric, value,
    answer (the likeliest option, None for generated text). `limit` items a task are drawn by `seed`, the same for every
    model; None takes all. `batch_size` prompts go through the model at a time. `log_samples`: a folder for one
    samples_<task>.jsonl a task, in lm-eval's layout.
    Training mode of every module, the padding token and all random generators are afterwards as they were before.
    Raises InputError as `check_tasks` does.
    """
    with _undisturbed(model, tokenizer), _quiet():
        loaded = load_tasks(tasks, seed)
        drawn = {name: draw_rows(name, task.eval_docs, limit, seed) for name, task in loaded.items()}
        outputs = _run_harness(model, tokenizer, loaded, drawn, batch_size, seed)
    rows, items = [], []
    for name in loaded:
        samples = outputs[name]["samples"]
        if log_samples:
            atomic_write_text(log_samples / f"samples_{name}.jsonl", sample_lines(samples))
        for metric, chosen in _by_metric(samples):
            found = [_item(name, metric, sample) for sample in chosen]
            items += found
            chances = [chance(name, metric, sample) for sample in chosen]
            rows.append(
                {"task": name, "metric": metric} | _row(outputs[name]["scores"], metric, found, chances)
            )
    return pd.DataFrame(rows), pd.DataFrame(items)


def sample_lines(samples: list[dict]) -> str:
    """Logged samples as JSON lines with the fields that `lm-eval --log_samples` writes, in the order of the data."""
    from lm_eval.utils import handle_non_serializable, sanitize_list

    lines = []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        arguments = {
            f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(parts)}
            for i, parts in enumerate(sample["arguments"])
        }
        texts = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
        changed = {"target": str(sample["target"]), "arguments": arguments} | texts
        lines.append(json.dumps(sample | changed, default=handle_non_serializable, ensure_ascii=False) + "\n")
    return "".join(lines)


def draw_rows(task: str, docs, limit: int | None, seed: int) -> list[int]:
    """`draw_items` over a task's data; of a task in `REPEATED` whole items, with all their rows."""
    if task not in REPEATED:
        return draw_items(len(docs), limit, seed)
    numbers = list(docs["item"])
    names = sorted(set(numbers))
    drawn = {names[i] for i in draw_items(len(names), limit, seed)}
    return [row for row, number in enumerate(numbers) if number in drawn]


def draw_items(count: int, limit: int | None, seed: int) -> list[int]:
    """`limit` of the row numbers 0..count-1 without repetition, in ascending order; all where `limit` is None."""
    return sorted(random.Random(seed).sample(range(count), min(count, limit or count)))


def chance(task: str, metric: str, sample: dict) -> float:
    """The expected score of one logged sample under even guessing, in [0, 1]; 0 for generated text.

    For mc2 the score of a model that finds all choices equally probable. For a choice that is extracted from generated
    text, that of guessing where an answer was extracted, and 0 where none was: a score below one over the number of
    choices then tells whether the model guessed or kept silent.
    """
    doc = sample["doc"]
    if task in GENERATED_CHOICE:
        return 0.0 if sample["filtered_resps"][0] == NO_ANSWER else 1 / len(doc["choices"])
    if metric == "mc2" or task == "truthfulqa_mc2":
        return float(np.mean(doc["mc2_targets"]["labels"]))
    if metric == "mc1":
        return 1 / len(doc["mc1_targets"]["choices"])
    return 1 / len(sample["arguments"]) if len(sample["arguments"]) > 1 else 0.0


def at_chance(values: Sequence[float], chances: Sequence[float], stderr: float) -> bool:
    """Whether the mean of `values` is not told from the mean of `chances` at the 5 % level, on either side.

    Accuracies (every value 0 or 1): exact binomial test with the mean chance; where chances differ between items
    this errs on the side of True. Other scores: chance within 1.96 standard errors.
    """
    values, expected = np.asarray(values), float(np.mean(chances))
    if np.isin(values, (0, 1)).all():
        return bool(scipy_stats.binomtest(int(values.sum()), len(values), expected).pvalue >= LEVEL)
    return (
        not abs(values.mean() - expected) > 1.96 * stderr
    )  # one value has no standard error, and rejects nothing


def _item(task: str, metric: str, sample: dict) -> dict:
    doc, number = sample["doc"], sample["doc_id"]
    part, item = (doc[REPEATED[task]], doc["item"]) if task in REPEATED else (None, number)
    logps = [found[0] for found in sample["filtered_resps"]] if len(sample["arguments"]) > 1 else None
    return {
        "task": task,
        "part": part,
        "item": item,
        "metric": metric,
        "value": float(sample[metric.split(",")[0]]),
        "answer": int(np.argmax(logps)) if logps else None,
    }


def _row(scores: dict, metric: str, items: list[dict], chances: list[float]) -> dict:
    """lm-eval's score and standard error; the latter by items where lm-eval would count the repetitions of an item."""
    name = metric if "," in metric else f"{metric},none"
    value, error = scores[name], scores[name.replace(",", "_stderr,", 1)]
    stderr = float(error) if isinstance(error, int | float) else float("nan")
    table = pd.DataFrame(items)
    values = table.groupby("item", sort=False)["value"].mean()
    if len(values) < len(table):
        stderr = float(values.sem())
    guessed = at_chance(values, chances, stderr)
    return {
        "value": float(value),
        "stderr": stderr,
        "n": len(values),
        "chance": np.mean(chances),
        "at_chance": guessed,
    }


def _by_metric(samples: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """(metric, its samples). lm-eval's filters, where there are any, become part of the metric's name."""
    for filter_name in dict.fromkeys(sample["filter"] for sample in samples):
        kept = [sample for sample in samples if sample["filter"] == filter_name]
        for metric in kept[0]["metrics"]:
            yield (metric if filter_name == "none" else f"{metric},{filter_name}"), kept


def _run_harness(
    model, tokenizer, tasks: dict, drawn: dict[str, list[int]], batch_size: int, seed: int
) -> dict:
    """{task: {"scores", "samples"}} by lm-eval. `evaluate`, not `simple_evaluate`: the latter spends seconds a call on
    collecting facts about the machine, and its other work (seeds, number of examples) is done here."""
    from lm_eval.evaluator import evaluate as harness

    lm = _language_model()(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
    )
    outputs = {}
    for templated in (False, True):
        chosen = {name: task for name, task in tasks.items() if (name in TEMPLATED) is templated}
        if not chosen:
            continue
        for task in chosen.values():
            task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
            task.set_fewshot_seed(seed)
        _seed_all(seed)
        samples = {name: drawn[name] for name in chosen}
        found = harness(
            lm,
            {"tasks": chosen},
            samples=samples,
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
        )
        outputs |= {
            name: {"scores": found["results"][name], "samples": found["samples"][name]} for name in chosen
        }
    return outputs


@functools.cache
def _language_model() -> type:
    """lm-eval's model class, with this project's way of fitting messages to templates that know no system role, and
    with each prompt read once for all of its choices."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from enigma.llm.prompts import fit_template
    from enigma.llm.scoring import completion_logprobs

    class LanguageModel(HFLM):
        def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
            return super().apply_chat_template(
                fit_template(self.tokenizer, chat_history), add_generation_prompt
            )

        @torch.no_grad()
        def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, override_bs=None) -> list:
            """[(log-probability in nats, False)] of requests (texts, context ids, continuation ids). The second value,
            whether the continuation is the greedy one, enters no mark of a known task and is not computed."""
            prompts: dict[tuple[int, ...], list[int]] = {}
            for place, (_, context, continuation) in enumerate(requests):
                kept = context[-(self.max_length + 1 - len(continuation)) :]
                prompts.setdefault(tuple(kept), []).append(place)
            ordered = sorted(prompts, key=len, reverse=True)
            found: dict[int, float] = {}
            for start in range(0, len(ordered), self.batch_size_per_gpu):
                batch = ordered[start : start + self.batch_size_per_gpu]
                places = [place for prompt in batch for place in prompts[prompt]]
                numbers = iter(range(len(places)))
                groups = [[next(numbers) for _ in prompts[prompt]] for prompt in batch]
                logps = completion_logprobs(
                    self.model,
                    [torch.tensor(prompt, device=self.device) for prompt in batch],
                    [torch.tensor(requests[place][2], device=self.device) for place in places],
                    groups,
                ).logps.sum(-1)
                for row, group in enumerate(groups):
                    found |= {places[i]: logps[row, slot].item() for slot, i in enumerate(group)}
            return [(found[place], False) for place in range(len(requests))]

    return LanguageModel


# ---- differences ---------------------------------------------------------------------------------------------------


def differences(items: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Paired differences over items: every run minus base, and every other run minus `grpo` of the same seed.

    `items`: arm, seed, task, item, metric, value; rows of the same item are averaged first. Returns arm, seed, versus, task, metric, difference (in the metric's
    unit), low, high (95 % bootstrap over items), n (pairs), p_value, p_holm. `seed` seeds bootstrap and permutations.
    """
    runs = list(items[["arm", "seed"]].drop_duplicates().itertuples(index=False, name=None))
    rows = []
    for arm, run_seed in runs:
        for versus in (BASE, ABLATION):
            other = (versus, pd.NA if versus == BASE else run_seed)
            if arm in (BASE, versus) or _scores(items, *other).empty:
                continue
            pairs = _scores(items, arm, run_seed).merge(_scores(items, *other), on=["task", "item", "metric"])
            for (task, metric), pair in pairs.groupby(["task", "metric"], sort=False):
                compared = {"arm": arm, "seed": run_seed, "versus": versus, "task": task, "metric": metric}
                rows.append(compared | _compare(pair["value_x"].to_numpy(), pair["value_y"].to_numpy(), seed))
    names = ["arm", "seed", "versus", "task", "metric", "difference", "low", "high", "n", "p_value"]
    table = pd.DataFrame(rows, columns=names).astype({"seed": "Int64"})
    return table.assign(p_holm=holm(table["p_value"].to_numpy(dtype=float)))


def _scores(items: pd.DataFrame, arm: str, seed) -> pd.DataFrame:
    same_seed = items["seed"].isna() if pd.isna(seed) else (items["seed"] == seed).fillna(False)
    chosen = items[(items["arm"] == arm) & same_seed]
    # The repetitions of an item are not independent: they count once.
    return chosen.groupby(["task", "item", "metric"], sort=False)["value"].mean().reset_index()


def _compare(one: np.ndarray, other: np.ndarray, seed: int) -> dict:
    interval = mean_interval(one - other, seed=seed, support=(-1, 1))
    ends = {"difference": interval.value, "low": interval.low, "high": interval.high}
    return ends | {"n": len(one), "p_value": paired_p_value(one, other, seed)}


# ---- adherence -----------------------------------------------------------------------------------------------------


def adherence(items: pd.DataFrame) -> pd.DataFrame:
    """The table `adherence`, from rows of benchmark_items: a row for each run, metric and principle, and one for all.

    Columns: arm, seed, metric, principle, under_principle, under_antithesis, mean (shares of pairs in [0, 1]), low, high
    (95 % bootstrap over pairs of `mean`, for all principles together), pairs.
    """
    rows = []
    asked = items[items["task"] == "enigma_adherence"]
    for (arm, seed, metric), run in asked.groupby(["arm", "seed", "metric"], sort=False, dropna=False):
        turned = run["part"].str.startswith("not ")
        sides = {
            side: run[chosen]
            .assign(principle=run["part"].str.removeprefix("not "))
            .set_index(["principle", "item"])["value"]
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
        "arm",
        "seed",
        "metric",
        "principle",
        "under_principle",
        "under_antithesis",
        "mean",
        "low",
        "high",
        "pairs",
    ]
    table = pd.concat(rows) if rows else pd.DataFrame(columns=columns)
    return table[columns].astype({"seed": "Int64"}).reset_index(drop=True)


# ---- tasks ---------------------------------------------------------------------------------------------------------


def check_tasks(names: Sequence[str]) -> None:
    """Load every task's data, and raise InputError for an unknown task, or for data that is missing, unreadable or out
    of reach. No model is needed."""
    with _quiet(), _generators_kept():
        load_tasks(names, seed=0)


def load_tasks(names: Sequence[str], seed: int) -> dict:
    """{name: lm-eval's Task} in the order of `names`. `seed` decides where gpqa's right answer stands."""
    check_names(names)
    folder = data_folder()
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            if name in EXTERNAL:
                text = yaml.safe_dump(_task_yaml(name, EXTERNAL[name], folder))
                (Path(scratch) / f"{name}.yaml").write_text(text, encoding="utf-8")
        manager = TaskManager(include_path=[TASKS, scratch], include_defaults=False)
        return {name: _load_task(manager, name, folder, seed) for name in names}


def _load_task(manager, name: str, folder: Path | None, seed: int):
    random.seed(seed)  # gpqa shuffles its choices while it loads
    try:
        task = manager.load([name])["tasks"][name]
        _process_once(task)
        return task
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever a loader raises over a file or a network that is not as it should be
        if name in OWN_TASKS:
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        files = ", ".join(EXTERNAL[name].files.values())
        if folder is None:
            raise InputError(
                f"benchmarks.tasks: {name}: its data could not be had from the hub ({said}); expected a reachable hub; "
                f"connect, or set ENIGMA_DATA to a folder with {files}"
            ) from error
        raise InputError(
            f"{folder}: {name}: {files} did not load ({said}); expected the columns "
            f"{', '.join(EXTERNAL[name].columns)} in every row; mend the file"
        ) from error


def _process_once(task) -> None:
    """Process a task's data here and now. lm-eval does it afresh at each look, and gpqa's shuffles the choices: without
    its cache, an answer would be marked by another order than the one that was asked."""
    if (process := task.config.process_docs) is not None:
        task.dataset = {split: process(rows) for split, rows in task.dataset.items()}
        task.config.process_docs = task.fewshot_cfg.process_docs = None


def _task_yaml(name: str, task: External, folder: Path | None) -> dict:
    """lm-eval's own task by inclusion; where there is a data folder, reading from it and changed in nothing else."""
    shipped = Path(find_spec("lm_eval").origin).parent / "tasks" / task.yaml
    included = {"include": str(shipped), "task": name, "tag": None}
    if folder is None:
        return included
    files = {split: folder / file for split, file in task.files.items()}
    for path in files.values():
        check_file(path, name)
    kind = "csv" if next(iter(files.values())).suffix == ".csv" else "json"
    data_files = {split: str(path.resolve()) for split, path in files.items()}
    source = {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": data_files}}
    return included | source


# ---- leaving everything as it was ----------------------------------------------------------------------------------


@contextmanager
def _undisturbed(model, tokenizer) -> Iterator[None]:
    """Put back each module's training mode, the tokenizer's padding and all random generators."""
    modes = [(module, module.training) for module in model.modules()]
    padding = tokenizer.padding_side, tokenizer.pad_token
    try:
        with _generators_kept():
            yield
    finally:
        for module, training in modes:
            module.training = training
        tokenizer.padding_side, tokenizer.pad_token = padding


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put back the generators of Python, NumPy and torch, on every device."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _seed_all(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """No chatter of lm-eval and its libraries, and no bars where nobody watches. Nor is a data set's processing cached:
    gpqa's is random, and another seed's order would come back."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = [
        (module, module.tqdm) for module in (lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface)
    ]
    hidden = headless()
    disabled, caching = datasets.are_progress_bars_disabled(), datasets.is_caching_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    _set_bars(bars, hidden)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not disabled:
            datasets.enable_progress_bars()
        if caching:
            datasets.enable_caching()
        _set_bars(bars, False)


def _set_bars(bars: list[tuple[ModuleType, type]], hidden: bool) -> None:
    for module, bar in bars:
        module.tqdm = functools.partial(_no_bar, bar) if hidden else bar


def _no_bar(bar: type, *arguments, **named):
    return bar(*arguments, **(named | {"disable": True}))
