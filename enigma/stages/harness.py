"""lm-eval on a model in memory: the same items, prompts and accuracies, and what a small model's scores say beside them.

Multiple-choice tasks are plain text without a chat template, as lm-eval runs them by default and as published numbers
mostly are. Two own tasks use the template, because a format is a habit of the chat, and a principle a request in it.
Log-softmax is in float32 whatever the model's dtype: in bfloat16 the choices of one question tie. Each prompt is read
once for all of its choices. Source: our choice [D]; accuracies and standard errors are lm-eval's.
"""

import functools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from enigma.errors import InputError
from enigma.method.marks import marks
from enigma.tasks.lookup import gold_options, load_tasks, quiet

TEMPLATED = ("enigma_format", "enigma_adherence")  # the tasks that are asked in the chat template
# Tasks that ask each item more than once, and the field that says how.
REPEATED = {"enigma_robustness": "condition", "enigma_adherence": "asked"}


def limit_of(limit, task: str) -> int | None:
    """How many items of a task are drawn: one number for all, or one for each that is named; None for all items."""
    return limit.get(task) if isinstance(limit, dict) else limit


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
    from transformers import set_seed

    with quiet():
        task = load_tasks([name], seed)[name]
        options = {"backend": "causal", "batch_size": batch_size, "softmax_dtype": "float32"}
        lm = language_model()(pretrained=model, tokenizer=tokenizer, **options)
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
        task.set_fewshot_seed(seed)
        set_seed(seed)
        key = task.config.task
        rows = {key: draw_rows(name, task.eval_docs, limit, seed)}
        chat = dict.fromkeys(("apply_chat_template", "fewshot_as_multiturn"), name in TEMPLATED)
        found = harness(lm, {"tasks": {key: task}}, samples=rows, **chat)
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
def language_model() -> type:
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
            said = [torch.tensor(continuation, device=self.device) for _, _, continuation in requests]
            found: dict[int, float] = {}
            for start in range(0, len(ordered), self.batch_size_per_gpu):
                batch = ordered[start : start + self.batch_size_per_gpu]
                asked = [torch.tensor(prompt, device=self.device) for prompt in batch]
                groups = [prompts[prompt] for prompt in batch]
                logps = completion_logprobs(self.model, asked, said, groups).logps.sum(-1)
                for row, group in enumerate(groups):
                    found |= {place: logps[row, slot].item() for slot, place in enumerate(group)}
            return [(found[place], False) for place in range(len(requests))]

    return LanguageModel
