"""Pools of principles: the built-in one and the user's own, as YAML files that are checked before use."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from enigma.data.text import check_text, normalise
from enigma.errors import InputError
from enigma.method.rewards import TAGS
from enigma.plainyaml import read_yaml

MAX_BYTES = 200_000  # hundreds of principles; more takes the parser seconds
MAX_CHARACTERS = 500
_POOLS = Path(__file__).with_name("pools")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_READ_AS_NUMBERS = ("nan", "null", "none", "inf", "infinity", "true", "false")  # by readers of CSV tables


@dataclass(frozen=True)
class Principle:
    """A principle: `text` is put before the model, `antithesis` is its opposite (None where there is none),
    `family` groups principles, `source` says where the text comes from."""

    name: str
    text: str
    antithesis: str | None = None
    family: str | None = None
    source: str | None = None
    paraphrases: tuple[str, ...] = ()


_KEYS = tuple(field.name for field in fields(Principle))


def load_pool(name_or_path: str | Path) -> list[Principle]:
    """The principles of a built-in pool ("default") or of a YAML file, in the file's order.

    The file is a mapping with a list under `principles:`; each entry has `name` (a-z, 0-9 and "-", a letter
    first, at most 40 characters) and `text`, and optionally `antithesis`, `family`, `source`, all strings of at most 500
    characters. Runs of whitespace become one space. Raises InputError naming file, entry and reason.
    """
    path = _locate(name_or_path)
    entries = _read_entries(path)
    pool = [_principle(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, start=1)]
    _reject_duplicates(pool, path)
    return pool


def _locate(name_or_path: str | Path) -> Path:
    built_in = sorted(file.stem for file in _POOLS.glob("*.yaml"))
    if name_or_path in built_in:
        return _POOLS / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError:
        pass
    raise InputError(
        f"{str(name_or_path)!a:.200}: no such file; expected a built-in pool ({', '.join(built_in)}) "
        "or the path of a YAML file; correct the path"
    )


def _read_entries(path: Path) -> list:
    _, document = read_yaml(path, MAX_BYTES, "a short list of principles")
    expected = 'expected "principles:" and a list of entries below it'
    if not isinstance(document, dict):
        raise InputError(f"{path}: found {_kind(document)}; {expected}; begin the file with it")
    if unknown := [key for key in document if key != "principles"]:
        raise InputError(f"{path}: unknown key {_quote(unknown[0])}; {expected}; remove or rename the key")
    entries = document.get("principles")
    if not isinstance(entries, list):
        raise InputError(f"{path}: principles: found {_kind(entries)}; {expected}; write a list")
    if not entries:
        raise InputError(f"{path}: principles: the list is empty; {expected}; add at least one entry")
    return entries


def _principle(entry, where: str) -> Principle:
    if not isinstance(entry, dict):
        raise InputError(
            f'{where}: found {_kind(entry)}; expected a mapping with "name" and "text"; write it so'
        )
    if "name" in entry:
        where = f"{where} ({_quote(entry['name'])})"
    if unknown := [key for key in entry if key not in _KEYS]:
        raise InputError(
            f"{where}: unknown key {_quote(unknown[0])}; expected {', '.join(_KEYS)}; remove or rename it"
        )
    values = {
        key: _string(entry.get(key), f"{where}: {key}", required=key in ("name", "text"))
        for key in _KEYS
        if key != "paraphrases"
    }
    values["paraphrases"] = _strings(entry.get("paraphrases"), f"{where}: paraphrases")
    if not _NAME.fullmatch(values["name"]) or values["name"] in _READ_AS_NUMBERS:
        raise InputError(
            f"{where}: name: found {_quote(values['name'])}; expected a letter, then at most 39 out of a-z, 0-9 and -, "
            f"and none of {', '.join(_READ_AS_NUMBERS)}; rename the entry"
        )
    if values["antithesis"] is not None and normalise(values["antithesis"]) == normalise(values["text"]):
        raise InputError(
            f"{where}: antithesis: equal to the text; expected its opposite; rewrite or remove it"
        )
    return Principle(**values)


def _strings(value, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{where}: found {_kind(value)}; expected a list of strings; write one")
    return tuple(_string(item, f"{where} {i}", required=True) for i, item in enumerate(value, start=1))


def _string(value, where: str, *, required: bool) -> str | None:
    if value is None:
        if required:
            raise InputError(f"{where}: missing; expected a non-empty string; add it")
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: found {_kind(value)}; expected a string; put it in quotes")
    if not value.strip():
        raise InputError(f"{where}: empty; expected a non-empty string; fill it in or remove the key")
    if len(value) > MAX_CHARACTERS:
        raise InputError(f"{where}: {len(value)} characters; expected at most {MAX_CHARACTERS}; shorten it")
    check_text(value, where)
    if tag := next((tag for tag in TAGS if tag in normalise(value)), None):
        raise InputError(f"{where}: contains the format tag {tag}; expected plain text; remove it")
    return " ".join(value.split())


def _reject_duplicates(pool: list[Principle], path: Path) -> None:
    for key in ("name", "text"):
        first: dict[str, int] = {}
        for number, principle in enumerate(pool, start=1):
            label = normalise(getattr(principle, key))
            if label in first:
                raise InputError(
                    f"{path}: entry {number} ({principle.name!r}): {key}: the same as entry {first[label]}; "
                    "expected every entry to differ; change or remove one"
                )
            first[label] = number


def _kind(value) -> str:
    """A value's type in YAML's words: the value itself may be long."""
    names = {type(None): "nothing", bool: "true/false", int: "a number", float: "a number", str: "a string"}
    return names.get(
        type(value), {list: "a list", dict: "a mapping"}.get(type(value), f"a {type(value).__name__}")
    )


def _quote(value) -> str:
    """A short, one-line rendering of something a file holds."""
    return f"{value!a:.60}" if isinstance(value, str) else _kind(value)
