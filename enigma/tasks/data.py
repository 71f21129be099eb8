"""What the task files of this folder refer to: their items and their marks. lm-eval loads this file by its path."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm.prompts import messages
from enigma.method.rewards import graded_format, strict_format
from enigma.tasks.generate import FOLDER, read

FORMAT_QUESTIONS = 32


def truthfulness(**_) -> dict[str, datasets.Dataset]:
    """The misconceptions, in TruthfulQA's multiple-choice layout."""
    return {"test": datasets.Dataset.from_list(read(FOLDER / "truthfulness.jsonl"))}


def reasoning(**_) -> dict[str, datasets.Dataset]:
    """The items that `generate.reasoning` wrote."""
    return {"test": datasets.Dataset.from_list(read(FOLDER / "reasoning.jsonl"))}


def robustness(**_) -> dict[str, datasets.Dataset]:
    """The items under every condition that `generate.robustness` wrote."""
    return {"test": datasets.Dataset.from_list(read(FOLDER / "robustness.jsonl"))}


def adherence(**_) -> dict[str, datasets.Dataset]:
    """Each pair of responses twice: under a principle of the default pool, and under its antithesis."""
    pool = {principle.name: principle for principle in load_pool("default")}
    rows = []
    for number, pair in enumerate(read(FOLDER / "adherence.jsonl")):
        principle = pool[pair["principle"]]
        asked = [(principle.name, principle.text), (f"not {principle.name}", principle.antithesis)]
        choices = [
            f"<reasoning>{thought}</reasoning>\n<answer>{answer}</answer>"
            for thought, answer in (pair["follows"], pair["breaks"])
        ]
        rows += [
            {
                "item": number,
                "asked": name,
                "principle": text,
                "question": pair["question"],
                "choices": choices,
                "gold": gold,
            }
            for gold, (name, text) in enumerate(asked)
        ]
    return {"test": datasets.Dataset.from_list(rows)}


def heldout_questions(**_) -> dict[str, datasets.Dataset]:
    """The same built-in questions for every profile; none of them is ever trained on."""
    built_in = SimpleNamespace(source="builtin")
    questions = load_questions(built_in, "heldout", FORMAT_QUESTIONS, seed=0)
    return {"test": datasets.Dataset.from_list([{"question": question} for question in questions])}


def mc1_and_mc2(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """TruthfulQA's two marks from the log-probabilities (nats) of mc2's choices.

    mc1: 1.0 where the likeliest of mc1's choices is the right one, else 0.0. mc2: probability of the right choices
    over the probability of all, in [0, 1]. Both by the rules of lm-eval's truthfulqa_mc1 and truthfulqa_mc2.
    """
    choices = doc["mc2_targets"]["choices"]
    logps = np.array([logp for logp, _ in results])
    single = [logps[choices.index(choice)] for choice in doc["mc1_targets"]["choices"]]
    share = np.exp(logps - logps.max())
    right = np.array(doc["mc2_targets"]["labels"]) == 1
    mc1 = float(doc["mc1_targets"]["labels"][int(np.argmax(single))])
    return {"mc1": mc1, "mc2": float(share[right].sum() / share.sum())}


def format_marks(doc: dict, results: list[str]) -> dict[str, float]:
    """The format reward of the text, graded and strict."""
    return {"graded_format": graded_format(results[0]), "strict_format": float(strict_format(results[0]))}


class ChatTask(ConfigurableTask):
    """A task whose prompt is the chat of `enigma.llm.prompts`, as in training: under the document's principle, if it has one."""

    def __init__(self, config: dict):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, doc: dict, num_fewshot: int, *, chat_template=None, **_) -> str:
        if chat_template is None:
            raise InputError(
                f"{self.config.task}: found no chat template, expected one; run lm-eval with --apply_chat_template"
            )
        return chat_template(messages(doc["question"], doc.get("principle")))
