"""What lies around a run must not change it: start-up files, kernels, locale, odd paths, an absent reader, no home."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.run import pipeline

SOURCE = """# %% tags=["parameters"]
profile = "cpu"
root = "results"

# %%
import os, sys
import matplotlib.pyplot as plt
import pandas as pd
from enigma.figures.style import figure, table
from enigma.profile import load_profile
from enigma.record.results import Results

@figure("01_first")
def fig1_look(profile):
    drawn, axes = plt.subplots()
    return drawn, str(plt.rcParams["lines.linewidth"])

results = Results(load_profile(profile), root)
results.write_table("look", pd.DataFrame({"text": ["\\u00e4 <b>"]}), fig1_look(None)[1], "01_first")
print("startup", "startup_was_run" in globals(), "secret" in str(sorted(globals())), len("\\u00e4"))
for line in range(3000):
    print(f"a line that somebody may read {line}")
"""
RUN = (
    "import functools, sys; from pathlib import Path; from enigma import __main__ as cli; from enigma.run import pipeline; "
    "pipeline._check_room = lambda *_: None; pipeline.run = functools.partial(pipeline.run, folder=Path(sys.argv[1])); "
    "sys.argv = ['enigma', 'run', 'smoke', '--to', '01_first', '--results', sys.argv[2]]; cli.script()"
)


@pytest.fixture
def one_notebook(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "01_first.py").write_text(SOURCE, encoding="utf-8")
    return folder


def run(folder, results, place, environment=None, options=(), **words):
    command = [*words.pop("before", ()), sys.executable, *options, "-c", RUN, str(folder), str(results)]
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "XDG_CACHE_HOME", "LANG", "LC_ALL")
    }
    return subprocess.Popen(
        command,
        cwd=place,
        env=clean | (environment or {}),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **words,
    )


def nobody():
    """What runs a command as some number without a name, as a container may; nothing where that cannot be had."""
    before = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    return [] if subprocess.run([*before, "true"], capture_output=True, check=False).returncode else before


def test_a_hostile_place_changes_nothing(one_notebook, tmp_path):
    """All at once, and for a user without name or home: each of these changed or ended a run by itself."""
    place = tmp_path / "a {place} of\nits [own] é"
    startup = place / "profile_default" / "startup"
    kernel = place / "kernels" / "python3"
    for made in (startup, kernel, place / "{tmp}"):
        made.mkdir(parents=True)
    (startup / "x.py").write_text("startup_was_run = 1")
    (place / "x.py").write_text("startup_was_run = 1")
    (place / "seaborn.py").write_text("raise SystemExit('code of the working directory')")
    (place / "matplotlibrc").write_text("lines.linewidth: 9\n")
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    names = ("IPYTHONDIR", "JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR")
    environment = dict.fromkeys(names, str(place)) | {
        "PYTHONSTARTUP": str(place / "x.py"),
        "TMPDIR": str(place / "{tmp}"),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "MY_TOKEN": "a-secret-of-mine",
        "ENIGMA_CACHE": os.environ.get("ENIGMA_CACHE", str(Path.home() / ".cache" / "enigma")),
    }
    results = place / "results"
    process = run(one_notebook, results, place, environment, ["-O"], umask=0o077, before=nobody())
    process.stdout.close()  # as `| head` leaves
    error = process.stderr.read().decode(errors="replace")
    assert process.wait(300) == 0, error
    text = (results / "smoke" / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8")
    assert "startup False False 1" in text and "read 2999" in text
    assert "a-secret-of-mine" not in text and str(tmp_path) not in text
    assert json.loads((results / "smoke" / "tables" / "look.json").read_text())["caption"] == "1.5"


def test_a_user_without_a_home_is_asked_for_a_cache(one_notebook, tmp_path):
    if not (before := nobody()):
        pytest.skip("needs user namespaces")
    process = run(one_notebook, tmp_path / "results", tmp_path, {"ENIGMA_CACHE": ""}, before=before)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.decode().startswith("error: ENIGMA_CACHE: found none, and could not determine the home")


WAIT = """
from pathlib import Path
import time
Path("kernel").write_text(str(os.getpid()))
time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(one_notebook, tmp_path):
    """The first holds the folder from its beginning to its end, also while no notebook writes; SIGKILL frees it."""
    with (one_notebook / "01_first.py").open("a", encoding="utf-8") as file:
        file.write(WAIT)
    first, pid = run(one_notebook, tmp_path / "results", tmp_path), tmp_path / "kernel"
    try:
        for killed in ("the kernel", "the run"):
            while not (pid.exists() and pid.read_text()) and first.poll() is None:
                time.sleep(0.1)
            kernel = psutil.Process(int(pid.read_text()))
            pid.unlink()
            if killed == "the kernel":
                second = run(one_notebook, tmp_path / "results", tmp_path)
                error = second.communicate(timeout=300)[1].decode()
                assert second.returncode == 2 and "expected one run of a profile at a time; wait" in error
                kernel.kill()
                error = first.communicate(timeout=300)[1].decode()
                assert first.returncode == 1 and "01_first: the kernel died with" in error.splitlines()[-1]
                first = run(one_notebook, tmp_path / "results", tmp_path)
        first.kill()
        psutil.wait_procs([kernel], timeout=60)
        assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
        results = Results(load_profile("smoke"), tmp_path / "results")
        with results.lock("run"), results.lock():
            pass
    finally:
        first.kill()


def test_too_little_address_space_is_one_line(one_notebook, tmp_path):
    def little():
        resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20, 600 * 2**20))

    process = run(one_notebook, tmp_path / "results", tmp_path, preexec_fn=little)
    _, error = process.communicate(timeout=300)
    assert process.returncode in (1, 2)
    assert "Traceback" not in error.decode(), error.decode()[-2000:]


def test_no_folder_for_temporary_files_is_one_line(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(InputError, match="TMPDIR: found no folder"):
        pipeline.run("smoke", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_kernel_that_does_not_start_is_one_line(one_notebook, tmp_path, monkeypatch):
    def slow(*_):
        raise RuntimeError("Kernel didn't respond in\n300 seconds")

    monkeypatch.setattr(pipeline, "_execute", slow)
    monkeypatch.setattr(pipeline, "_check_room", lambda *_: None)
    with pytest.raises(pipeline.StageFailed, match="01_first: Kernel didn't respond in 300 seconds"):
        pipeline.run("smoke", tmp_path / "results", folder=one_notebook)
