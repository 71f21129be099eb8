"""How much disk and memory there is for a run, in bytes."""

import functools
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil


def free_disk(folder: Path) -> int:
    """Free bytes of the disk that `folder` is on, or would be on once it is made."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def free_memory() -> int:
    """Free bytes of the largest GPU where there is one, else of the machine within the limits of its control groups."""
    return _gpu() or min(psutil.virtual_memory().available, *control_group_rooms())


@functools.cache
def gflops(dtype: str) -> float:
    """10^9 floating-point operations a second in products of matrices as the model computes them: the best of a third of a
    second, beside whatever else runs."""
    import torch

    from enigma.llm.loading import computes_in_bfloat16

    kind = torch.bfloat16 if dtype == "bfloat16" and computes_in_bfloat16() else torch.float32
    matrix, fastest, end = torch.ones(1024, 1024, dtype=kind), math.inf, time.perf_counter() + 0.33
    while time.perf_counter() < end:
        started = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * 1024**3 / fastest / 1e9


def _gpu() -> int | None:
    # Asked without torch, whose import takes seconds and whose context takes GPU memory for as long as the run lasts.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return max(int(line) for line in found.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


# The files that hold a control group's limit, its use, and the file cache that it gives up first: version 2, version 1.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def control_group_rooms(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What each control group of this process, with a memory limit, has left; containers and batch systems set them."""
    rooms = []
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        version = "memory" if "memory" in controllers.split(",") else controllers
        if version not in _FILES:
            continue
        base = root / version
        # Within a container the path may be the host's; the container's own group is then at the root.
        group = base / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            rooms += _room(folder, *_FILES[version])
    return rooms


def _room(group: Path, limit: str, used: str, cache: str) -> list[int]:
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return []
    return [max(0, most - now + int(stat.get(cache, 0)))]
