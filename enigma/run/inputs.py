"""Everything that a run will read, looked at before anything heavy is loaded and before anything is written.

Seconds, no model library, no network. What only loading can show is found by the stages, which tell it as clearly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import check_questions
from enigma.errors import InputError
from enigma.llm.loading import check_adapter, check_can_make, check_model
from enigma.profile import run_name
from enigma.tasks.external import check_data

# What a later stage reads of an earlier one.
TABLES = {"01_select": ("selection",), "02_train": ("training",)}


def check_inputs(profile) -> list[Principle]:
    """The principles of a profile whose principles, questions, evaluation data and model are all as they should be.

    Raises InputError for the first that is not. Data and models of a hub are not looked at.
    """
    pool = check_pool(profile.principles.pool, profile.sufficiency.contrast)
    if 2 * profile.principles.set_size > len(pool):
        raise InputError(
            f"profile {profile.name}: principles.set_size: found {profile.principles.set_size}; expected at "
            f"most half of the pool's {len(pool)} principles, for a high and a low set; lower it"
        )
    heldout = max(profile.sufficiency.heldout, profile.geometry.prompts)
    check_questions(
        profile.questions, {"select": profile.sufficiency.questions, "train": 1, "heldout": heldout}
    )
    check_data(profile.benchmarks.tasks)
    check_model(profile.model)
    check_tracker(profile.trainer.report_to)
    if profile.trainer.rollouts.startswith("vllm") and importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"trainer.rollouts: found {profile.trainer.rollouts}, for which vllm is not installed; expected it, "
            "or generate; pip install vllm"
        )
    return pool


def check_tracker(name: str) -> None:
    """InputError for a tracker of `trainer.report_to` that is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(
            f"trainer.report_to: found {name}, which is not installed; expected an installed tracker, or none; "
            f"pip install {name.replace('_', '-')}"
        )


def check_pool(name_or_path: str, contrast: str) -> list[Principle]:
    """The principles of a pool that a `sufficiency.contrast` can tell apart."""
    pool = load_pool(name_or_path)
    if contrast != "others" and (bare := [principle.name for principle in pool if not principle.antithesis]):
        raise InputError(
            f"{name_or_path}: {bare[0]!r}: found no antithesis; expected one, for sufficiency.contrast "
            f"{contrast}; add one, or set the contrast to others"
        )
    if contrast == "others" and len(pool) < 2:
        raise InputError(f"{name_or_path}: found 1 principle; expected at least 2 to tell apart; add one")
    return pool


def check_results(profile, results, skipped: Sequence[str] = ()) -> None:
    """InputError unless results can be written, and what earlier attempts left there is whole and of this profile.

    `skipped` names the stages that will not run now and must have run before.
    """
    check_can_make(results.folder, "results")
    results.check_folders()
    for stage in skipped:
        for table in TABLES.get(stage, ()):
            results.check_table(table)
    for arm, seed in profile.runs():
        adapter = results.runs / run_name(arm, seed) / "adapter"
        if adapter.is_dir() and ("02_train" in skipped or results.is_of_profile("training")):
            check_adapter(adapter, profile.trainer.lora)


def check_ranking(profile, pool_file: str, root: str) -> Path:
    """The folder for the ranking of a file's principles, root/sufficiency/<file's name>; InputError as `check_inputs`."""
    check_pool(pool_file, profile.sufficiency.contrast)
    check_questions(profile.questions, {"select": profile.sufficiency.questions})
    check_model(profile.model)
    stem = Path(pool_file).stem
    if stem in (".", ".."):
        raise InputError(
            f"{pool_file}: found the file name {stem!r}; expected one that can name a folder; rename it"
        )
    folder = Path(root) / "sufficiency" / stem
    check_can_make(folder, "--results")
    if not folder.resolve().is_relative_to(Path(root).resolve()):
        raise InputError(f"{folder}: found a link out of {root}; expected a folder; remove the link")
    return folder
