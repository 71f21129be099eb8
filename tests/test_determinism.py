"""The same profile, seed and machine give the same tables; each purpose has a seed of its own.

Stages are run as functions, without notebooks. What depends on the machine is left out by name (`MEASURED`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from enigma.profile import BUILTIN, Seeds, load_profile
from enigma.record.results import Results

# Time and memory, measured as the run goes on: columns of `training`, and a table of its own.
MEASURED = {"training": ["seconds", "peak_memory_gb"], "benchmark_speed": ["seconds", "items_per_second"]}
# Numbers in tables have six digits. Between one thread and two, sums are added up in another order; two hidden layers
# and two steps of training leave a difference of at most this share of a column's largest number.
THREADS = 1e-3

STAGES = """
import sys
from pathlib import Path
from enigma.stages import benchmark
from enigma.stages import claims
from enigma.stages import geometry
from enigma.stages import select as sufficiency
from enigma.stages import train as training
from enigma.profile import load_profile
from enigma.record.results import Results
profile = load_profile(sys.argv[1])
results = Results(profile, sys.argv[2])
for stage in (sufficiency, training, benchmark, geometry, claims):
    stage.run(profile, results)
results.write_record()
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
            subprocess.run(
                [sys.executable, "-c", STAGES, folder / "tiny.yaml", root],
                cwd=folder,
                env=environment,
                check=True,
                capture_output=True,
                timeout=600,
            )
            paths = [
                path
                for path in (folder / root / "tiny" / "tables").iterdir()
                if path.suffix in (".csv", ".yaml")
            ]
            self.done[name] = {path.name: unmeasured(path) for path in sorted(paths)}
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


@pytest.mark.slow
def test_the_evaluation_seed_moves_what_is_measured_after_training_alone(runs):
    moved = changed(runs.tables("first"), runs.tables("evaluation", {"evaluation": 1}))
    untouched = {
        "sufficiency.csv",
        "selection.yaml",
        "training.csv",
        "training_groups.csv",
        "training_checks.csv",
    }
    assert not untouched & set(moved)
    assert {"legibility.csv", "benchmark_items.csv", "directions.csv"} <= set(moved)


# ---- one seed for each purpose -------------------------------------------------------------------------------------

# What moves with a seed: what is drawn with it, and what the model then makes of that.
WRITTEN = {"stage 1 completions", "training", "intervals", "interval ends"}
MOVES = {
    "data": WRITTEN | {"questions", "order of training", "held-out completions"},
    "initialisation": WRITTEN | {"model", "adapter", "held-out completions"},
    "sampling": WRITTEN,
    "bootstrap": {"interval ends"},
    "evaluation": {"held-out completions", "benchmark items", "tokens"},
    "runs": {"order of training", "adapter", "training"},
}


@pytest.fixture(scope="module")
def draws(tmp_path_factory):
    """A function of seeds that hashes everything that the smoke profile draws with them."""
    from enigma.data.principles import Principle
    from enigma.stages import benchmark, geometry
    from enigma.stages import select as sufficiency
    from enigma.stages import train as training

    principles = [Principle(f"p{i}", f"do thing {i}") for i in range(4)]
    smoke = load_profile("smoke")

    def draw(**seeds) -> dict[str, str]:
        run_seed = seeds.pop("runs", 0)
        profile = smoke.model_copy(
            update={
                "seeds": smoke.seeds.model_copy(update=seeds),
                "trainer": smoke.trainer.model_copy(update={"max_steps": 2}),
            }
        )
        results = Results(profile, tmp_path_factory.mktemp("draws"))
        trainer = training._trainer(
            profile, "enigma_high", run_seed, principles, results.folder, training.Recorder("")
        )
        weights = {name: array_hash(value) for name, value in trainer.model.named_parameters()}
        folder = training.train(profile, results, "enigma_high", run_seed, principles)
        steps = pd.read_csv(folder / "steps.csv").drop(columns=MEASURED["training"])
        rollouts = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
        pool = sufficiency.measure_pool(profile, principles, results.runs / "select")
        boot = dict(resamples=200, seed=profile.seeds.bootstrap)
        table = sufficiency.sufficiency_table(pool, {}, boot)
        carried = training._carried(profile, None, principles)
        ends = [column for column in table if column.endswith(("_low", "_high"))]
        found = {
            "questions": [carried["questions"], sorted({row["question"] for row in rollouts})],
            "order of training": [[row["question"], row["principle"]] for row in rollouts],
            "model": [value for name, value in weights.items() if "lora" not in name],
            "adapter": [value for name, value in weights.items() if "lora" in name],
            "stage 1 completions": pool.questions,
            "training": [steps.to_csv(), [row["completion"] for row in rollouts]],
            "intervals": table.drop(columns=ends).to_csv(),
            "interval ends": table[ends].to_csv(),
            "held-out completions": [carried["texts"], carried["policy"]],
            "benchmark items": benchmark.draw_items(100, 4, profile.seeds.evaluation),
            "tokens": [
                picked.tolist() for picked in geometry._pick_tokens([[0] * 600], profile.seeds.evaluation)
            ],
        }
        return {name: hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in found.items()}

    return draw


def array_hash(values) -> str:
    return hashlib.sha256(values.detach().numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def at_zero(draws):
    return draws()


@pytest.mark.slow
@pytest.mark.parametrize("purpose", MOVES)
def test_a_purposes_seed_moves_what_belongs_to_it_and_nothing_else(purpose, draws, at_zero):
    now = draws(**{purpose: 1})
    assert {name for name in now if now[name] != at_zero[name]} == MOVES[purpose]


@pytest.mark.slow
def test_drawing_again_moves_nothing(draws, at_zero):
    assert draws() == at_zero


def test_the_run_record_and_every_sidecar_name_every_seed(tmp_path):
    profile = load_profile("smoke")
    results = Results(profile, tmp_path)
    record = json.loads(results.write_record().read_text())
    table = results.write_table("claims", pd.DataFrame({"value": [1.0]}), "A caption.")
    sidecar = json.loads(table.with_suffix(".json").read_text())
    assert record["seeds"] == sidecar["seeds"] == profile.seeds.model_dump()
    assert set(record["seeds"]) == set(Seeds.model_fields) == {*MOVES}
