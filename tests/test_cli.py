"""The command line: exit status and one line for every error."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.profile import builtin_names, load_profile
from enigma.run import pipeline


@pytest.mark.parametrize("name", builtin_names())
def test_check_says_what_a_profile_amounts_to(name, capsys):
    assert cli.main(["check", name, "--json"]) == 0
    rows = {row["what"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert rows[f"{name}: runs"] == len(load_profile(name).runs())
    assert rows[f"{name}: tokens_per_step"] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("file: key: found 1;\nexpected 2"), 2),
        (pipeline.StageFailed("01_select: the kernel died"), 1),
        (PermissionError(13, "Permission denied", "results/cpu/x"), 2),
        (KeyboardInterrupt(), 130),
        (cli.Terminated(), 143),
    ],
)
def test_exit_status(error, status, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    assert cli.main(["run", "cpu"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def _closed(*_, **__):
    os.write(-1, b"")


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=_closed, reconfigure=_closed)])
def test_the_exit_status_stands_where_standard_error_is_closed(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["cite", "nonsense"]) == 2


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "cpu"])


@pytest.mark.parametrize("command", ["--version", "select --help"])
def test_a_reader_who_leaves_is_no_error(command):
    """As in `enigma status | head`."""
    read, write = os.pipe()
    os.close(read)
    code = [sys.executable, "-m", "enigma", *command.split()]
    done = subprocess.run(code, stdout=write, stderr=subprocess.PIPE, timeout=300, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
