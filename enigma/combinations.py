"""What is impossible in a profile in combination, though each value is fine alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from enigma.explain import shown

if TYPE_CHECKING:
    from enigma.profile import Model, Profile, Questions, Section


# What an arm of a kind has no use for, with the defaults, which alone may stand there.
_PREFERENCE = {"lambda_ot": 0.0, "ot_budget": None, "beta": None}
_PREFERENCE |= {"reward": "format", "optimizer": "adamw", "drift": "sinkhorn"}
_MERGE = _PREFERENCE | {"lambda_sami": 0.0, "max_steps": None, "learning_rate": None}
UNUSED = {"preference": _PREFERENCE, "merge": _MERGE}


class Problem(NamedTuple):
    key: str
    found: str
    expected: str


def problems(profile: Profile) -> Iterator[Problem]:
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
    subspace, prompts = profile.geometry.subspace, profile.geometry.prompts
    if subspace >= prompts:
        yield Problem("geometry.subspace", repr(subspace), f"less than geometry.prompts ({prompts})")


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
            yield Problem(f"{section}.{key}", shown(value), f"null where {section}.source is {spec.source}")


def _model_problems(model: Model) -> Iterator[Problem]:
    needed = {"embedded": (), "random": ("config",), "hub": ("id", "revision"), "local": ("id",)}
    yield from _required("model", model, needed[model.source], ("source", "dtype"))
    if (shape := model.config) is None:
        return
    heads, groups, width = shape.num_attention_heads, shape.num_key_value_heads, shape.hidden_size
    if width % (2 * heads):
        expected = f"a multiple of 2 x num_attention_heads ({2 * heads}), for rotary positions"
        yield Problem("model.config.hidden_size", repr(width), expected)
    if heads % groups:
        expected = f"a multiple of num_key_value_heads ({groups})"
        yield Problem("model.config.num_attention_heads", repr(heads), expected)


def _question_problems(questions: Questions) -> Iterator[Problem]:
    needed = {"builtin": (), "jsonl": ("path",), "hub": ("dataset", "revision", "column", "split")}
    allowed = {"builtin": (), "jsonl": (), "hub": ("path", "rows", "max_characters")}
    yield from _required(
        "questions", questions, needed[questions.source], ("source", *allowed[questions.source])
    )


def _trainer_problems(profile: Profile) -> Iterator[Problem]:
    trainer = profile.trainer
    if "base" in profile.arms:
        yield Problem("arms.base", "an arm", "another name: base is the untrained model")
    if dropout := trainer.lora.dropout:
        yield Problem("trainer.lora.dropout", repr(dropout), "0: it would be noise in every bound")
    k, g, batch = trainer.num_principles, trainer.num_generations, trainer.per_device_train_batch_size
    below = batch // (k * g) * k * g
    if batch != below:
        expected = (
            f"a whole multiple of num_principles x num_generations ({k} x {g} = {k * g}), else a matched set is split; "
            f"nearest: {f'{below} or ' if below else ''}{below + k * g}"
        )
        yield Problem("trainer.per_device_train_batch_size", repr(batch), expected)
    if k > (size := profile.principles.set_size):
        yield Problem("trainer.num_principles", repr(k), f"at most principles.set_size ({size})")
    contrasted = [name for name, arm in profile.arms.items() if arm.lambda_sami > 0]
    if k < 2 and contrasted:
        expected = f"at least 2, because arm {contrasted[0]} has lambda_sami above 0"
        yield Problem("trainer.num_principles", repr(k), expected)
    yield from _arm_problems(profile)
    layers = profile.model.config.num_hidden_layers if profile.model.config else None
    if layers is not None:
        for layer in trainer.ot_layers:
            if not -layers - 1 <= layer <= layers:
                yield Problem("trainer.ot_layers", repr(layer), f"between {-layers - 1} and {layers}")


def _arm_problems(profile) -> Iterator[Problem]:
    above: dict[str, set[int]] = {}
    for name, arm in profile.arms.items():
        seeds = set(arm.seeds or profile.seeds.runs)
        for other in arm.needs():
            if not seeds <= above.get(other, set()):
                yield Problem(f"arms.{name}", other, "an arm that stands above it and has its seeds")
        if arm.control is not None and arm.control not in profile.arms:
            yield Problem(f"arms.{name}.control", arm.control, "an arm of this profile")
        if len([way for way in (arm.steering, arm.merge, arm.preference) if way]) > 1:
            yield Problem(f"arms.{name}", "several", "one of steering, merge and preference")
        for way in UNUSED if arm.merge or arm.preference else ():
            for key, default in UNUSED[way].items() if getattr(arm, way) else ():
                if (value := getattr(arm, key)) != default:
                    yield Problem(
                        f"arms.{name}.{key}",
                        shown(value),
                        f"{shown(default)} where the arm has {way}, which ignores it",
                    )
        above[name] = seeds
