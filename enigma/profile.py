"""A profile: one YAML text that names a whole experiment, validated before anything heavy is loaded.

Nothing here imports a model library. `load_profile` either returns a `Profile` in which every key, type and
combination has been checked, or raises `InputError` with one line: file, key, value found, expectation.
What the keys mean is said beside them in `profiles/cpu.yaml`.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from enigma.combinations import problems
from enigma.errors import InputError
from enigma.explain import first_error, shown
from enigma.plainyaml import read_yaml
from enigma.record.cache import digest

BUILTIN = Path(__file__).parent / "profiles"
MAX_BYTES = 100_000
BASE = "base"  # the untrained model's row in every table

Count = Annotated[int, Field(ge=1, lt=2**31)]
Size = Annotated[int, Field(ge=1, le=10_000)]  # of what is in memory at once; more is a slip of the keyboard
Layer = Annotated[int, Field(ge=-1000, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
FolderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
# A name that lm-eval knows, or the path of a YAML file.
TaskName = Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|[^\x00-\x1f]{1,1000}\.ya?ml)$")]


class Section(BaseModel):
    """Strict types, no unknown key, no change after loading."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RandomModel(Section):
    """Shape of a randomly initialised Llama; the vocabulary is the embedded tokenizer's."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count


class Model(Section):
    source: Literal["embedded", "random", "hub", "local"]
    dtype: Literal["float32", "bfloat16"]
    id: Text | None = None
    revision: Revision | None = None
    config: RandomModel | None = None


class Prompts(Section):
    placement: Literal["system", "question", "restated"]
    demonstration: bool


class Questions(Section):
    source: Literal["builtin", "jsonl", "hub"]
    path: Text | None = None
    dataset: Text | None = None
    revision: Revision | None = None
    column: Text | None = None
    split: Text | None = None
    rows: Count | None = None
    max_characters: Count | None = None


class Principles(Section):
    pool: Text
    set_size: Annotated[int, Field(ge=2, lt=2**31)]
    # A set has no more principles of one family than it must.
    balanced: bool = False


class Sufficiency(Section):
    questions: Annotated[int, Field(ge=2, lt=2**31)]
    samples: Size
    max_tokens: Count
    heldout: Annotated[int, Field(ge=2, lt=2**31)]
    batch_size: Size
    # The completions of so many of the questions are also scored under paraphrases, so that SI is known without echo.
    echo: Annotated[int, Field(ge=0)] = 0
    resamples: Annotated[int, Field(ge=10, le=1_000_000)]


def _set_name(value) -> str:
    """The set's name; a quantile's is its text, which is taken as well as the number, so that a profile can be written."""
    if value in ("high", "low"):
        return value
    number = isinstance(value, float) or (isinstance(value, str) and re.fullmatch(r"0\.\d{1,17}", value))
    if number and 0 < float(value) < 1:
        return str(float(value))
    raise PydanticCustomError(
        "set", "'high' or 'low', or a number between 0 and 1, a quantile of SI over all sets"
    )


class Steering(Section):
    """Questions are drawn by how much the reference, a finished run of the same seed, does better (enigma/llm/steering.py)."""

    reference: ArmName
    tau: Positive
    shuffled: bool = False  # a control: the same weights over other questions


class Merge(Section):
    """The arm is not trained but merged from finished runs of the same seed (enigma/llm/merging.py)."""

    arms: Annotated[list[ArmName], Field(min_length=2)]
    steps: Annotated[int, Field(ge=0, le=100)]  # of the weights' descent; 0: equal weights


class Preference(Section):
    """The arm is trained by DPO on pairs that are drawn before training (enigma/llm/preference.py)."""

    beta: Positive


class Arm(Section):
    # The set that it is trained on: "high", "low", or a quantile of SI over all sets of the pool, such as "0.5".
    set: Annotated[str, BeforeValidator(_set_name)]
    lambda_sami: NotNegative
    lambda_ot: NotNegative
    # Null: as in the section `trainer`.
    ot_budget: NotNegative | None = None
    beta: NotNegative | None = None
    # What is rewarded beside the format: nothing ("format"), or a registered reward (enigma/llm/rewards.py), with weight 1.
    reward: Text = "format"
    # Null: as in the sections `trainer` and `seeds`. Fewer steps stop an arm early, for comparisons at equal drift.
    max_steps: Count | None = None
    learning_rate: Positive | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    # Neighbours of the method (docs/neighbours.md). A default is no part of what a run is known by.
    optimizer: Literal["adamw", "scion", "muon"] = "adamw"
    drift: Literal["sinkhorn", "l2"] = "sinkhorn"
    steering: Steering | None = None
    merge: Merge | None = None
    preference: Preference | None = None
    # The arm that it is compared with in table `neighbours`.
    control: ArmName | None = None

    def needs(self) -> list[str]:
        """Arms whose finished runs of the same seed this one is made from."""
        return [self.steering.reference] if self.steering else list(self.merge.arms) if self.merge else []


class Lora(Section):
    r: Size
    alpha: Positive
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    target_modules: Annotated[list[Text], Field(min_length=1)]


class Trainer(Section):
    max_steps: Count
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    num_generations: Annotated[int, Field(ge=2, lt=2**31)]
    num_principles: Count
    max_completion_length: Count
    learning_rate: Positive
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    beta: NotNegative
    sami_temperature: Positive
    sami_span: Literal["completion", "reasoning"]
    ot_layers: Annotated[list[Layer], Field(min_length=1)]
    ot_epsilon: Positive
    ot_budget: NotNegative
    ot_points: Annotated[int, Field(ge=2, le=10_000)]
    legibility_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml"] = "none"
    save_steps: Count
    # What is only logged (the reference's view where no term needs it) is measured every so many steps.
    reference_steps: Count = 1
    # How completions are drawn, as TRL offers it; vllm has to be installed, and a server to be running.
    rollouts: Literal["generate", "vllm_colocate", "vllm_server"] = "generate"
    gradient_checkpointing: bool = False
    zero_spread: Literal["error", "report"]
    lora: Lora

    @property
    def completions(self) -> int:
        """Of one optimiser step, over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class Benchmarks(Section):
    tasks: Annotated[list[TaskName], Field(min_length=1)]
    limit: Count | dict[TaskName, Count] | None
    batch_size: Size


