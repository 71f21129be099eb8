"""Room: estimates against what there is, before a run; a disk that fills up during one."""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record.files import DiskFull, atomic_folder, atomic_write_text, remove_leftovers
from enigma.record.results import Results
from enigma.run import pipeline, resources
from enigma.run.costs import sizes


@pytest.fixture
def room(monkeypatch, tmp_path):
    """A function that sets what is found, in GB; it has the list of the stages that were run, which do nothing."""
    monkeypatch.setenv("ENIGMA_CACHE", str(tmp_path / "cache"))
    ran = []
    monkeypatch.setattr(pipeline, "_run_stage", lambda stage, *_: ran.append(stage))

    def found(memory=1e6, results=1e6, cache=1e6):
        monkeypatch.setattr(resources, "free_memory", lambda: int(memory * 1e9))
        disks = {tmp_path / "cache": cache}
        monkeypatch.setattr(resources, "free_disk", lambda folder: int(disks.get(folder, results) * 1e9))

    found.ran = ran
    return found


def refusal(tmp_path, name="cpu") -> str:
    with pytest.raises(InputError) as caught:
        pipeline.run(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_too_little_memory_is_refused_before_anything_is_written(room, tmp_path, monkeypatch):
    room(memory=2)
    need = sizes(load_profile("cpu")).memory_gb
    said = f"cpu: memory: found 2.00 GB available; expected about {need:.2f} GB; close other programs"
    assert refusal(tmp_path) == f"{said}, or try the profile smoke"
    room(memory=1.5 * need)
    monkeypatch.setenv("ENIGMA_JOBS", "2")
    assert f"expected about {2 * need:.2f} GB; close other programs, lower --jobs" in refusal(tmp_path)
    monkeypatch.delenv("ENIGMA_JOBS")
    room(memory=0.5)
    assert refusal(tmp_path, "smoke").endswith("or try a smaller batch or fewer tokens")


@pytest.mark.parametrize(("full", "setting"), [("results", "--results"), ("cache", "ENIGMA_CACHE")])
def test_too_little_disk_is_refused_before_anything_is_written(room, tmp_path, full, setting):
    room(**{full: 0.25})
    message = refusal(tmp_path)
    assert message.startswith(f"cpu: disk: found 0.25 GB free there ({setting}); expected about 0.")
    assert message.endswith(f"name another folder with {setting}, or try the profile smoke")


def test_what_an_earlier_attempt_left_counts_as_room(room, tmp_path):
    profile = load_profile("cpu")
    room(results=0)
    Results(profile, tmp_path).folder.mkdir()
    with open(tmp_path / "cpu" / "adapter", "wb") as file:
        file.truncate(10**10)
    pipeline.run("cpu", tmp_path)
    assert room.ran


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert 0 < resources.free_disk(tmp_path / "a" / "b") < 10**15
    (tmp_path / "a").write_bytes(b"x" * 1000)
    assert resources.size_on_disk(tmp_path) == 1000
    assert resources.size_on_disk(tmp_path / "b") == 0


def write(folder: Path, **files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


def test_the_tightest_control_group_decides(tmp_path):
    root, own = tmp_path / "fs", tmp_path / "own"
    own.write_text("0::/user/job\n")
    write(root, memory_stat="inactive_file 0")
    write(root / "user", memory_max=1000, memory_current=900, memory_stat="anon 5\ninactive_file 300")
    write(root / "user" / "job", memory_max="max", memory_current=500, memory_stat="inactive_file 0")
    assert resources.control_group_rooms(own, root) == [400]


def test_a_container_that_sees_the_hosts_path_finds_its_own_limit(tmp_path):
    root, own = tmp_path / "fs", tmp_path / "own"
    own.write_text("12:cpu,cpuacct:/docker/abc\n11:memory:/docker/abc\n1:name=systemd:/docker/abc\n")
    stat = "total_inactive_file 50"
    write(root / "memory", memory_limit_in_bytes=2000, memory_usage_in_bytes=500, memory_stat=stat)
    assert resources.control_group_rooms(own, root) == [1550]
    assert resources.control_group_rooms(tmp_path / "none", root) == []


def test_memory_is_the_gpus_where_there_is_one(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 1000\necho 81079\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resources.free_memory() == 81079 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resources.free_memory() <= resources.psutil.virtual_memory().total
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert resources.free_memory() <= resources.psutil.virtual_memory().total


# ---- a disk that fills up --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file_or_folder_and_no_other(small_disk):
    path, adapter = atomic_write_text(small_disk / "table.csv", "old"), small_disk / "adapter"
    with pytest.raises(DiskFull) as caught:
        atomic_write_text(path, "x" * 2_000_000)
    assert re.fullmatch(
        rf"{small_disk}: No space left: found [\d,]+ bytes free, expected 2,000,000 for table\.csv; free some and give "
        "the same command again; what was there before is intact",
        str(caught.value),
    )
    with atomic_folder(adapter) as target:
        (target / "weights").write_text("old")
    with pytest.raises(DiskFull, match="bytes free"), atomic_folder(adapter) as target:
        (target / "weights").write_bytes(b"x" * 2_000_000)
    assert path.read_text() == (adapter / "weights").read_text() == "old"
    assert sorted(os.listdir(small_disk)) == ["adapter", "table.csv"]


PARAMETERS = '# %% tags=["parameters"]\nprofile = "cpu"\nroot = "results"\n'
FILL = """
# %%
from enigma.record.files import atomic_write_text
atomic_write_text(f"{root}/smoke/tables/claims.csv", "x" * 2_000_000)
"""
# As torch and safetensors do: straight into the file, and an error of their own.
FILL_UNTOLD = """
# %%
from pathlib import Path
try:
    (Path(root) / "smoke" / "weights").write_bytes(b"x" * 2_000_000)
except OSError:
    raise RuntimeError("PytorchStreamWriter failed") from None
"""


@pytest.mark.parametrize(("source", "status"), [(FILL, 2), (FILL_UNTOLD, 1)])
def test_a_run_on_a_full_disk_ends_in_one_line_and_keeps_what_was_there(
    small_disk, tmp_path, monkeypatch, capsys, source, status
):
    old = atomic_write_text(small_disk / "smoke" / "tables" / "claims.csv", "old")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    (notebooks / "01_first.py").write_text(PARAMETERS + source, encoding="utf-8")
    monkeypatch.setattr(pipeline, "_check_room", lambda *_: None)
    monkeypatch.setattr(pipeline, "run", functools.partial(pipeline.run, folder=notebooks))
    assert cli.main(["run", "smoke", "--results", str(small_disk)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["==", "error:"]
    assert re.search(rf"{small_disk}/smoke.*found [\d,]+ bytes free, expected ", lines[1])
    assert old.read_text() == "old"
    assert not list(small_disk.rglob("*.tmp"))


def test_temporary_files_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    keep = atomic_write_text(tmp_path / "tables" / "a.csv", "x")
    folder, link = tmp_path / ".adapter.0123abcd.tmp", tmp_path / ".link.0123abcd.tmp"
    others = [tmp_path / ".notes.tmp", tmp_path / "b.0123abcd.tmp"]
    folder.mkdir()
    for path in (tmp_path / "tables" / ".a.csv.0123abcd.tmp", folder / "weights", *others):
        path.write_text("x")
    link.symlink_to(tmp_path / "tables")
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {keep, *others}
    assert not folder.exists() and not link.is_symlink()
