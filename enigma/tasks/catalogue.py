"""Which tasks there are: this project's own, lm-eval's by their names, a user's YAML file; and the user's folder of data.

Data of the tasks in `LAYOUTS` are read from the folder that ENIGMA_DATA names, when it is set, instead of the hub. Every
row is checked before any library loads it, and read by this module, so that nothing is cached and no name is a pattern.
Source: our choice [D].
"""

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from enigma.errors import InputError, check_code_allowed

FOLDER = Path(__file__).parent
# This project's own tasks, and the files with what they ask.
DATA = {
    "enigma_knowledge": ("knowledge.jsonl",),
    "enigma_reasoning": ("reasoning.jsonl",),
    "enigma_truthfulness": ("truthfulness.jsonl",),
    "enigma_format": ("../data/questions.jsonl",),
    "enigma_robustness": ("knowledge.jsonl", "reasoning.jsonl"),
    "enigma_adherence": ("adherence.jsonl", "../data/pools/default.yaml"),
}
OWN_TASKS = tuple(DATA)
OURS = "Apache-2.0"


class Layout(NamedTuple):
    """A task's files in the user's folder, split by split; what each row must have; how a row becomes the hub's; licence."""

    files: dict[str, str]
    columns: tuple[str, ...]
    licence: str
    convert: Callable[[dict], dict] = dict


def _hellaswag(row: dict) -> dict:
    """The hub's two parts of the context, where a copy has it in one: the last sentence is the second part."""
    if "ctx_a" in row:
        return row
    first, dot, last = row["ctx"].rpartition(". ")
    whole = not dot or row["ctx"].rstrip().endswith((".", "!", "?"))
    return row | ({"ctx_a": row["ctx"], "ctx_b": ""} if whole else {"ctx_a": f"{first}.", "ctx_b": last})


