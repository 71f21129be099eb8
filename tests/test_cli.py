"""The command line: exit status and one line for every error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.profile import BUILTIN
from enigma.run import pipeline


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu", "paper"])
def test_check_prints_the_sizes(name, capsys):
    assert cli.main(["check", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name} (")
    assert "tokens per step" in out
    assert "peak memory" in out


def test_check_of_the_paper_profile_says_what_it_fetches_and_from_which_revision(capsys):
    cli.main(["check", "paper"])
    assert "google/gemma-3-1b-it at dcc83ea841ab" in capsys.readouterr().out


def test_check_counts_the_default_profile_by_hand(capsys):
    cli.main(["check", "cpu"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tokens", "per", "step,", "at", "most", "768"] in lines
    assert ["runs", "(arms", "x", "seeds)", "4", "(4", "x", "1)"] in lines


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_bad_profile_is_one_line_and_status_2(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    text = (BUILTIN / "cpu.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("max_steps: 15", "max_steps: many"), encoding="utf-8")
    assert cli.main([command, "mine.yaml"]) == 2
    out, err = capsys.readouterr()
    assert err == (
        "error: mine.yaml: trainer.max_steps: found 'many'; expected a valid integer; "
        "correct it, see enigma/profiles/cpu.yaml\n"
    )
    assert out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_sets_larger_than_half_the_pool_are_refused(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    text = (BUILTIN / "cpu.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("set_size: 4", "set_size: 40"), encoding="utf-8")
    assert cli.main(["check", str(path)]) == 2
    assert "principles.set_size: found 40; expected at most half of the pool's" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(InputError):
        cli.main(["check", "nowhere", "--debug"])


def test_run_passes_its_arguments_on(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        pipeline, "run", lambda *args, **options: given.append((args, options)) or "results/cpu"
    )
    assert cli.main(["run", "cpu", "--results", "elsewhere", "--from", "03_benchmark"]) == 0
    assert given == [(("cpu", "elsewhere"), {"first": "03_benchmark", "last": None})]
    assert capsys.readouterr().out == "results/cpu\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("file: key: found 1;\nexpected 2"), 2),
        (pipeline.StageFailed("01_select: the kernel died"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(error, status, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    assert cli.main(["run", "cpu"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "cpu"])


@pytest.mark.parametrize("arguments", [[], ["chek", "cpu"], ["check"], ["check", "cpu", "--jobs"]])
def test_wrong_arguments_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


def test_the_module_runs_and_is_quick_to_refuse():
    done = subprocess.run(
        [sys.executable, "-m", "enigma", "check", "nowhere"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: profile 'nowhere'")
    assert "Traceback" not in done.stderr
