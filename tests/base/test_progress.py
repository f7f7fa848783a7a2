"""Progress without a terminal: what the lines say, and what their rate counts."""

import itertools

import pytest

from kit.base import progress as module
from kit.base.process import TASK
from kit.base.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 30 s at each look, and no terminal."""
    ticks = itertools.count(0, 30)
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.delenv(TASK, raising=False)


def test_lines_count_and_tell_what_is_left(clock, capsys):
    assert list(progress([5, 6, 7], label="fits", unit="fit")) == [5, 6, 7]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fits: 1 of 3 fit, 30.0 s/fit, 60 s left" and lines[2].endswith(", 0 s left")


def test_rate_and_time_left_are_of_the_work_of_this_call(clock, capsys):
    made = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.5}
    assert len(list(progress(range(4), label="fits", unit="fit", worked=made.get))) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["fits: 1 of 4 fit, read back so far", "fits: 2 of 4 fit, read back so far"]
    assert lines[2] == "fits: 3 of 4 fit, 90.0 s/fit, 90 s left", "not 30 s, as of three fits in 90 s"
    assert lines[3] == "fits: 4 of 4 fit, 80.0 s/fit, 0 s left"


def test_a_worker_says_nothing(clock, monkeypatch, capsys):
    monkeypatch.setenv(TASK, "1")
    assert list(progress([1, 2])) == [1, 2] and not capsys.readouterr().out
