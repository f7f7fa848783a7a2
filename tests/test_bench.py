"""The benchmarks: every way has its row, and a way that does other work is refused. No time is tested."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bench.__main__ import COLUMNS, GROWTH_COLUMNS, format_table, main
from tests.bench.measure import Case, NotInstalled, OtherWork, Task, run_case, same_values

QUICK = {"reading": [2], "features": [2, 1, 1], "taught": [1], "submission": [2]}  # ways of each case


def _sums(values: list[float]):
    def way(folder: Path, n: int) -> Task:
        return Task(lambda: np.cumsum(values), lambda sums: {"sums": sums}, lambda sums, measured: f"{len(sums)} sums")

    return way


def _absent(folder: Path, n: int) -> Task:
    raise NotInstalled("not installed (abacus)")


CASES = (
    Case(__name__, "alike", {"ours": _sums([1, 2, np.nan]), "other": _sums([1, 2, np.nan]), "abacus": _absent}),
    Case(__name__, "other work", {"ours": _sums([1, 2]), "other": _sums([1, 2.1])}),
    Case(__name__, "breaks", {"ours": _sums(["a"])}),
)


def test_the_table_has_a_row_for_every_way(tmp_path, capsys):
    arguments = ["--posts", "300", "--rounds", "1", "--work", str(tmp_path), "--markdown", "--stage", *QUICK]
    assert main(arguments) == 0
    header, rule, *rows = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in capsys.readouterr().out.splitlines()
    ]
    assert tuple(header) == COLUMNS and len(rule) == len(COLUMNS)
    assert [row[0] for row in rows] == [stage for stage, ways in QUICK.items() for _ in range(sum(ways))]
    assert all(row[3] == "300" for row in rows)
    numbers = np.array([[float(cell.replace(",", "")) for cell in row[4:12]] for row in rows])
    assert (numbers[:, [0, 1, 3, 4, 5, 7]] > 0).all()
    assert (numbers[:, 4] >= numbers[:, 3]).all(), "peak below what was there before"
    assert [row[9] == "1.00" for row in rows if row[2] == "ours"] == [True] * 6


def test_growth_runs_ours_at_every_size(tmp_path, capsys):
    arguments = ["--growth", "100", "50", "--rounds", "1", "--work", str(tmp_path), "--stage", "submission"]
    assert main(arguments) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert [name in header for name in GROWTH_COLUMNS] == [True] * len(GROWTH_COLUMNS)
    assert [row.split()[0] for row in rows] == ["submission"] * 2
    assert " 50 " in rows[0] and " 100 " in rows[1]


def test_growth_needs_a_stage_that_is_measured_in_posts(monkeypatch, capsys):
    module = SimpleNamespace(CASES=[replace(CASES[0], size="items")])  # the stage itself would import torch
    monkeypatch.setitem(sys.modules, "tests.bench.clip_ft", module)
    assert main(["--growth", "--stage", "clip_ft"]) == 1
    assert "in posts" in capsys.readouterr().err


def test_ways_that_agree_and_one_that_is_not_there(tmp_path):
    told = []
    measured = run_case(CASES[0], tmp_path, 3, rounds=2, threads=1, tell=told.append)
    assert list(measured) == ["ours", "other", "abacus"]
    assert measured["ours"].note == "3 sums" and measured["ours"].peak_mb > 0
    assert measured["abacus"].skipped == "not installed (abacus)"
    assert len(told) == 5, "two turns each, one to find that a package is missing"


def test_a_way_with_another_result_is_refused(tmp_path):
    with pytest.raises(OtherWork, match=r"'other' does other work than 'ours': sums\[1\] is 3.1, not 3 "):
        run_case(CASES[1], tmp_path, 2, rounds=1, threads=1, tell=lambda line: None)


def test_a_way_that_fails_shows_its_message(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)'ours' failed \(1\).*TypeError"):
        run_case(CASES[2], tmp_path, 1, rounds=1, threads=1, tell=lambda line: None)


@pytest.mark.parametrize("other, word", [
    ({}, "missing"), ({"a": np.zeros(3)}, "shape"), ({"a": np.array([1.0, 0.0])}, "not nan"),
    ({"a": np.array([1.001, np.nan])}, "1.001"), ({"a": np.array([1.0, np.nan]), "more": np.zeros(1)}, ""),
])  # fmt: skip
def test_differences_are_named(other, word):
    difference = same_values({"a": np.array([1.0, np.nan])}, other)
    assert word in difference and bool(difference) == bool(word)


def test_missing_cells_stay_empty():
    rows = [{"stage": "a", "s": "1.0"}, {"stage": "bb"}]
    assert format_table(("stage", "s", "note"), rows, markdown=False) == "stage    s  note\na      1.0\nbb"
    assert format_table(("stage", "s"), rows, markdown=True).splitlines()[1] == "| ----- | --: |"