class Geometry(Section):
    prompts: Annotated[int, Field(ge=2, lt=2**31)]
    max_tokens: Count
    subspace: Count
    permutations: Annotated[int, Field(ge=19, le=1_000_000)]  # fewer could never give p <= 0.05
    batch_size: Size
    # Also modularity, compactness and explicitness of what a principle in the prompt does.
    infomec: bool = False


class Seeds(Section):
    data: Seed
    initialisation: Seed
    sampling: Seed
    bootstrap: Seed
    evaluation: Seed
    runs: Annotated[list[Seed], Field(min_length=1)]


class Profile(Section):
    """One experiment. Made by `load_profile`; `text` is the YAML it was made from, `hash` names that text."""

    name: FolderName
    description: Text
    model: Model
    prompts: Prompts
    questions: Questions
    principles: Principles
    sufficiency: Sufficiency
    arms: Annotated[dict[ArmName, Arm], Field(min_length=1)]
    trainer: Trainer
    benchmarks: Benchmarks
    geometry: Geometry
    seeds: Seeds
    _text: str = PrivateAttr(default="")
    _hash: str = PrivateAttr(default="")
    _path: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _possible(self) -> Profile:
        for problem in problems(self):
            raise PydanticCustomError("impossible", "{expected}", problem._asdict())
        return self

    @property
    def text(self) -> str:
        return self._text

    @property
    def hash(self) -> str:
        """16 hexadecimal characters of the content: comments, order and the file's place do not count."""
        return self._hash

    @property
    def path(self) -> Path | None:
        """The file it was loaded from, for other processes to load it again. A user's own code may lie beside it."""
        return self._path

    def paths(self) -> list[str]:
        """Files and folders of the user's own that it names."""
        named = [(getattr(getattr(self, section), key), section, *rest) for section, key, *rest in _PATHS]
        return [
            value
            for value, section, none, source, *_ in named
            if value not in (None, none) and source in (None, getattr(getattr(self, section), "source", None))
        ]

    def outside(self) -> list[str]:
        """Paths of this machine in the profile's text, comments included: nobody else has them."""
        return re.findall(r"(?<![\w.])(?:/|~)[\w.-]*/[\w./-]*", self._text)

    def sets(self) -> list[str]:
        """The names of the sets that stage 1 chooses: the high-SI, the low-SI, and whatever else an arm is trained on."""
        return list(dict.fromkeys(["high", "low", *(arm.set for arm in self.arms.values())]))

    def runs(self) -> list[tuple[str, int]]:
        """Every (arm, seed), arms in the profile's order."""
        return [(name, seed) for name, arm in self.arms.items() for seed in arm.seeds or self.seeds.runs]


