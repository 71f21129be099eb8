"""What counts as done: an edit makes again what depends on it and nothing else; a damaged file is made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from enigma import stages
from enigma.errors import InputError
from enigma.llm import callbacks
from enigma.llm.callbacks import Watch
from enigma.llm.loading import fingerprint
from enigma.profile import load_profile
from enigma.record.files import atomic_folder
from enigma.record.provenance import code_commit
from enigma.record.results import Results
from enigma.run import pipeline
from enigma.run.status import status
from enigma.run.verify import verify
from enigma.stages import claims, legibility, train

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = ("grpo-s0", "enigma_high-s0", "enigma_low-s0")


@pytest.fixture
def copied(tiny, tmp_path):
    """The finished run in another place, to be damaged."""
    shutil.copytree(tiny.results.root, tmp_path / "results")
    return Results(tiny.profile, tmp_path / "results")


def edited(tiny, tmp_path, *changes):
    """The profile of the finished run with changes: dotted key, value."""
    data = yaml.safe_load(tiny.path.read_text().replace("3e-4", "0.0003"))
    for dotted, value in changes:
        *parents, last = dotted.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        section[last] = value
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return load_profile(path)


def to_do(profile, results) -> dict[str, str]:
    """{stage piece: why} of what is not kept."""
    return {
        f"{line.stage} {line.piece}": line.why
        for line in status(profile, results.root)
        if line.state != "kept"
    }


def test_a_finished_run_has_nothing_to_do_wherever_it_lies_and_whatever_its_times(tiny, copied):
    for number, path in enumerate(sorted(copied.folder.rglob("*"))):
        os.utime(path, (number % 2 * 4e9,) * 2)
    assert to_do(tiny.profile, tiny.results) == to_do(tiny.profile, copied) == {}


def test_running_again_makes_nothing_and_writes_the_same_tables(tiny, copied):
    markers = {path: path.stat().st_mtime_ns for path in copied.pieces.rglob("piece.json")}
    tables = {path.name: path.read_bytes() for path in copied.tables.iterdir()}
    for stage in stages.all_stages():
        stages.run(stage, tiny.profile, copied)
    assert {path: path.stat().st_mtime_ns for path in copied.pieces.rglob("piece.json")} == markers
    assert {path.name: path.read_bytes() for path in copied.tables.iterdir()} == tables


ARM = {"set": "high", "lambda_sami": 0.0, "lambda_ot": 0.5}
EDITS = {  # the change, the first stage with something to make again, and the pieces there
    "resamples, which no model sees": (("sufficiency.resamples", 100), "", set()),
    "another limit": (("benchmarks.limit", 3), "benchmark", {"base", *RUNS}),
    "a new arm": (("arms.extra", ARM), "train", {"extra-s0"}),
    "the learning rate": (("trainer.learning_rate", 0.001), "train", {*RUNS}),
    "the initial weights": (("seeds.initialisation", 5), "select", {"pool-000", "pool-001"}),
}


@pytest.mark.parametrize(("change", "stage", "pieces"), EDITS.values(), ids=EDITS)
def test_an_edit_makes_again_what_depends_on_it(tiny, tmp_path, change, stage, pieces):
    found = to_do(edited(tiny, tmp_path, change), tiny.results)
    first = min((name.split()[0] for name in found), key=stages.ORDER.index, default="")
    assert first == stage
    again = {name.split()[1].split(".")[0] for name in found if name.startswith(f"{stage} ")}
    assert again == pieces


def test_status_says_which_ingredient_changed(tiny, tmp_path):
    found = to_do(edited(tiny, tmp_path, ("arms.grpo.lambda_ot", 0.25)), tiny.results)
    assert "arm.lambda_ot 0.0 -> 0.25" in found["train grpo-s0"]
    assert [name for name in found if name.startswith("train ")] == ["train grpo-s0"]


def test_other_text_of_a_principle_and_other_weights_count_as_changes(tiny, tmp_path):
    pool = yaml.safe_load((REPOSITORY / "enigma" / "data" / "pools" / "default.yaml").read_text())
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    same = edited(tiny, tmp_path, ("principles.pool", "pool.yaml"))
    assert to_do(same, tiny.results) == {}
    pool["principles"][0]["text"] += " Always."
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    assert any(name.startswith("select") for name in to_do(same, tiny.results))
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    spec, found = SimpleNamespace(source="local", id=str(weights.parent), dtype="float32"), []
    for content in (b"weights", b"weightz"):  # as long, and of the same time
        weights.write_bytes(content)
        os.utime(weights, (0, 0))
        found.append(fingerprint(spec))
    assert found[0] != found[1]


def piece_file(results, pattern):
    (found,) = results.pieces.glob(pattern)
    return found


def of_another_arm(path):
    shutil.copy(next(path.parents[2].glob("enigma_high-s0/*/piece.json")), path)


def with_reward(path):
    """Edited, and as long as before."""
    path.write_text(path.read_text().replace("0.0", "0.9"))


FAULTS = {  # of the arm grpo: file, damage, what is told
    "a deleted adapter": ("adapter/adapter_model.safetensors", Path.unlink, "is missing"),
    "an edited reward": ("steps.csv", with_reward, "was changed or is damaged"),
    "a deleted record": ("piece.json", Path.unlink, "its record is missing"),
    "a record of other types": (
        "piece.json",
        lambda path: path.write_text('{"key": 1, "recipe": 1, "files": [], "made": 1}'),
        "its record is missing or damaged",
    ),
    "a record of another arm": ("piece.json", of_another_arm, "its record is of other work"),
    "a file that was added": (
        "adapter",
        lambda path: (path / "adapter_more.json").write_text("{}"),
        "adapter/adapter_more.json was added",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name, tiny, copied):
    file, damage, words = FAULTS[name]
    damage(piece_file(copied, f"train/grpo-s0/*/{file}"))
    assert words in to_do(tiny.profile, copied)["train grpo-s0"]


def test_what_is_faulty_is_made_again_with_the_same_numbers(tiny, copied):
    before = copied.read_table("training").drop(columns=["seconds", "peak_memory_gb"])
    weights = piece_file(copied, "train/grpo-s0/*/adapter/adapter_model.safetensors").read_bytes()
    with_reward(piece_file(copied, "train/grpo-s0/*/steps.csv"))
    stages.run(train, tiny.profile, copied)
    assert to_do(tiny.profile, copied) == {}
    assert piece_file(copied, "train/grpo-s0/*/adapter/adapter_model.safetensors").read_bytes() == weights
    after = copied.read_table("training").drop(columns=["seconds", "peak_memory_gb"])
    assert after.equals(before)


class Cut(Watch):
    """A run that is killed after its first checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(tiny, copied, tmp_path, monkeypatch, damaged):
    """From its last whole checkpoint; one that was edited, even without changing its length, is passed over."""
    profile = edited(tiny, tmp_path, ("trainer.save_steps", 1))
    folder = copied.store.need(train.piece(profile, copied.store, "enigma_high", 0))
    names = ("adapter/adapter_model.safetensors", "rollouts.jsonl")
    before = [(folder / name).read_bytes() for name in names]
    (folder / "piece.json").unlink()
    flushed = []
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "Watch", Cut)
        patch.setattr(callbacks, "flush", flushed.append)
        with pytest.raises(KeyboardInterrupt):
            train.train(profile, copied.store, "enigma_high", 0)
    [checkpoint] = (folder.with_suffix(".work") / "checkpoints").glob("checkpoint-*")
    assert flushed == [checkpoint] and checkpoint.name == "checkpoint-1"
    if damaged:
        weights = (checkpoint / "adapter_model.safetensors").read_bytes()
        (checkpoint / "adapter_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    key = train.piece(profile, copied.store, "enigma_high", 0).key
    assert callbacks.last_checkpoint(checkpoint.parent, key) == (None if damaged else checkpoint)
    train.train(profile, copied.store, "enigma_high", 0)
    assert [(folder / name).read_bytes() for name in names] == before
    assert not checkpoint.exists() and to_do(profile, copied) == {}


def test_a_sidecar_names_the_commit_that_made_the_rows(tiny, copied):
    path = piece_file(copied, "legibility/grpo-s0/*/piece.json")
    marker = json.loads(path.read_text())
    path.write_text(json.dumps(marker | {"made": marker["made"] | {"commit": "of an older day"}}))
    assert dict(verify(tiny.profile, copied))["rows of legibility"] == (
        "were not made by what the sidecar of legibility names"
    )
    stages.run(legibility, tiny.profile, copied)
    assert "of an older day" in {one["commit"] for one in copied.sidecar("tables", "legibility")["made"]}


def test_a_piece_or_a_checkpoint_is_not_written_through_a_link(tiny, copied, tmp_path):
    """What lies there is somebody else's: older checkpoints, for one, are removed."""
    outside = tmp_path / "outside"
    (outside / "checkpoint-1").mkdir(parents=True)
    piece = train.piece(tiny.profile, copied.store, "grpo", 0)
    place = copied.store.place(piece)
    work = place.with_suffix(".work")
    work.mkdir()
    for link in (work / "checkpoints", work, place, place.parent):
        shutil.rmtree(link, ignore_errors=True)
        link.symlink_to(outside)
        (place / "piece.json").unlink(missing_ok=True)
        with pytest.raises(InputError, match="found a link out of"):
            train.train(tiny.profile, copied.store, "grpo", 0)
        assert [path.name for path in outside.iterdir()] == ["checkpoint-1"]
        link.unlink()


def test_tables_of_an_older_profile_are_not_mixed_with_newer_ones(tiny, copied, tmp_path):
    """The pieces are all kept: what is skipped is refused for its tables, and each file is told as of another."""
    other = edited(tiny, tmp_path, ("description", "Another."))
    mine = Results(other, copied.root)
    with pytest.raises(InputError, match="was made with profile .* run again from notebook 01_select"):
        pipeline.check_skipped(other, mine, ["01_select"])
    faults = {mine.fault("figures", "fig3_training"), mine.fault("tables", "claims")}
    assert faults == {"was made with another profile"}
    with pytest.raises(InputError, match="was made with profile"):
        stages.run(claims, other, mine)
    (copied.tables / "geometry.csv").unlink()
    with pytest.raises(InputError, match="is missing"):
        pipeline.check_skipped(tiny.profile, copied, ["04_geometry"])


def test_a_leftover_of_a_killed_writer_goes_and_a_living_ones_stays(tiny, copied):
    piece = train.piece(tiny.profile, copied.store, "grpo", 0)
    place = copied.store.place(piece)
    (dead, alive) = (place.with_name(f".{key}.0123abcd.tmp") for key in (place.name, "f" * 16))
    for path in (dead, alive):
        (path / "adapter").mkdir(parents=True)
    (place / "piece.json").unlink()
    copied.store.get(piece, lambda folder: (folder / "x").write_text("x"))
    assert alive.is_dir() and not dead.exists()


def test_a_piece_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Of a finished folder each file and each folder is flushed, and then the folder that it lies in."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    with atomic_folder(tmp_path / "piece") as new:
        (new / "adapter").mkdir()
        (new / "adapter" / "weights").write_text("x")
    assert {str(new / "adapter" / "weights"), str(new / "adapter"), str(new)} < set(flushed)
    assert flushed[-1] == str(tmp_path)


def test_what_is_published_in_a_clone_is_not_taken_for_done(tiny, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{REPOSITORY}", clone], check=True)
    shutil.copytree(tiny.results.folder, clone / "results" / "reference" / "tiny")
    command = [sys.executable, "-m", "enigma", "status", str(tiny.path)]
    environment = os.environ | {"PYTHONPATH": str(clone)}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=True)
    assert "not made yet" in done.stdout and "kept" not in done.stdout


def test_the_commit_is_told_of_a_clone_of_another_user_and_within_a_hook(tmp_path, monkeypatch):
    clone, other = tmp_path / "clone", tmp_path / "other"
    for folder in (clone, other):
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        (folder / "code.py").write_text("x = 1")
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", folder, "add", "code.py"], check=True)
        subprocess.run(["git", *who, "-C", folder, "commit", "--quiet", "-m", folder.name], check=True)
    head = subprocess.check_output(["git", "-C", clone, "rev-parse", "HEAD"], text=True).strip()
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    subprocess.run(["git", "-C", clone, "config", "core.fsmonitor", hook], check=True)
    if os.geteuid() == 0:
        for path in (clone, *clone.rglob("*")):
            os.chown(path, 65534, 65534)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_commit(clone / "code.py") == head
    assert not (tmp_path / "ran").exists()
