"""One line for the first thing that is wrong in a profile: key, value found, what was expected, what to do."""

import difflib
import re

from pydantic import BaseModel, ValidationError


def first_error(error: ValidationError, schema: type[BaseModel]) -> str:
    """`key: found ...; expected ...; remedy` of the first error of validating `schema`, and how many more there are."""
    # A misspelt key is both unknown and, as what it should be, missing: the first says more.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = first["ctx"].get("key") if first["type"] == "impossible" else ".".join(map(_part, first["loc"]))
    rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key.removesuffix('.[key]')}: {_explain(first, schema)}{rest}"


def shown(value, limit: int = 60) -> str:
    """A value in one short line."""
    text = "null" if value is None else " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _part(part: str | int) -> str:
    """A key as it was written, or quoted where it is no ordinary one."""
    plain = isinstance(part, int) or part == "[key]" or re.fullmatch(r"[\w.!-]{1,60}", part)
    return str(part) if plain else shown(part)


def _explain(error: dict, schema: type[BaseModel]) -> str:
    kind, found = error["type"], shown(error["input"])
    if kind == "impossible":
        return f"found {error['ctx']['found']}; expected {error['ctx']['expected']}; change one of them"
    if kind == "missing":
        return "missing; expected this key; add it, as in enigma/profiles/cpu.yaml"
    if kind == "extra_forbidden":
        return f"unknown key (value {found}); expected {_hint(str(error['loc'][-1]), _known(schema, error['loc']))}"
    if kind == "string_pattern_mismatch":
        return f"found {found}; expected text that matches {error['ctx']['pattern']}; correct it"
    expected = re.sub(r"^(Input|[A-Z]\w+) should (be |have )?", "", error["msg"])
    return f"found {found}; expected {expected}; correct it, see enigma/profiles/cpu.yaml"


def _hint(name: str, known: list[str]) -> str:
    if name == "launcher" or name == "launch":
        return f"one of {', '.join(known)}; give the command line --launch, since a profile runs no program"
    close = difflib.get_close_matches(name[:60], known, n=1)
    return f"one of {', '.join(known)}; {f'did you mean {close[0]}?' if close else 'rename or remove it'}"


def _known(schema: type[BaseModel], location: tuple) -> list[str]:
    """Keys of the section that an unknown key was found in. In a mapping of sections, one part is a name of its own."""
    parts = list(location[:-1])
    while parts:
        annotation = schema.model_fields[parts.pop(0)].annotation
        if getattr(annotation, "__origin__", None) is dict and parts:
            parts.pop(0)
        options = getattr(annotation, "__args__", (annotation,))
        schema = next(one for one in options if isinstance(one, type) and issubclass(one, BaseModel))
    return list(schema.model_fields)
