"""The same profile, seed and machine give the same tables.

Stages are run as functions, without notebooks. What depends on the machine is left out by name (`MEASURED`).
"""

import functools
import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import yaml

from enigma.profile import BUILTIN

# Time and memory, measured as the run goes on: columns of `training`, and a table of its own.
MEASURED = {"training": ["seconds", "peak_memory_gb"], "benchmark_speed": ["seconds"]}
# What is drawn by the bootstrap's seed as a whole: halves of the questions.
HALVES = {"selection_stability.csv", "test_retest.csv"}
# Numbers in tables have six digits. Between one thread and two, sums are added up in another order; two hidden layers
# and two steps of training leave a difference of at most this share of a column's largest number.
THREADS = 1e-3

STAGES = """
import sys
from pathlib import Path
from enigma import stages
from enigma.profile import load_profile
from enigma.record.results import Results
profile = load_profile(sys.argv[1])
results = Results(profile, sys.argv[2])
for stage in stages.all_stages():
    stages.run(stage, profile, results)
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A function that runs all stages on the smoke profile, cut down, in a process of their own. Equal calls share one run."""
    base = tmp_path_factory.mktemp("determinism")

    @functools.cache
    def run(name: str, threads: int = 1, root: str = "out", **seeds) -> dict[str, bytes]:
        """{file name: bytes} of all tables. `name` is the folder that the run works in."""
        folder = base / name
        folder.mkdir()
        profile = yaml.safe_load((BUILTIN / "smoke.yaml").read_text(encoding="utf-8"))
        profile |= {"name": "tiny", "arms": {name: profile["arms"][name] for name in ("grpo", "enigma_high")}}
        profile["trainer"] |= {"max_steps": 2, "learning_rate": 3.0e-4}
        profile["principles"]["set_size"] = 2
        profile["seeds"] |= seeds
        (folder / "tiny.yaml").write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
        environment |= {"ENIGMA_HEADLESS": "1", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", STAGES, folder / "tiny.yaml", root]
        options = {"cwd": folder, "env": environment, "capture_output": True, "timeout": 600}
        subprocess.run(command, check=True, **options)
        paths = sorted((folder / root / "tiny" / "tables").iterdir())
        return {path.name: unmeasured(path) for path in paths if path.suffix in (".csv", ".yaml")}

    return run


def unmeasured(path) -> bytes:
    """The bytes of a table, without the columns that were measured with a clock."""
    if path.stem not in MEASURED:
        return path.read_bytes()
    frame = pd.read_csv(path, dtype=str)
    return frame.drop(columns=MEASURED[path.stem]).to_csv(index=False).encode()


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def read(table: bytes) -> pd.DataFrame:
    return pd.read_csv(BytesIO(table))


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_tables_from_any_working_directory(tables, tmp_path):
    first, second = tables("first"), tables("second", root=str(tmp_path))
    assert len(first) >= 15
    assert changed(first, second) == []


@pytest.mark.slow
def test_another_number_of_threads_stays_within_the_tolerance(tables):
    one, two = tables("first"), tables("threads", threads=2)
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith(".csv"):
            a, b = read(one[name]), read(two[name])
            assert list(a.columns) == list(b.columns) and len(a) == len(b), name
            for column in a.select_dtypes("number"):
                x, y = a[column].to_numpy(float), b[column].to_numpy(float)
                scale = np.nanmax(np.abs(x), initial=1e-6)
                np.testing.assert_allclose(x, y, rtol=0, atol=THREADS * scale, err_msg=f"{name}: {column}")


@pytest.mark.slow
def test_the_bootstrap_seed_moves_interval_ends_and_p_values_alone(tables):
    base, other = tables("first"), tables("bootstrap", bootstrap=1)
    moved = changed(base, other)
    assert "sufficiency.csv" in moved
    for name in moved:
        if name.endswith(".csv") and name not in HALVES:
            one, two = read(base[name]), read(other[name])
            kept = one.columns[~one.columns.str.contains(r"low$|high$|^p_|^note$|^verdict$")]
            pd.testing.assert_frame_equal(one[kept], two[kept], obj=name)