def run_name(arm: str, seed: int) -> str:
    return f"{arm}-s{seed}"


# ---- reading -------------------------------------------------------------------------------------------------------


def builtin_names() -> list[str]:
    return sorted(path.stem for path in BUILTIN.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read and check a profile.

    `name_or_path` is the name of a profile in `enigma/profiles` or a path (with a slash, or ending in .yaml or .yml).
    Relative paths inside the profile are taken from the folder of its file. Raises `InputError` on the first thing
    that is wrong.
    """
    path = _locate(name_or_path)
    text, data = read_yaml(path, MAX_BYTES, "a profile")
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: found {shown(data)}; expected a mapping of sections (name, model, arms, ...); "
            "begin with a copy of enigma/profiles/cpu.yaml"
        )
    written = copy.deepcopy(data)
    _anchor_paths(data, path.resolve().parent)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {first_error(error, Profile)}") from None
    profile._text, profile._hash, profile._path = text, digest(written), path.resolve()
    _check_files(path, profile)
    return profile


def _locate(name_or_path: str | Path) -> Path:
    given = str(name_or_path)
    path = Path(given)
    if isinstance(name_or_path, str) and path.suffix not in (".yaml", ".yml") and path.name == given:
        if given not in builtin_names():
            raise InputError(
                f"profile {given!r}: not found; expected one of {', '.join(builtin_names())}; "
                "correct the name, or give a path that ends in .yaml"
            )
        return BUILTIN / f"{given}.yaml"
    if not os.path.isfile(path):
        raise InputError(
            f"{given!a:.200}: no such file; expected a profile, for example a changed copy of "
            "enigma/profiles/cpu.yaml; correct the path"
        )
    return path


# A path's section and key, the value that is none, the source that has one, and what it must be.
_PATHS = (
    ("principles", "pool", "default", None, os.path.isfile, "a YAML file"),
    ("questions", "path", None, "jsonl", os.path.isfile, "a JSONL file"),
    ("model", "id", None, "local", os.path.isdir, "a folder with a model"),
)


def _anchor_paths(data: dict, folder: Path) -> None:
    """Make relative paths absolute, so that a run does not depend on the working directory."""
    for section, key, kept, source, *_ in _PATHS:
        spec = data.get(section)
        if not isinstance(spec, dict) or not isinstance(spec.get(key), str) or spec[key] in ("", kept):
            continue
        if source in (None, spec.get("source")):
            spec[key] = str(folder / os.path.expanduser(spec[key]))
    spec = data.get("benchmarks")
    if isinstance(spec, dict) and isinstance(spec.get("tasks"), list):
        spec["tasks"] = [_task_path(name, folder) for name in spec["tasks"]]
        if isinstance(spec.get("limit"), dict):
            spec["limit"] = {_task_path(name, folder): limit for name, limit in spec["limit"].items()}


def _task_path(name, folder: Path):
    """The path of a user's task; a name of lm-eval's stays as it is."""
    named = isinstance(name, str) and name.endswith((".yaml", ".yml"))
    return str(folder / os.path.expanduser(name)) if named else name


def _check_files(path: Path, profile: Profile) -> None:
    for section, key, kept, source, exists, kind in _PATHS:
        spec = getattr(profile, section)
        value = getattr(spec, key)
        if value != kept and source in (None, getattr(spec, "source", None)) and not exists(value):
            raise InputError(
                f"{path}: {section}.{key}: found {shown(value, 200)}, which does not exist; expected {kind}; "
                "correct the path"
            )
