"""Progress: every item comes through, and a log is not flooded."""

import pytest

from enigma.record import progress
from enigma.record.progress import clock, headless, progress_line, track


@pytest.fixture
def timer(monkeypatch):
    """A clock that moves only when told, and headless output."""
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(items, seconds, timer, **options):
    seen = []
    for item in track(items, "work", **options):
        timer[0] += seconds
        seen.append(item)
    return seen


def test_lines_come_at_most_every_ten_seconds_and_the_first_and_last_always(timer, capsys):
    assert run(range(100), 1.0, timer, unit="step") == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: start, 100 step"
    assert lines[1] == "work: 10/100 (10%) step, 0:10, 1 step/s, 1:30 left"
    assert lines[-1] == "work: 100/100 (100%) step, 1:40, 1 step/s, done"
    assert len(lines) == 1 + 9 + 1


def test_fast_work_is_two_lines(timer, capsys):
    run(range(10_000), 0.0001, timer)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_unknown_total_has_a_rate_and_no_time_left(timer, capsys):
    run(iter(range(3)), 20.0, timer)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "work: 1 it, 0:20, 20 s/it"
    assert not any("left" in line for line in lines)


def test_empty_work_ends(timer, capsys):
    assert run([], 1.0, timer) == []
    assert capsys.readouterr().err.splitlines()[-1].endswith("done")


def test_a_failure_says_where_it_stopped_and_passes_on(timer, capsys):
    def items():
        yield 1
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(items(), 1.0, timer, total=5)
    assert capsys.readouterr().err.splitlines()[-1] == "work: 1/5 (20%) it, 0:01, 1 it/s, 0:04 left, stopped"


def test_environment_decides_first(monkeypatch):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    assert headless()
    monkeypatch.setenv("ENIGMA_HEADLESS", "0")
    assert not headless()


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


def test_line_before_the_first_item_has_no_rate():
    assert progress_line("work", 0, 4, 0.0, "it") == "work: 0/4 (0%) it, 0:00"
