"""Progress: every item comes through, and a log is not flooded."""

import pytest

from enigma.record import progress
from enigma.record.progress import clock, headless, track


def test_lines_are_few_and_the_first_and_last_always_there(monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    assert list(track(range(100), "work", unit="step")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == ["work: 0/100 step", "work: 100/100 step"]


def test_work_within_work_moves_no_cursor(monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    for _ in track(range(2), "outer"):
        list(track(range(2), "inner"))
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_lines_come_in_between_where_work_is_slow(monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    list(track(iter(range(3)), "work"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines][:4] == [f"work: {n}/? it" for n in range(4)]


def test_a_failure_says_where_it_stopped_and_passes_on(monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")

    def items():
        yield 1
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(track(items(), "work", total=5))
    assert capsys.readouterr().err.splitlines()[-1].startswith("work: 1/5 it")


def test_a_log_file_is_headless_and_a_kernel_is_not(monkeypatch):
    monkeypatch.delenv("ENIGMA_HEADLESS", raising=False)
    monkeypatch.delitem(progress.sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    assert headless()
    monkeypatch.setitem(progress.sys.modules, "ipykernel", progress)
    assert not headless()


def test_live_work_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("ENIGMA_HEADLESS", "0")
    assert list(track([1, 2, 3], "work")) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
