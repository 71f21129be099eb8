"""Which tasks there are, and the user's folder of data for those that are lm-eval's own.

Nothing heavy is imported: the files are checked, row by row, before any library loads them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enigma.errors import InputError

OWN_TASKS = (
    "enigma_reasoning",
    "enigma_truthfulness",
    "enigma_format",
    "enigma_robustness",
    "enigma_adherence",
)


@dataclass(frozen=True)
class External:
    """A task of lm-eval's own: its YAML, its data in the user's folder, split by split, and the data's licence."""

    yaml: str
    files: dict[str, str]
    columns: tuple[str, ...]
    licence: str


_TRUTHFULQA = {"validation": "truthfulqa/multiple_choice.jsonl"}
_LAYOUT = ("question", "mc1_targets", "mc2_targets")
_GPQA = (
    {"train": "gpqa/gpqa_main.csv"},
    ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    "CC-BY-4.0",
)
EXTERNAL = {
    "truthfulqa_mc1": External("truthfulqa/truthfulqa_mc1.yaml", _TRUTHFULQA, _LAYOUT, "Apache-2.0"),
    "truthfulqa_mc2": External("truthfulqa/truthfulqa_mc2.yaml", _TRUTHFULQA, _LAYOUT, "Apache-2.0"),
    "gsm8k": External(
        "gsm8k/gsm8k.yaml",
        {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
        ("question", "answer"),
        "MIT",
    ),
    # Multiple choice; and generated text with the answer extracted, from a worked-out thought or without one.
    "gpqa_main_zeroshot": External("gpqa/zeroshot/gpqa_main_zeroshot.yaml", *_GPQA),
    "gpqa_main_generative_n_shot": External("gpqa/generative/gpqa_main_generative_n_shot.yaml", *_GPQA),
    "gpqa_main_cot_zeroshot": External("gpqa/cot_zeroshot/gpqa_main_cot_zeroshot.yaml", *_GPQA),
}


def check_names(names: Sequence[str]) -> None:
    """InputError for a task that is not known."""
    known = [*OWN_TASKS, *EXTERNAL]
    for name in names:
        if name not in known:
            raise InputError(
                f"benchmarks.tasks: found {name!r}; expected one of {', '.join(known)}; correct the name"
            )


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
    """InputError for a task that is not known, or for data in the user's folder that is missing or not as it should be.

    Data that come from the hub are not looked at.
    """
    check_names(names)
    folder = data_folder()
    for name in names:
        if folder is not None and name in EXTERNAL:
            for file in EXTERNAL[name].files.values():
                check_file(folder / file, name)


def check_file(path: Path, task: str) -> None:
    """InputError, naming file and line, unless `path` is there and every row has the task's columns, filled."""
    columns = EXTERNAL[task].columns
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
    """Whether a cell holds what its column is for: text, or for `*_targets` as many labels as choices."""
    if not column.endswith("_targets"):
        return isinstance(value, str) and bool(value.strip())
    if not isinstance(value, dict):
        return False
    choices, labels = value.get("choices"), value.get("labels")
    return isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels) > 0
