"""Plain YAML from outside: small, UTF-8, without aliases, repeated keys or Python objects; one line for what is not.

Profiles and pools are read by it. No model library is imported.
"""

import re
from pathlib import Path

import yaml

from enigma.errors import InputError


def read_yaml(path: Path, limit: int, expected: str) -> tuple[str, object]:
    """(text, data) of a YAML file of at most `limit` bytes. Raises InputError; `expected` says what the file should be."""
    text = _read_text(path, limit, expected)
    try:
        return text, yaml.load(text, Loader=PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "bad characters"
        found = (
            f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
            if mark
            else f"not valid YAML ({problem})"
        )
        raise InputError(f"{path}: {found}; expected valid YAML with each key once; correct it") from None
    except Exception as error:  # a false tag such as `!!int ''` ends in any of Python's own errors
        reason = "too deeply nested" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(
            f"{path}: not valid YAML ({reason:.200}); expected plain YAML; put texts in quotes"
        ) from error


def _read_text(path: Path, limit: int, expected: str) -> str:
    try:
        # One byte more than allowed: the size is judged on what was read, not on what was promised.
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InputError(
                f"{path}: larger than {limit // 1000} kB; expected {expected}; give another file"
            )
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; expected UTF-8; save it as that"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected a readable file; check its permissions"
        ) from None


class PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases and a repeated key, and reads 3e-4 as a number, as YAML 1.2 does."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # a few of them can make a small file huge
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*) are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(f"key {key!r:.60} is not text", key_node)
            if key in seen:
                raise _refused(f"key {key!a:.60} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


PlainLoader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
