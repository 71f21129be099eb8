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
ARITHMETIC = {"numpy", "scipy", "torch", "ot", "sklearn", "skdim", "statsmodels", "math", "enigma"}
PLAIN = {"__future__", "collections", "dataclasses", "functools", "itertools", "re", "typing", "warnings"}


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "enigma":
            found |= {f"enigma.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_imports_only_go_down(path):
    mine = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if mine == "__init__":
        return
    for name in imports(path):
        if not name.startswith("enigma."):
            continue
        other = name.split(".")[1]
        if other in (mine, *CELLAR, "__version__"):
            continue
        assert mine not in CELLAR, f"{path.name} imports {name}, from a room"
        assert FLOORS.index(other) > FLOORS.index(mine), f"{path.name} imports {name}, from above"


@pytest.mark.parametrize("path", sorted((LIBRARY / "method").glob("*.py")), ids=lambda path: path.name)
def test_equations_need_nothing_but_arithmetic(path):
    outside = {name.split(".")[0] for name in imports(path)} - ARITHMETIC - PLAIN
    assert not outside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_what_is_imported_late_is_there():
    """An import inside a function fails only where it is called."""
    aside = [path for name in ("benchmarks", "scripts") for path in (LIBRARY.parent / name).glob("*.py")]
    for path in (*MODULES, *aside):
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
