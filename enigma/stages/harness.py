"""lm-eval on a model in memory: the same items, prompts and accuracies, and what a small model's scores say beside them.

Multiple-choice tasks are plain text without a chat template, as lm-eval runs them by default and as published numbers
mostly are. Two own tasks use the template, because a format is a habit of the chat, and a principle a request in it.
Log-softmax is in float32 whatever the model's dtype: in bfloat16 the choices of one question tie. Each prompt is read
once for all of its choices. Source: our choice [D]; accuracies and standard errors are lm-eval's.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import io
import logging
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from enigma.errors import InputError
from enigma.record.cache import digest
from enigma.record.files import file_hash
from enigma.tasks import catalogue

TEMPLATED = ("enigma_format", "enigma_adherence")  # the tasks that are asked in the chat template
# Tasks that ask each item more than once, and the field that says how.
REPEATED = {"enigma_robustness": "condition", "enigma_adherence": "asked"}
ALLOW = "ENIGMA_ALLOW_CODE"  # set by --allow-code
QUIET = ("lm_eval", "datasets", "huggingface_hub", "transformers")


def definition(name: str) -> dict:
    """What names a task's items, for the recipe of a piece: hashes of its files, or its source and lm-eval's version."""
    if name in catalogue.OWN_TASKS:
        files = [p for p in catalogue.FOLDER.iterdir() if p.suffix in (".jsonl", ".yaml", ".py")]
        files += [
            catalogue.FOLDER.parent / "data" / file for file in ("pools/default.yaml", "questions.jsonl")
        ]
    elif name.endswith((".yaml", ".yml")):
        files = [
            p for p in Path(name).parent.iterdir() if p.suffix in (".jsonl", ".json", ".csv", ".yaml", ".py")
        ]
    elif (folder := catalogue.data_folder()) is not None and name in catalogue.LAYOUTS:
        files = [folder / file for file in catalogue.LAYOUTS[name].files.values()]
    else:
        return {"task": name, "hub": f"lm_eval {importlib.metadata.version('lm_eval')}"}
    hashes = {path.name: file_hash(path) for path in sorted(files)}
    return {"task": Path(name).stem if name.endswith((".yaml", ".yml")) else name, "files": digest(hashes)}


def limit_of(limit, task: str) -> int | None:
    """How many items of a task are drawn: one number for all, or one for each that is named; None for all items."""
    return limit.get(task) if isinstance(limit, dict) else limit


# ---- tasks ---------------------------------------------------------------------------------------------------------


def check_tasks(names: Sequence[str]) -> None:
    """Load every task's data. Raises InputError for an unknown task, for data that is missing, unreadable or out of reach, and
    for a choice without a right answer. No model is needed."""
    with quiet():
        load_tasks(names, seed=0)


def load_tasks(names: Sequence[str], seed: int) -> dict:
    """{name: lm-eval's Task} in the order of `names`. `seed` decides where gpqa's right answer stands."""
    catalogue.check_data(names)
    from lm_eval.tasks import TaskManager

    own = [name for name in names if name in catalogue.OWN_TASKS]
    managers = {True: TaskManager(include_path=str(catalogue.FOLDER), include_defaults=False)}
    if len(own) < len(names):
        managers[False] = TaskManager()
    found = {}
    for name in names:
        random.seed(seed)
        found[name] = _load_task(managers[name in own], name)
        _check_gold(name, found[name])
    return found


def _load_task(manager, name: str):
    folder = catalogue.data_folder()
    try:
        if name.endswith((".yaml", ".yml")):
            return _user_task(manager, name)
        if name not in manager.all_tasks:
            near = ", ".join(difflib.get_close_matches(name, [*catalogue.OWN_TASKS, *manager.all_tasks], n=3))
            raise InputError(
                f"benchmarks.tasks: found {name!r}; expected a task of lm-eval, such as {near or 'arc_easy'}"
            )
        if folder is not None and name in catalogue.LAYOUTS:
            task = _read_from(folder, name, manager.task_index[name].yaml_path)
        else:
            task = next(iter(manager.load([name])["tasks"].values()))
        _process_once(task)
        return task
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever a loader raises over a file or a network that is not as it should be
        if name in catalogue.OWN_TASKS:
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        where = f", or set ENIGMA_DATA to a folder with {name}'s files" if name in catalogue.LAYOUTS else ""
        raise InputError(
            f"benchmarks.tasks: {name}: could not be loaded ({said:.200}); expected a reachable hub and a task of multiple "
            f"choice or generated text; connect{where}"
        ) from error


def _user_task(manager, name: str):
    if os.environ.get(ALLOW) != "1" and any(
        word in Path(name).read_text() for word in ("!function", "class:")
    ):
        raise InputError(
            f"benchmarks.tasks: {name} holds code; expected plain YAML; add --allow-code to run it"
        )
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    with tempfile.TemporaryDirectory() as scratch:
        included = {"include": str(Path(name).resolve()), "task": Path(name).stem, "tag": None}
        data = load_yaml(Path(name), resolve_func=False).get("dataset_kwargs") or {}
        if isinstance(
            files := data.get("data_files"), dict
        ):  # they lie beside the task, wherever the run is started
            beside = {split: str(Path(name).resolve().parent / file) for split, file in files.items()}
            included["dataset_kwargs"] = data | {"data_files": beside}
        (Path(scratch) / Path(name).name).write_text(yaml.safe_dump(included), encoding="utf-8")
        own = TaskManager(include_path=scratch, include_defaults=False)
        return next(iter(own.load([Path(name).stem])["tasks"].values()))


def _read_from(folder: Path, name: str, shipped: Path):
    """lm-eval's own task, reading its rows from the user's folder and changed in nothing else."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    rows = {
        split: datasets.Dataset.from_list(found) for split, found in catalogue.splits(name, folder).items()
    }
    config = load_yaml(shipped, resolve_func=True)
    kept = {key: config[key] for key in config if key not in ("tag", "group", "dataset_kwargs")}
    unread = {
        key: None
        for key in ("training_split", "validation_split", "test_split")
        if config.get(key) not in rows
    }
    return ConfigurableTask(config={**kept, **unread, "custom_dataset": lambda **_: rows})


