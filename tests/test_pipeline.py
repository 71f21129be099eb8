"""The pipeline on tiny notebooks: parameters, failures, dead kernels, records, no path of this machine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nbformat
import pytest

from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.run import pipeline

PARAMETERS = '# %% tags=["parameters"]\nprofile = "cpu"\nroot = "results"\n'
GOOD = (
    PARAMETERS
    + """
# %%
import os, sys
from pathlib import Path
print("headless", os.environ["ENIGMA_HEADLESS"], profile)
folder = Path(root) / "smoke"
print(Path(root).absolute(), Path.home() / "x", sys.prefix, "/chroot/home")
folder.mkdir(parents=True, exist_ok=True)
(folder / "made.txt").write_text(profile)
"""
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory and a folder of notebooks apart from it."""
    for name in ("here", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def notebooks(place, **sources):
    for name, source in sources.items():
        (place / "notebooks" / f"{name.lstrip('n')}.py").write_text(source, encoding="utf-8")
    return place / "notebooks"


def run(place, root="out", **options):
    return pipeline.run("smoke", root, folder=place / "notebooks", **options)


def test_a_notebook_runs_with_its_parameters_and_is_recorded(place, capfd):
    source = notebooks(place, n01_first=GOOD) / "01_first.py"
    folder = run(place)
    assert (folder / "made.txt").read_text() == "smoke"
    assert source.read_text(encoding="utf-8") == GOOD
    assert sorted(path.name for path in (place / "notebooks").iterdir()) == ["01_first.py"]
    saved = nbformat.read(folder / "notebooks" / "01_first.ipynb", as_version=4)
    assert "headless 1 smoke" in json.dumps(saved)
    assert saved.metadata.papermill.parameters == {"profile": "smoke", "root": "out"}
    stage = json.loads((folder / "stages.json").read_text())["01_first"]
    assert stage["status"] == "done"
    assert stage["seconds"] > 0
    assert 0.02 < stage["peak_memory_gb"] < 2
    assert stage["profile_hash"] == load_profile("smoke").hash
    assert "headless 1 smoke" in capfd.readouterr().out


def test_executed_notebooks_carry_no_path_of_this_machine(place):
    notebooks(place, n01_first=GOOD)
    folder = run(place, root=place / "elsewhere" / "out")
    text = (folder / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8")
    for path in (
        place,
        Path.home() / "x",
        Path(tempfile.gettempdir()),
        pipeline.REPOSITORY,
        pipeline.sys.prefix,
    ):
        assert f"{path}" not in text.replace("/chroot/home", "")
    assert "/chroot/home" in text
    assert '"root": "out"' in text


def test_paths_in_coloured_tracebacks_go_and_images_stay():
    replacements = pipeline._replacements({"profile": "smoke", "root": "results"})
    home = str(Path.home())
    outputs = {"traceback": [f"\x1b[32m{home}/a.py\x1b[0m", f"{home}backup/b"], "image/png": f"AB{home}/CD"}
    clean = pipeline._without_paths(outputs, replacements)
    assert clean["traceback"] == ["\x1b[32m~/a.py\x1b[0m", f"{home}backup/b"]
    assert clean["image/png"] == f"AB{home}/CD"


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (
            '# %% tags=["parameters"]\nprofile = "cpu"\nrooot = "results"\n',
            r"unknown parameter 'root'.*profile, rooot",
        ),
        ("# %%\nprofile, root = 1, 2\n", "found 0 cells tagged parameters"),
        (PARAMETERS + PARAMETERS, "found 2 cells tagged parameters"),
    ],
)
def test_parameters_that_no_cell_knows_stop_before_anything_runs(place, cell, names):
    notebooks(place, n01_first=GOOD, n02_second=cell)
    with pytest.raises(InputError, match=rf"02_second\.py: {names}"):
        run(place)
    assert not list((place / "here").iterdir())


def test_a_cell_that_fails_names_stage_and_error_and_keeps_the_notebook(place):
    notebooks(place, n01_first=PARAMETERS + "# %%\nprint('before')\n# %%\n1 / 0\n", n02_second=GOOD)
    with pytest.raises(
        pipeline.StageFailed, match=r"01_first: cell \d+ stopped with ZeroDivisionError"
    ) as caught:
        run(place)
    assert "\n" not in str(caught.value)
    folder = place / "here" / "out" / "smoke"
    assert "ZeroDivisionError" in (folder / "notebooks" / "01_first.ipynb").read_text()
    assert json.loads((folder / "stages.json").read_text())["01_first"]["status"] == "failed"
    assert not (folder / "notebooks" / "02_second.ipynb").exists()


def test_bad_input_found_in_a_notebook_is_bad_input(place):
    source = (
        PARAMETERS + "# %%\nfrom enigma.errors import InputError\nraise InputError('file: key: found 1')\n"
    )
    notebooks(place, n01_first=source)
    with pytest.raises(InputError, match="^01_first: file: key: found 1$"):
        run(place)


def test_a_dead_kernel_is_told_with_its_peak_and_a_smaller_profile(place):
    source = (
        PARAMETERS
        + """
# %%
import os, signal, time
ballast = b"x" * 300_000_000
time.sleep(1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    notebooks(place, n01_first=source)
    with pytest.raises(pipeline.StageFailed, match=r"01_first: the kernel died with 0\.[3-9] GB"):
        run(place)
    stages = json.loads((place / "here" / "out" / "smoke" / "stages.json").read_text())
    assert stages["01_first"]["peak_memory_gb"] >= 0.3
    assert "the profile smoke" in pipeline._dead_kernel("02_train", load_profile("cpu"), 9.0)
    assert "a smaller batch" in pipeline._dead_kernel("02_train", load_profile("smoke"), 9.0)


@pytest.mark.parametrize("first", ["02_second", "second", "02", "2"])
def test_from_a_stage(place, first):
    paths = pipeline.stage_paths(notebooks(place, n01_first=GOOD, n02_second=GOOD))
    assert paths[pipeline._position(paths, first, "--from")].stem == "02_second"


def test_a_stage_or_folder_that_is_not_there(place):
    with pytest.raises(InputError, match="found no notebooks"):
        run(place)
    notebooks(place, n01_first=GOOD)
    with pytest.raises(InputError, match="found '03_third'; expected one of 01_first"):
        run(place, first="03_third")


def test_attempts_add_up_until_the_profile_changes(place):
    class Results:
        folder = place / "here"
        profile = load_profile("smoke")

    results = Results()
    pipeline._record(results, "01_first", 10.0, 2.0, "failed")
    pipeline._record(results, "01_first", 3.0, 1.0, "done")
    pipeline._record(results, "02_second", 4.0, 1.5, "done")
    stages = json.loads((results.folder / "stages.json").read_text())
    assert (stages["01_first"]["seconds"], stages["01_first"]["last_seconds"]) == (13.0, 3.0)
    assert (stages["01_first"]["peak_memory_gb"], stages["01_first"]["attempts"]) == (2.0, 2)
    results.profile = load_profile("cpu")
    pipeline._record(results, "02_second", 5.0, 1.0, "done")
    stages = json.loads((results.folder / "stages.json").read_text())
    assert list(stages) == ["02_second"]
    assert stages["02_second"]["seconds"] == 5.0


def test_the_repositorys_notebooks_take_the_pipelines_parameters():
    for path in pipeline.stage_paths():
        pipeline._prepared(path, {"profile": "cpu", "root": "results"})