_ARC = ("question", "choices", "answerKey")
_TRUTHFULQA = Layout(
    {"validation": "truthfulqa/multiple_choice.jsonl"},
    ("question", "mc1_targets", "mc2_targets"),
    "Apache-2.0",
)
_GPQA = Layout(
    {"train": "gpqa/gpqa_main.csv"},
    ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    "CC-BY-4.0",
)
LAYOUTS = {
    "arc_easy": Layout({"test": "arc/ARC-Easy-test.jsonl"}, _ARC, "CC-BY-SA-4.0"),
    "arc_challenge": Layout({"test": "arc/ARC-Challenge-test.jsonl"}, _ARC, "CC-BY-SA-4.0"),
    "piqa": Layout({"validation": "piqa/validation.jsonl"}, ("goal", "sol1", "sol2", "label"), "AFL-3.0"),
    "hellaswag": Layout(
        {"validation": "hellaswag/validation_3000.jsonl"},
        ("activity_label", "ctx", "endings", "label"),
        "MIT",
        _hellaswag,
    ),
    "truthfulqa_mc1": _TRUTHFULQA,
    "truthfulqa_mc2": _TRUTHFULQA,
    "gsm8k": Layout(
        {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"}, ("question", "answer"), "MIT"
    ),
    # Multiple choice; and generated text with the answer extracted, from a worked-out thought or without one.
    "gpqa_main_zeroshot": _GPQA,
    "gpqa_main_generative_n_shot": _GPQA,
    "gpqa_main_cot_zeroshot": _GPQA,
}


def licence(task: str) -> str:
    """The licence of a task's data."""
    if task in OWN_TASKS:
        return OURS
    return LAYOUTS[task].licence if task in LAYOUTS else "not recorded; see its page on the hub"


def data_folder() -> Path | None:
    """The folder that ENIGMA_DATA names. InputError where it is none."""
    named = os.environ.get("ENIGMA_DATA", "")
    if not named:
        return None
    folder = Path(os.path.expanduser(named))
    if not folder.is_dir():
        raise InputError(f"ENIGMA_DATA: found {named!a:.200}; expected a folder; correct or unset it")
    return folder


def check_data(names: Sequence[str]) -> None:
    """InputError for a task file that is missing, or for data in the user's folder that is missing or not as it should be.

    Data that come from the hub are not looked at. A name that this project does not know is looked up in lm-eval's index.
    """
    folder = data_folder()
    stems = [Path(name).stem if _is_file(name) else name for name in names]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(
            f"benchmarks.tasks: found {twice[0]} twice; expected tasks and files of different names; rename a file"
        )
    _check_names([name for name in names if name not in (*OWN_TASKS, *LAYOUTS) and not _is_file(name)])
    for name in names:
        # A folder of results gets this name, with the arm's and the seed's.
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", Path(name).stem if _is_file(name) else name):
            raise InputError(
                f"benchmarks.tasks: found {name!a:.200}; expected a name of at most 100 letters, digits, _ . and -; rename it"
            )
        if _is_file(name) and not Path(name).is_file():
            raise InputError(
                f"benchmarks.tasks: {name}: no such file; expected an lm-eval task; correct the path"
            )
        if _is_file(name):  # its tags, its templates and what it includes can all reach Python
            check_code_allowed(f"benchmarks.tasks: {name}")
        if folder is not None and name in LAYOUTS:
            for file in LAYOUTS[name].files.values():
                for _ in read_rows(folder / file, name):
                    pass


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _check_names(names: list[str]) -> None:
    """InputError for a name that lm-eval does not know. Its index of 14,000 names takes seconds to read."""
    if not names:
        return
    from lm_eval.tasks import TaskManager

    index = TaskManager()
    known = index.all_subtasks
    for name in names:
        if name in index.all_tasks and name not in known:
            raise InputError(
                f"benchmarks.tasks: found {name}, a group of lm-eval's; expected single tasks; name those of it"
            )
        if name not in known:
            close = difflib.get_close_matches(name, [*OWN_TASKS, *known], n=1)
            hint = f"did you mean {close[0]}?" if close else "correct the name"
            raise InputError(
                f"benchmarks.tasks: found {name!r}; expected a task of this project ({', '.join(OWN_TASKS)}), of lm-eval, or "
                f"a YAML file; {hint}"
            )


def splits(name: str, folder: Path) -> dict[str, list[dict]]:
    """{split: rows} of a task's data in the user's folder, as the hub would give them. Raises InputError."""
    layout = LAYOUTS[name]
    return {
        split: [layout.convert(row) for row in read_rows(folder / file, name)]
        for split, file in layout.files.items()
    }


def read_rows(path: Path, task: str) -> Iterator[dict]:
    """The rows of a file. InputError, naming file and line, unless every row has the task's columns, filled."""
    columns = LAYOUTS[task].columns
    wanted = f"expected {'CSV' if path.suffix == '.csv' else 'JSON lines'} with {', '.join(columns)}"
    if not path.is_file():
        raise InputError(
            f"{path}: found no such file; {wanted}, for the task {task}; add it, or unset ENIGMA_DATA"
        )
    try:
        number = 0
        for number, row in _rows(path):
            if missing := [column for column in columns if not _filled(column, row.get(column))]:
                raise ValueError(f"line {number}: found no {', '.join(missing)}")
            yield row
        if number == 0:
            raise ValueError("found no rows")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: {' '.join(str(error).split()):.200}; {wanted}; mend the file") from None


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV or JSON-lines file. Raises ValueError or csv.Error for what is neither."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: broken JSON ({error})") from None
            yield number, row if isinstance(row, dict) else {}


def _filled(column: str, value) -> bool:
    """Whether a cell holds what its column is for: a label, a list of options, `*_targets`, or text."""
    if column == "label":
        return isinstance(value, int | str) and str(value).isdecimal()
    if column == "endings":
        return isinstance(value, list) and len(value) > 1
    if column == "choices":
        return isinstance(value, dict) and len(value.get("text") or ()) == len(value.get("label") or ()) > 1
    if not column.endswith("_targets"):
        return isinstance(value, str) and bool(value.strip())
    if not isinstance(value, dict):
        return False
    choices, labels = value.get("choices"), value.get("labels")
    return isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels) > 0
