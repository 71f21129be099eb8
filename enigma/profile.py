"""A profile: one YAML text that names a whole experiment, validated before anything heavy is loaded.

Nothing here imports a model library. `load_profile` either returns a `Profile` in which every key, type and
combination has been checked, or raises `InputError` with one line: file, key, value found, expectation.
What the keys mean is said beside them in `profiles/cpu.yaml`.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
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

from enigma.errors import InputError
from enigma.record.cache import digest

BUILTIN = Path(__file__).parent / "profiles"
MAX_BYTES = 100_000
BASE = "base"  # the untrained model's row in every table

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
FolderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]


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
    set_size: Annotated[int, Field(ge=2)]
    # A set has no more principles of one family than it must.
    balanced: bool = False


class Sufficiency(Section):
    questions: Annotated[int, Field(ge=2)]
    samples: Count
    max_tokens: Count
    heldout: Annotated[int, Field(ge=2)]
    batch_size: Count
    # Completions are also scored under paraphrases of the principles, so that SI is known without echoed words.
    echo: bool = False
    resamples: Annotated[int, Field(ge=10)]


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


class Lora(Section):
    r: Count
    alpha: Positive
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    target_modules: Annotated[list[Text], Field(min_length=1)]


class Trainer(Section):
    max_steps: Count
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    num_generations: Annotated[int, Field(ge=2)]
    num_principles: Count
    max_completion_length: Count
    learning_rate: Positive
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    beta: NotNegative
    sami_temperature: Positive
    sami_span: Literal["completion", "reasoning"]
    ot_layers: Annotated[list[int], Field(min_length=1)]
    ot_epsilon: Positive
    ot_budget: NotNegative
    ot_points: Annotated[int, Field(ge=2)]
    legibility_steps: Annotated[int, Field(ge=0)] = 0
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml"] = "none"
    save_steps: Count
    # What is only logged (the reference's view where no term needs it) is measured every so many steps.
    reference_steps: Count = 1
    # How completions are drawn, as TRL offers it; vllm has to be installed, and a server to be running.
    rollouts: Literal["generate", "vllm_colocate", "vllm_server"] = "generate"
    gradient_checkpointing: bool = False
    zero_spread: Literal["error", "report"]
    lora: Lora


class Benchmarks(Section):
    tasks: Annotated[list[TaskName], Field(min_length=1)]
    limit: Count | dict[TaskName, Count] | None
    batch_size: Count
    log_samples: bool = False  # lm-eval's samples as JSON lines, in runs/<run>/samples


class Geometry(Section):
    prompts: Annotated[int, Field(ge=2)]
    max_tokens: Count
    subspace: Count
    permutations: Annotated[int, Field(ge=19)]  # fewer could never give p <= 0.05
    batch_size: Count


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
        for problem in _problems(self):
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
        """The file it was loaded from, for other processes to load it again."""
        return self._path

    def sets(self) -> list[str]:
        """The names of the sets that stage 1 chooses: the high-SI, the low-SI, and whatever else an arm is trained on."""
        return list(dict.fromkeys(["high", "low", *(arm.set for arm in self.arms.values())]))

    def runs(self) -> list[tuple[str, int]]:
        """Every (arm, seed), arms in the profile's order."""
        return [(name, seed) for name, arm in self.arms.items() for seed in arm.seeds or self.seeds.runs]


def run_name(arm: str, seed: int) -> str:
    return f"{arm}-s{seed}"


class Problem(NamedTuple):
    key: str
    found: str
    expected: str


def _problems(profile: Profile) -> Iterator[Problem]:
    """What is impossible in combination, though each value is fine alone."""
    yield from _model_problems(profile.model)
    yield from _question_problems(profile.questions)
    yield from _trainer_problems(profile)
    for key, values in (
        ("seeds.runs", profile.seeds.runs),
        ("benchmarks.tasks", profile.benchmarks.tasks),
        ("trainer.ot_layers", profile.trainer.ot_layers),
        ("trainer.lora.target_modules", profile.trainer.lora.target_modules),
    ):
        if len(set(values)) < len(values):
            yield Problem(key, repr(values), "each value once")
    if profile.geometry.subspace >= profile.geometry.prompts:
        yield Problem(
            "geometry.subspace",
            repr(profile.geometry.subspace),
            f"less than geometry.prompts ({profile.geometry.prompts})",
        )


