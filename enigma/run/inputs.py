"""Everything that a run will read, looked at before anything heavy is loaded and before anything is written.

Seconds, no model library, no network. What only loading can show is found by the stages, which report it as clearly.
"""

import importlib.util

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import check_questions
from enigma.errors import InputError
from enigma.llm.check import check_model
from enigma.profile import Profile
from enigma.stages.select import wordings
from enigma.tasks.catalogue import check_data


def check_inputs(profile: Profile) -> list[Principle]:
    """The principles of a profile whose principles, questions, evaluation data and model are all as they should be.

    Raises InputError for the first that is not. Data and models of a hub are not looked at.
    """
    pool = check_pool(profile.principles.pool)
    if 2 * profile.principles.set_size > len(pool):
        raise InputError(
            f"profile {profile.name}: principles.set_size: found {profile.principles.set_size}; expected at most half of the "
            f"pool's {len(pool)} principles, for a high and a low set; lower it"
        )
    if profile.sufficiency.echo:
        wordings(pool)
    heldout = max(profile.sufficiency.heldout, profile.geometry.prompts)
    check_questions(
        profile.questions, {"select": profile.sufficiency.questions, "train": 1, "heldout": heldout}
    )
    check_data(profile.benchmarks.tasks)
    check_model(profile.model, tuple(profile.trainer.lora.target_modules))
    for needed, where in (
        (profile.trainer.report_to, "trainer.report_to"),
        ("vllm" if profile.trainer.rollouts.startswith("vllm") else "none", "trainer.rollouts"),
    ):
        if needed != "none" and importlib.util.find_spec(needed) is None:
            raise InputError(
                f"{where}: found {needed}, which is not installed; expected it, or another value; install it"
            )
    for arm in profile.arms.values():
        if arm.reward != "format":  # only for such arms the libraries are imported
            from enigma.llm import rewards

            rewards.check(arm.reward, profile.path.parent)
    return pool


def check_pool(name_or_path: str) -> list[Principle]:
    """The principles of a pool of at least two. Raises InputError."""
    pool = load_pool(name_or_path)
    if len(pool) < 2:
        raise InputError(f"{name_or_path}: found 1 principle; expected at least 2 to tell apart; add one")
    return pool
