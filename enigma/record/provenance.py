"""Which code, libraries and machine made a piece of work. Source: our choice [D]."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    *("numpy", "scipy", "pandas", "scikit-learn", "scikit-dimension", "POT", "torch"),
    *("transformers", "trl", "peft", "accelerate", "datasets", "lm-eval", "matplotlib", "seaborn"),
    "pydantic",
)


def code_commit(file: Path | str = __file__) -> str:
    """The commit of the repository that tracks `file`, with `+dirty` where the tree differs from it.

    Changes under results/ do not count: a run must not make itself dirty. "unknown" outside git, without git, or
    where the code is installed inside somebody else's repository.
    """
    folder, name = Path(file).resolve().parent, Path(file).name
    if _git(folder, "ls-files", "--error-unmatch", name) is None:
        return "unknown"
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return "unknown"
    changes = _git(folder, "status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    return head + ("+dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    # A clone may be another user's, and a hook's or caller's GIT_DIR may name another repository. Nothing of it is run.
    options = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        command = ["git", *options, "-C", str(folder), *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=30, env=own
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def versions() -> dict[str, str]:
    """Python and the main packages, read from their metadata without importing them; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def made_now() -> dict:
    """What makes pieces in this process: commit, versions, machine. No host, user or path."""
    machine = {"system": platform.system(), "processor": processor(), "cores": os.cpu_count()}
    return {"commit": code_commit(), "versions": versions(), "machine": machine}


def processor() -> str:
    """The processor's name as the machine gives it, with the instructions that matter here."""
    lines = (
        Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    name = facts.get("model name\t", platform.machine()).strip()
    return f"{name}, bfloat16" if "avx512_bf16" in facts.get("flags\t\t", "") else name