def _required(
    section: str, spec: Section, needed: tuple[str, ...], allowed: tuple[str, ...]
) -> Iterator[Problem]:
    """Keys that this section's `source` needs, and keys that it has no use for."""
    for key in type(spec).model_fields:
        value = getattr(spec, key)
        if key in needed and value is None:
            kind = "a 40-character commit hash" if key == "revision" else "a value"
            yield Problem(f"{section}.{key}", "null", f"{kind} where {section}.source is {spec.source}")
        if key not in needed + allowed and value is not None:
            yield Problem(f"{section}.{key}", _shown(value), f"null where {section}.source is {spec.source}")


def _model_problems(model: Model) -> Iterator[Problem]:
    needed = {"embedded": (), "random": ("config",), "hub": ("id", "revision"), "local": ("id",)}
    yield from _required("model", model, needed[model.source], ("source", "dtype"))
    if (shape := model.config) is None:
        return
    heads, key_value_heads = shape.num_attention_heads, shape.num_key_value_heads
    if shape.hidden_size % (2 * heads):
        yield Problem(
            "model.config.hidden_size",
            repr(shape.hidden_size),
            f"a multiple of 2 x num_attention_heads ({2 * heads}), for rotary positions",
        )
    if heads % key_value_heads:
        yield Problem(
            "model.config.num_attention_heads",
            repr(heads),
            f"a multiple of num_key_value_heads ({key_value_heads})",
        )


def _question_problems(questions: Questions) -> Iterator[Problem]:
    needed = {"builtin": (), "jsonl": ("path",), "hub": ("dataset", "revision", "column", "split")}
    allowed = {"builtin": (), "jsonl": (), "hub": ("path", "rows", "max_characters")}
    yield from _required(
        "questions", questions, needed[questions.source], ("source", *allowed[questions.source])
    )


def _trainer_problems(profile: Profile) -> Iterator[Problem]:
    trainer = profile.trainer
    if BASE in profile.arms:
        yield Problem("arms.base", "an arm", "another name: base is the untrained model")
    matched = trainer.num_principles * trainer.num_generations
    if trainer.per_device_train_batch_size % matched:
        yield Problem(
            "trainer.per_device_train_batch_size",
            repr(trainer.per_device_train_batch_size),
            f"a whole multiple of num_principles x num_generations ({trainer.num_principles} x "
            f"{trainer.num_generations} = {matched}), else a matched set is split",
        )
    if trainer.num_principles > profile.principles.set_size:
        yield Problem(
            "trainer.num_principles",
            repr(trainer.num_principles),
            f"at most principles.set_size ({profile.principles.set_size})",
        )
    contrasted = [name for name, arm in profile.arms.items() if arm.lambda_sami > 0]
    if trainer.num_principles < 2 and contrasted:
        yield Problem(
            "trainer.num_principles",
            repr(trainer.num_principles),
            f"at least 2, because arm {contrasted[0]} has lambda_sami above 0",
        )
    layers = profile.model.config.num_hidden_layers if profile.model.config else None
    if layers is not None:
        for layer in trainer.ot_layers:
            if not -layers - 1 <= layer <= layers:
                yield Problem("trainer.ot_layers", repr(layer), f"between {-layers - 1} and {layers}")


