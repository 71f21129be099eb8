"""The same profile, seed and machine give the same tables.

Stages are run as functions, without notebooks. What depends on the machine is left out by name (`MEASURED`).
"""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from enigma.profile import BUILTIN

# Time and memory, measured as the run goes on: columns of `training`, and a table of its own.
MEASURED = {"training": ["seconds", "peak_memory_gb"], "benchmark_speed": ["seconds", "items_per_second"]}
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


# ---- whole runs ----------------------------------------------------------------------------------------------------


class Runs:
    """Runs all stages on the smoke profile, cut down, in a process of their own. Equal requests share one run."""

    def __init__(self, folder):
        self.folder = folder
        self.done = {}

    def tables(
        self, name: str, seeds: dict | None = None, threads: int = 1, root: str = "out"
    ) -> dict[str, bytes]:
        """{file name: bytes} of all tables. `name` is the folder that the run works in."""
        if name not in self.done:
            folder = self.folder / name
            folder.mkdir()
            self.write_profile(folder / "tiny.yaml", seeds or {})
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
            environment |= {"ENIGMA_HEADLESS": "1", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-c", STAGES, folder / "tiny.yaml", root]
            options = {"cwd": folder, "env": environment, "capture_output": True, "timeout": 600}
            subprocess.run(command, check=True, **options)
            paths = sorted((folder / root / "tiny" / "tables").iterdir())
            self.done[name] = {p.name: unmeasured(p) for p in paths if p.suffix in (".csv", ".yaml")}
        return self.done[name]

    @staticmethod
    def write_profile(path, seeds: dict) -> None:
        profile = yaml.safe_load((BUILTIN / "smoke.yaml").read_text(encoding="utf-8"))
        profile |= {"name": "tiny", "arms": {name: profile["arms"][name] for name in ("grpo", "enigma_high")}}
        profile["trainer"] |= {"max_steps": 2, "learning_rate": 3.0e-4}
        profile["principles"]["set_size"] = 2
        profile["seeds"] |= seeds
        path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")


def unmeasured(path) -> bytes:
    """The bytes of a table, without the columns that were measured with a clock."""
    if path.stem not in MEASURED:
        return path.read_bytes()
    frame = pd.read_csv(path, dtype=str)
    return frame.drop(columns=MEASURED[path.stem]).to_csv(index=False).encode()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("determinism"))


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_tables_from_any_working_directory(runs):
    first, second = (
        runs.tables("first"),
        runs.tables("second", root=str(runs.folder / "second" / "elsewhere")),
    )
    assert len(first) >= 15
    assert changed(first, second) == []


@pytest.mark.slow
def test_another_number_of_threads_stays_within_the_tolerance(runs):
    one, two = runs.tables("first"), runs.tables("threads", threads=2)
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith(".csv"):
            assert_close(name, read(one[name]), read(two[name]))


def read(table: bytes) -> pd.DataFrame:
    from io import BytesIO

    return pd.read_csv(BytesIO(table))


def assert_close(name: str, one: pd.DataFrame, two: pd.DataFrame) -> None:
    assert list(one.columns) == list(two.columns), name
    assert len(one) == len(two), name
    for column in one.select_dtypes("number"):
        a, b = one[column].to_numpy(float), two[column].to_numpy(float)
        scale = np.nanmax(np.abs(a), initial=1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=THREADS * scale, err_msg=f"{name}: {column}")


@pytest.mark.slow
def test_the_bootstrap_seed_moves_interval_ends_and_p_values_alone(runs):
    base, other = runs.tables("first"), runs.tables("bootstrap", {"bootstrap": 1})
    moved = changed(base, other)
    assert "sufficiency.csv" in moved
    drawn = r"low$|high$|^p_|^note$|^verdict$"
    for name in moved:
        if name.endswith(".csv"):
            one, two = (read(tables[name]) for tables in (base, other))
            kept = [column for column in one if not pd.Series([column]).str.contains(drawn)[0]]
            pd.testing.assert_frame_equal(one[kept], two[kept], obj=name)
