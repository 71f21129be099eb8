"""environment.yml, pyproject.toml and the two locks say the same; there is one version; files that must travel are declared."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from enigma import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = {canonicalize_name(found.name) for found in metadata.distributions()}
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["lab"] + EXTRAS["test"]]


def pins(lines) -> dict[str, str]:
    """{canonical name: version} of `name==version` lines; any other line is an error."""
    found = {}
    for line in lines:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._]+)", line).groups()
        assert canonicalize_name(name) not in found, f"{name} twice"
        found[canonicalize_name(name)] = version
    return found


def locked() -> list[str]:
    """The entries of requirements.lock, each with its marker and hashes on one line."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if not line.startswith("#")]


@cache
def lock() -> dict[str, str]:
    """Both files: torch's version is pinned by itself, without a hash. An index, an address or a local build is no pin."""
    torch = (ROOT / "requirements-torch.txt").read_text(encoding="utf-8").splitlines()
    entries = [*locked(), *(line for line in torch if not line.startswith("#"))]
    return pins(re.split(" ;| --", line)[0].strip() for line in entries)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_locked_within_its_range(requirement):
    assert Version(lock()[canonicalize_name(requirement.name)]) in requirement.specifier
    assert len(requirement.specifier) >= 1


def test_conda_pins_the_same_direct_dependencies_and_a_python_that_the_project_supports():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    [own] = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    conda = pins(line for line in own if line != "-e .")
    assert conda == {name: lock()[name] for name in (canonicalize_name(r.name) for r in DIRECT)}
    assert "-e ." in own
    [python] = [entry for entry in listed if str(entry).startswith("python=")]
    assert Version(python.removeprefix("python=")) in Requirement(f"x{PROJECT['requires-python']}").specifier


def test_the_package_is_found_beside_a_clone_of_its_name(tmp_path):
    """A clone is a folder `enigma` without `__init__.py`, which Python takes for a package if the install lets it."""
    (tmp_path / "enigma").mkdir()
    code = "import enigma; enigma.sufficiency_index"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_every_locked_file_is_held_against_a_hash():
    """A requirement without one makes `pip install --require-hashes` refuse the whole file."""
    form = re.compile(r"\S+==\S+( ; [^#]*?)?( +--hash=sha256:[0-9a-f]{64})+ *")
    assert [line for line in locked() if not form.fullmatch(line)] == []


def test_nothing_that_is_locked_needs_what_is_not():
    """It is installed without looking for dependencies: what it left out would be missing. For torch pip looks."""
    needed = {canonicalize_name(PROJECT["name"])} | set(lock())
    for name in INSTALLED & set(lock()) - {"torch"}:
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in needed, f"{name} needs {text}"


def test_version_licence_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert __version__ == PROJECT["version"] == citation["version"] == latest
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_package_carries_its_notebooks_and_all_its_files(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"  # a build leaves folders beside what it builds
    left_out = shutil.ignore_patterns(".*", "results", "build", "*.egg-info", "lab")
    shutil.copytree(ROOT, source, ignore=left_out)
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "enigma").rglob("*.*") if p.is_file()}
    expected |= {f"enigma/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.py")}
    assert {name for name in expected if "__pycache__" not in name} <= packed


@pytest.mark.parametrize("package", ["enigma", "benchmarks"])
def test_threads_and_memory_are_set_before_torch_is_loaded(package):
    """Jobs and kernels inherit it. Beside other work two threads that spin cost five times the step."""
    names = "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE"
    code = f"import os, sys, {package}; print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert done.split() == ["PASSIVE", "1", "False"]
