"""lm-eval's tasks by name: this project's own, the user's, lm-eval's from the hub or from the user's folder.

What an item asks and which choice is right are lm-eval's own; only where the rows come from may differ. Source: our
choice [D].
"""

import contextlib
import functools
import importlib.metadata
import io
import logging
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from enigma.errors import InputError
from enigma.record.cache import digest
from enigma.record.files import file_hash
from enigma.tasks import catalogue

QUIET = ("lm_eval", "datasets", "huggingface_hub", "transformers")


def definition(name: str) -> dict:
    """What names a task's items, for the recipe of a piece: hashes of its files, or its source and lm-eval's version."""
    if name in catalogue.OWN_TASKS:
        files = [catalogue.FOLDER / file for file in (f"{name}.yaml", *catalogue.DATA[name])]
    elif name.endswith((".yaml", ".yml")):
        files = _files_of(Path(name))
    elif (folder := catalogue.data_folder()) is not None and name in catalogue.LAYOUTS:
        files = [folder / file for file in catalogue.LAYOUTS[name].files.values()]
    else:
        return {"task": name, "hub": f"lm_eval {importlib.metadata.version('lm_eval')}"}
    hashes = {path.name: file_hash(path) for path in sorted(files)}
    return {"task": Path(name).stem if name.endswith((".yaml", ".yml")) else name, "files": digest(hashes)}


def _files_of(task: Path) -> set[Path]:
    """A user's task file, what it includes, the data that it names, and where it calls code, all code and data beside it."""
    if not task.is_file():  # said where the task is loaded, as is a file that cannot be read
        return set()
    text = task.read_text(encoding="utf-8", errors="replace")
    try:
        said = _Unread(text).get_single_data()
    except yaml.YAMLError:
        said = None
    said = said if isinstance(said, dict) else {}
    data = (said.get("dataset_kwargs") or {}).get("data_files")
    named = [data.values() if isinstance(data, dict) else data, said.get("dataset_path")]
    found = {task, *(path for name in _texts(named) for path in _all_files(task.parent / name))}
    if "!function" in text:
        found |= {path for path in task.parent.iterdir() if path.suffix not in (".yaml", ".yml")}
    for name in _texts(said.get("include")):
        found |= _files_of(task.parent / name)
    return {path for path in found if path.is_file()}


def _texts(value) -> Iterator[str]:
    """The texts of lists in lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for one in value:
            yield from _texts(one)


def _all_files(path: Path) -> Iterable[Path]:
    return path.rglob("*") if path.is_dir() else [path]


class _Unread(yaml.SafeLoader):
    """Tags, such as lm-eval's `!function`, are not followed."""


_Unread.add_multi_constructor("!", lambda *_: None)


def check_tasks(names: Sequence[str]) -> None:
    """Load every task's data. Raises InputError for an unknown task, for data that is missing, unreadable or out of reach, and
    for a choice without a right answer. No model is needed."""
    with quiet():
        load_tasks(names, seed=0)


def load_tasks(names: Sequence[str], seed: int) -> dict:
    """{name: lm-eval's Task} in the order of `names`. `seed` decides where gpqa's right answer stands."""
    catalogue.check_data(names)
    found = {}
    for name in names:
        random.seed(seed)
        found[name] = _load_task(_manager(name in catalogue.OWN_TASKS), name)
        _check_gold(name, found[name])
    return found


@functools.cache
def _manager(own: bool):
    """lm-eval's index of tasks: this project's own, or its 14,000, which take ten seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(catalogue.FOLDER), include_defaults=False) if own else TaskManager()


def _load_task(manager, name: str):
    folder = catalogue.data_folder()
    try:
        if name.endswith((".yaml", ".yml")):
            return _user_task(manager, name)
        if folder is not None and name in catalogue.LAYOUTS:
            task = _read_from(folder, name, manager.task_index[name].yaml_path)
        else:
            task = manager.load([name])["tasks"][name]
        _process_once(task)
        return task
    except InputError:
        raise
    except Exception as error:  # whatever a loader raises over a bad file or a network
        if name in catalogue.OWN_TASKS:
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        where = f", or set ENIGMA_DATA to a folder with {name}'s files" if name in catalogue.LAYOUTS else ""
        raise InputError(
            f"benchmarks.tasks: {name}: could not be loaded ({said:.200}); expected a reachable hub and a task of multiple "
            f"choice or generated text; connect{where}"
        ) from error


def _user_task(manager, name: str):
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    with tempfile.TemporaryDirectory() as scratch:
        included = {"include": str(Path(name).resolve()), "task": Path(name).stem, "tag": None}
        data = load_yaml(Path(name), resolve_func=False).get("dataset_kwargs") or {}
        # They lie beside the task, wherever the run is started.
        if isinstance(files := data.get("data_files"), dict):
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
