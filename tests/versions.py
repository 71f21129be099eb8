"""Which code makes the rows of each kind of work, as hashes. `python -m tests.versions` writes them anew.

Before you refresh them, think: would the rows of that kind of work be other ones now? Then raise its number in VERSIONS
of enigma/record/cache.py first, or old rows pass for the new code's. Comments, docstrings and tables do not count.
"""

import ast
import functools
import hashlib
import json
from pathlib import Path

from enigma.record.cache import VERSIONS

PACKAGE = Path(__file__).resolve().parents[1] / "enigma"
RECORDED = Path(__file__).with_name("versions.json")
ROOMS = ("method", "llm", "data", "tasks", "stages")  # what other rooms do changes no row
ROOTS = ("pieces", "measure")  # where a stage's own rows come from; `tables` is made anew each time


@functools.cache
def current() -> dict:
    """{"kinds": {kind: {"version": number, "own": hash of the stage's part}}, "modules": {module: hash}}."""
    kinds = {
        kind: {"version": number, "own": _hash(_reachable(_tree(f"stages.{kind}")))}
        for kind, number in VERSIONS.items()
    }
    modules = sorted(set().union(*map(modules_of, VERSIONS)))
    return {"kinds": kinds, "modules": {name: _hash(_tree(name)) for name in modules}}


@functools.cache
def modules_of(kind: str) -> frozenset[str]:
    """All modules that the row-making part of a stage imports, directly or not."""
    found, waiting = set(), set(_imports(_reachable(_tree(f"stages.{kind}"))))
    if kind == "benchmark":
        waiting.add("tasks.data")  # lm-eval loads it by its path
    while waiting:
        found.add(name := waiting.pop())
        waiting |= _imports(_tree(name)) - found
    return frozenset(found)


@functools.cache
def _tree(module: str) -> tuple[ast.stmt, ...]:
    return tuple(ast.parse(_place(module).read_text(encoding="utf-8")).body)


def _place(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def _reachable(body: tuple[ast.stmt, ...]) -> tuple[ast.stmt, ...]:
    """The statements of a stage that ROOTS use, in order; where there are none, all."""
    names = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used, waiting = set(), [name for name in ROOTS if name in names]
    if not waiting:
        return body
    while waiting:
        used.add(name := waiting.pop())
        said = {node.id for node in ast.walk(names[name]) if isinstance(node, ast.Name)}
        waiting += sorted((said & names.keys()) - used)
    return tuple(node for node in body if getattr(node, "name", None) in used or not hasattr(node, "name"))


@functools.cache
def _imports(nodes: tuple[ast.stmt, ...]) -> frozenset[str]:
    """Modules of ROOMS that some statements import. Of a stage, only what the statements say."""
    found = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer) if isinstance(inner, ast.ImportFrom)):
        path = (node.module or "").removeprefix("enigma").lstrip(".")
        candidates = {path, *(f"{path}.{name.name}".lstrip(".") for name in node.names)}
        found |= {one for one in candidates if one.split(".")[0] in ROOMS and _place(one).is_file()}
    return frozenset(found)


def _hash(nodes) -> str:
    text = "\n".join(ast.dump(_bare(node)) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bare(node: ast.AST) -> ast.AST:
    """Without docstrings and texts that stand alone, and without the captions of tables."""
    for inner in ast.walk(node):
        if isinstance(getattr(inner, "body", None), list):
            inner.body = [one for one in inner.body if not _is_text(one)] or [ast.Pass()]
    named = [ast.unparse(target) for target in getattr(node, "targets", [])]
    return ast.Pass() if _is_text(node) or "CAPTIONS" in named else node


def _is_text(node: ast.AST) -> bool:
    said = node.value if isinstance(node, ast.Expr) else None
    return isinstance(said, ast.Constant) and isinstance(said.value, str)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
    print(f"{RECORDED.name}: written; raise VERSIONS in enigma/record/cache.py where rows would change")
