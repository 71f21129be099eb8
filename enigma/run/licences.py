"""Under which licences the code, the model, the data and the packages of a run are used.

Written into the run record. What a user brings himself is said to be his; nothing is guessed.
"""

import importlib.metadata
from collections.abc import Sequence

from enigma.tasks import catalogue

OURS = "Apache-2.0"
EMBEDDED = "SmolLM2-135M-Instruct, Apache-2.0"
ENCODER = "all-MiniLM-L6-v2, Apache-2.0"
# Of the hub's models and data sets, those that the built-in profiles name.
HUB = {"google/gemma-3-1b-it": "Gemma Terms of Use", "kaist-ai/CoT-Collection": "CC-BY-4.0"}
UNKNOWN = "not recorded; see its page on the hub"
USERS = "the user's own"


def licences(profile, packages: Sequence[str]) -> dict:
    """{"code", "model", "encoder" where an arm's reward needs one, "questions", "principles", "tasks": {name: licence}, "packages": {name: licence}}."""
    model, questions = profile.model, profile.questions
    encoder = {"encoder": ENCODER} if any("semantic" in arm.reward for arm in profile.arms.values()) else {}
    of_model = {
        "embedded": EMBEDDED,
        "random": f"none (random weights); tokenizer: {EMBEDDED}",
        "local": USERS,
    }
    of_questions = {"builtin": OURS, "jsonl": USERS}
    return {
        "code": OURS,
        "model": of_model.get(model.source) or f"{model.id}, {HUB.get(model.id, UNKNOWN)}",
        **encoder,
        "questions": of_questions.get(questions.source)
        or f"{questions.dataset}, {HUB.get(questions.dataset, UNKNOWN)}",
        "principles": OURS if profile.principles.pool == "default" else USERS,
        "tasks": {name: catalogue.licence(name) for name in profile.benchmarks.tasks},
        "packages": {name: licence for name in packages if (licence := package_licence(name))},
    }


def package_licence(name: str) -> str | None:
    """The licence in an installed package's metadata, in one line; None where it is not installed."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    stated = metadata.get("License-Expression")
    classified = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    plain = (metadata.get("License") or "").strip().splitlines()
    return stated or "; ".join(classified) or (plain[0] if plain else "not stated")
