"""The rooms of the library: imports only go down, and what is public is there."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

import enigma

LIBRARY = Path(enigma.__file__).parent
# Each room may import from those below it, and from the cellar, which knows no room.
FLOORS = ("__main__", "run", "figures", "stages", "tasks", "llm", "data", "method")
CELLAR = ("record", *sorted(path.stem for path in LIBRARY.glob("*.py") if not path.stem.startswith("__")))
MODULES = sorted(LIBRARY.rglob("*.py"))
# What the equations are made of; anything else would tie them to a model or a file.
ARITHMETIC = {"numpy", "scipy", "torch", "ot", "sklearn", "skdim", "statsmodels"}


def room(name: str) -> str:
    """The room of a module, by its dotted name after `enigma.`."""
    return name.split(".")[0]


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "enigma"
                else {node.module}
            )
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_imports_only_go_down(path):
    mine = room(path.relative_to(LIBRARY).with_suffix("").as_posix().replace("/", "."))
    if mine == "__init__":
        return
    for name in imports(path):
        if not name.startswith("enigma."):
            continue
        other = room(name.removeprefix("enigma."))
        if other in (mine, *CELLAR, "__version__"):
            continue
        assert mine not in CELLAR, f"{path.name} imports {name}, from a room"
        assert FLOORS.index(other) > FLOORS.index(mine), f"{path.name} imports {name}, from above"


@pytest.mark.parametrize("path", sorted((LIBRARY / "method").glob("*.py")), ids=lambda path: path.name)
def test_equations_need_nothing_but_arithmetic(path):
    standard = {
        *("__future__", "collections", "dataclasses", "functools", "itertools", "math", "re"),
        *("typing", "warnings"),
    }
    outside = {name.split(".")[0] for name in imports(path)} - ARITHMETIC - standard - {"enigma"}
    assert not outside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_what_is_imported_late_is_there():
    """An import inside a function fails only where it is called."""
    for path in [
        *MODULES,
        *(LIBRARY.parent / "benchmarks").glob("*.py"),
        *(LIBRARY.parent / "scripts").glob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enigma."):
                module = importlib.import_module(node.module)
                for name in node.names:
                    there = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}")
                    assert there, f"{path.name}: {node.module}.{name.name}"


def test_public_names_are_there():
    for name in enigma.__all__:
        assert getattr(enigma, name) is not None
    assert not hasattr(enigma, "no_such_name")