# ---- reading -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses aliases and a repeated key, and reads 3e-4 as a number, as YAML 1.2 does."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # a few of them can make a small file huge
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*) are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def builtin_names() -> list[str]:
    return sorted(path.stem for path in BUILTIN.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read and check a profile.

    `name_or_path` is the name of a profile in `enigma/profiles` or a path (with a slash, or ending in .yaml or .yml).
    Relative paths inside the profile are taken from the folder of its file. Raises `InputError` on the first thing
    that is wrong.
    """
    path = _locate(name_or_path)
    text = _read_text(path)
    data = _parse(path, text)
    written = copy.deepcopy(data)
    _anchor_paths(data, path.resolve().parent)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(_one_line(path, error)) from None
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


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_BYTES // 1000} kB; expected a profile; give another file"
            )
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; expected UTF-8; save it as that"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected a readable file; check its permissions"
        ) from None


def _parse(path: Path, text: str) -> dict:
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "its text"
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        raise InputError(
            f"{path}: {where}: {problem}; expected valid YAML with each key once; correct it"
        ) from None
    except Exception as error:  # a false tag such as `!!int ''` ends in any of Python's own errors
        reason = "too deeply nested" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(
            f"{path}: not valid YAML ({reason:.200}); expected plain YAML; put texts in quotes"
        ) from error
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: found {_shown(data)}; expected a mapping of sections (name, model, arms, ...); "
            "begin with a copy of enigma/profiles/cpu.yaml"
        )
    return data


_PATHS = (("principles", "pool", "default"), ("questions", "path", None), ("model", "id", None))


def _anchor_paths(data: dict, folder: Path) -> None:
    """Make relative paths absolute, so that a run does not depend on the working directory."""
    for section, key, kept in _PATHS:
        spec = data.get(section)
        if not isinstance(spec, dict) or not isinstance(spec.get(key), str) or spec[key] in ("", kept):
            continue
        local = {
            "principles": True,
            "questions": spec.get("source") == "jsonl",
            "model": spec.get("source") == "local",
        }
        if local[section]:
            spec[key] = str(folder / os.path.expanduser(spec[key]))


def _check_files(path: Path, profile: Profile) -> None:
    checks = [
        (
            "principles.pool",
            profile.principles.pool,
            profile.principles.pool != "default",
            os.path.isfile,
            "a YAML file",
        ),
        (
            "questions.path",
            profile.questions.path,
            profile.questions.source == "jsonl",
            os.path.isfile,
            "a JSONL file",
        ),
        (
            "model.id",
            profile.model.id,
            profile.model.source == "local",
            os.path.isdir,
            "a folder with a model",
        ),
    ]
    for key, value, named, exists, kind in checks:
        if named and not exists(value):
            raise InputError(
                f"{path}: {key}: found {_shown(value, 200)}, which does not exist; expected {kind}; "
                "correct the path"
            )


# ---- one line for the first error ----------------------------------------------------------------------------------


def _one_line(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    key = first["ctx"].get("key") if first["type"] == "impossible" else ".".join(map(_part, first["loc"]))
    key = key.removesuffix(".[key]")
    rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{path}: {key}: {_explain(first)}{rest}"


def _part(part: str | int) -> str:
    """A key as it was written, or quoted where it is no ordinary one."""
    return (
        str(part)
        if isinstance(part, int) or part == "[key]" or re.fullmatch(r"[\w.!-]{1,60}", part)
        else _shown(part)
    )


def _explain(error: dict) -> str:
    kind, found = error["type"], _shown(error["input"])
    if kind == "impossible":
        return f"found {error['ctx']['found']}; expected {error['ctx']['expected']}; change one of them"
    if kind == "missing":
        return "missing; expected this key; add it, as in enigma/profiles/cpu.yaml"
    if kind == "extra_forbidden":
        known = _known_keys(error["loc"])
        close = difflib.get_close_matches(str(error["loc"][-1])[:60], known, n=1)
        hint = f"did you mean {close[0]}?" if close else "rename or remove it"
        return f"unknown key (value {found}); expected one of {', '.join(known)}; {hint}"
    if kind == "string_pattern_mismatch":
        return f"found {found}; expected text that matches {error['ctx']['pattern']}; correct it"
    expected = re.sub(r"^(Input|[A-Z]\w+) should (be |have )?", "", error["msg"])
    return f"found {found}; expected {expected}; correct it, see enigma/profiles/cpu.yaml"


def _known_keys(location: tuple) -> list[str]:
    """Keys of the section that an unknown key was found in."""
    section: type[BaseModel] = Profile
    if location[0] == "arms":
        return list(Arm.model_fields)
    for part in location[:-1]:
        section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation) -> type[BaseModel]:
    options = getattr(annotation, "__args__", (annotation,))
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))


def _shown(value, limit: int = 60) -> str:
    text = "null" if value is None else " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