def _process_once(task) -> None:
    """Process a task's data here and now. lm-eval does it afresh at each look, and gpqa's shuffles the choices: without
    its cache, an answer would be marked by another order than the one that was asked."""
    if (process := task.config.process_docs) is not None:
        task.dataset = {split: process(rows) for split, rows in task.dataset.items()}
        task.config.process_docs = task.fewshot_cfg.process_docs = None


def _check_gold(name: str, task) -> None:
    if task.OUTPUT_TYPE != "multiple_choice" or not len(task.eval_docs):
        return
    doc = task.eval_docs[0]
    if not gold_options(task, doc):
        raise InputError(
            f"benchmarks.tasks: {name}: its first item names no right choice; expected one; correct the task"
        )


def gold_options(task, doc) -> list[int]:
    """Which choices of an item are right; empty where that is not known."""
    if task.config.task == "truthfulqa_mc2":
        return [i for i, label in enumerate(doc["mc2_targets"]["labels"]) if label == 1]
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    found = target if isinstance(target, list) else [target]
    places = [choices.index(one) if isinstance(one, str) and one in choices else one for one in found]
    return [int(one) for one in places if str(one).isdecimal() and int(one) < len(choices)]


# ---- one model on one task -----------------------------------------------------------------------------------------


def evaluate(
    model, tokenizer, name: str, *, limit: int | None, batch_size: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """(rows, items) of a causal language model on one task, scored as it is, adapters on or off.

    rows: metric, value, stderr, n of every metric of lm-eval's. items: part (how an item of `REPEATED` was asked, else
    None), item (its number), metric, value, and for a choice `chance`, the score of even guessing. Beside lm-eval's
    metrics each choice item has those of `marks`. `limit` items are drawn by `seed`, the same for every model; None takes
    all. Raises InputError as `check_tasks` does.
    """
    from lm_eval.evaluator import evaluate as harness

    with quiet():
        task = load_tasks([name], seed)[name]
        lm = _language_model()(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
        task.set_fewshot_seed(seed)
        _seed_all(seed)
        key = task.config.task
        found = harness(
            lm,
            {"tasks": {key: task}},
            samples={key: draw_rows(name, task.eval_docs, limit, seed)},
            apply_chat_template=name in TEMPLATED,
            fewshot_as_multiturn=name in TEMPLATED,
        )
        samples = found["samples"][key]
        items = list(_lm_eval_items(name, samples))
        if task.OUTPUT_TYPE == "multiple_choice" or key.startswith("truthfulqa_mc"):
            items += _marked(lm, task, name, samples)
    return _rows(found["results"][key], items), items


def _lm_eval_items(name: str, samples: list[dict]) -> Iterator[dict]:
    """One row for each sample and metric. lm-eval's filters, where there are any, become part of the metric's name."""
    for sample in samples:
        filtered = "" if sample["filter"] == "none" else f",{sample['filter']}"
        count = len(sample["arguments"])
        chance = 1 / count if count > 1 else 0.0
        for metric in sample["metrics"]:
            if metric == "mc2":
                chance = float(np.mean(sample["doc"]["mc2_targets"]["labels"]))
            row = _head(name, sample) | {"metric": metric + filtered, "value": float(sample[metric])}
            yield row | {"chance": chance}


def _head(name: str, sample: dict) -> dict:
    doc = sample["doc"]
    if name in REPEATED:
        return {"part": doc[REPEATED[name]], "item": doc["item"]}
    return {"part": None, "item": sample["doc_id"]}


def _marked(lm, task, name: str, samples: list[dict]) -> list[dict]:
    """`marks` of every sample."""
    asked = [[(pair[0], pair[1]) for pair in sample["arguments"]] for sample in samples]
    prior = _priors(lm, [continuation for pairs in asked for _, continuation in pairs])
    rows = []
    for sample, pairs in zip(samples, asked, strict=True):
        texts = [continuation for _, continuation in pairs]
        logps = np.array([found[0] for found in sample["filtered_resps"]][: len(texts)], dtype=float)
        gold = gold_options(task, sample["doc"])
        if not gold or len(gold) == len(texts) or len(logps) < 2:
            continue
        scores = marks(logps, np.array([prior[text] for text in texts]), texts, gold)
        rows += [_head(name, sample) | {"metric": metric, "value": value} for metric, value in scores.items()]
    return rows


def marks(
    logps: np.ndarray, prior: np.ndarray, texts: Sequence[str], gold: Sequence[int]
) -> dict[str, float]:
    """What the log-probabilities (nats) of an item's choices say about the right ones (docs/method.md, eq. 25 to 27).

    margin: mean over the right choices minus mean over the others of log-probability per character. margin_prior: the
    same after the choice's log-probability without the question is taken away. gold_bits_per_byte: of the right choices,
    lower is better. gold_probability: of the right choices among all, in [0, 1].
    """
    right = np.isin(np.arange(len(texts)), gold)
    characters = np.array([max(len(text.strip()), 1) for text in texts])
    size = sum(len(texts[i].encode()) for i in gold)
    share = np.exp(logps - logps.max())
    per_character, informed = logps / characters, (logps - prior) / characters
    return {
        "margin": float(per_character[right].mean() - per_character[~right].mean()),
        "margin_prior": float(informed[right].mean() - informed[~right].mean()),
        "gold_bits_per_byte": float(-logps[right].sum() / math.log(2) / size),
        "gold_probability": float(share[right].sum() / share.sum()),
    }


def _priors(lm, texts: Sequence[str]) -> dict[str, float]:
    """{text: its log-probability in nats after nothing but the token that begins a text}."""
    unique = sorted(set(texts))
    requests = [
        (("", text), [lm.prefix_token_id], lm.tok_encode(text, add_special_tokens=False)) for text in unique
    ]
    found: list = []
    for start in range(0, len(requests), 128):  # one prompt for all: no more than memory holds in one line
        found += lm._loglikelihood_tokens(requests[start : start + 128])
    return {text: logp for text, (logp, _) in zip(unique, found, strict=True)}


def _rows(scores: dict, items: list[dict]) -> list[dict]:
    """Mean, standard error over items and their number for every metric; the value of a score is lm-eval's where it has one."""
    rows = []
    for metric, frame in pd.DataFrame(items).groupby("metric", sort=False):
        values = frame.groupby("item", sort=False)["value"].mean()
        named = metric if "," in metric else f"{metric},none"
        value = scores.get(named, values.mean())
        chance = frame["chance"].mean() if "chance" in frame else float("nan")
        row = {"metric": metric, "value": float(value), "stderr": float(values.sem()), "n": len(values)}
        rows.append(row | {"chance": float(chance)})
    return rows


def draw_rows(task: str, docs, limit: int | None, seed: int) -> list[int]:
    """Row numbers of `limit` items drawn by `seed`, in ascending order; of a task in `REPEATED` whole items. None: all."""
    numbers = list(docs["item"]) if task in REPEATED else list(range(len(docs)))
    names = sorted(set(numbers))
    drawn = set(random.Random(seed).sample(names, min(len(names), limit or len(names))))
    return [row for row, number in enumerate(numbers) if number in drawn]


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
                if len(continuation) >= self.max_length:
                    raise InputError(
                        f"an item's answer has {len(continuation)} tokens; expected under {self.max_length}"
                    )
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


def _seed_all(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No chatter of lm-eval and its libraries, and no cached processing of a data set: another seed's order would come
    back. lm-eval reseeds Python and NumPy; their states are put back."""
    import datasets

    python, numpy = random.getstate(), np.random.get_state()
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    caching = datasets.is_caching_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    try:
        # lm-eval's bars go to standard error, many times a second.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if caching:
            datasets.enable_caching()
        random.setstate(python)
        np.random.set_state(numpy)
