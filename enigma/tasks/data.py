"""What the task files of this folder refer to: their items and their marks. lm-eval loads this file by its path."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
from lm_eval.api.task import ConfigurableTask

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm.prompts import messages
from enigma.method.rewards import graded_format, strict_format
from enigma.tasks.robustness import documents

FORMAT_QUESTIONS = 32


def knowledge(**_) -> dict[str, datasets.Dataset]:
    """Easy facts, written by scripts/items.py."""
    return {"test": datasets.Dataset.from_list(read("knowledge"))}


def reasoning(**_) -> dict[str, datasets.Dataset]:
    """Easy inferences, written by scripts/items.py."""
    return {"test": datasets.Dataset.from_list(read("reasoning"))}


def truthfulness(**_) -> dict[str, datasets.Dataset]:
    """A true sentence among three false ones, written by scripts/items.py."""
    return {"test": datasets.Dataset.from_list(read("truthfulness"))}


def robustness(**_) -> dict[str, datasets.Dataset]:
    """Items of knowledge and reasoning under every condition."""
    return {"test": datasets.Dataset.from_list(documents())}


def read(name: str) -> list[dict]:
    """The rows of <name>.jsonl beside this file."""
    lines = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def adherence(**_) -> dict[str, datasets.Dataset]:
    """Each pair of responses twice: under a principle of the default pool, and under its antithesis."""
    pool = {principle.name: principle for principle in load_pool("default")}
    rows = []
    for number, pair in enumerate(read("adherence")):
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
