"""One table of what takes how long and how much memory, ours beside other ways to do the same.

    python -m tests.bench --posts 20000                        every stage
    python -m tests.bench --posts 20000 --stage reading        one of them
    python -m tests.bench --growth                             ours alone at 5,000 to 320,000 posts

Each way runs in a process of its own, set up before the clock starts; the ways take turns, and the best of each counts.
MB are resident MiB of that process, "before" when the work begins and "peak" at most during it. "time / ours" and its
like above 1 speak for ours; where other programs use the cores, "CPU / ours" says more than the time. All data are
synthetic, models have random weights, and everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from tests.bench import STAGES
from tests.bench.measure import Case, Measured, OtherWork, run_case

GROWTH = (5_000, 20_000, 80_000, 320_000)
COLUMNS = (
    "stage", "work", "way", "n", "s", "per s", "CPU s", "before MB", "peak MB", "time / ours", "CPU / ours", "peak / ours",
    "note",
)  # fmt: skip
GROWTH_COLUMNS = ("stage", "work", "posts", "s", "before MB", "peak MB", "time / (n log n)")
NUMBERS = {*COLUMNS[3:-1], *GROWTH_COLUMNS[2:]}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 not: the message says why)."""
    options = _parse(arguments)
    work = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    cases = [case for stage in options.stage for case in importlib.import_module(f"tests.bench.{stage}").CASES]
    if options.growth is not None and not (cases := [case for case in cases if case.size == "posts"]):
        print("error: --growth is for stages that are measured in posts", file=sys.stderr)
        return 1
    with work as folder:
        folder = Path(folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if options.growth is None:
                columns, rows = COLUMNS, [row for case in cases for row in _case_rows(case, folder, options)]
            else:
                columns, rows = GROWTH_COLUMNS, [row for case in cases for row in _growth_rows(case, folder, options)]
        except (OtherWork, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(format_table(columns, rows, options.markdown))
    return 0


def format_table(columns: tuple[str, ...], rows: list[dict[str, str]], markdown: bool) -> str:
    """The rows (texts by column name, "" where missing) as aligned text, or as a table in Markdown; numbers to the right."""
    cells = [list(columns), *([row.get(name, "") for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [name in NUMBERS for name in columns]
    lines = [
        [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)]
        for line in cells
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--posts", type=int, default=20_000, help="posts of the stages that are ours alone or fast")
    parser.add_argument("--rival-posts", type=int, help="posts where the other way is slow (default: at most 20,000)")
    parser.add_argument("--items", type=int, default=256, help="images, texts or samples that models see")
    parser.add_argument(
        "--stage", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=", ".join(STAGES)
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    parser.add_argument("--work", type=Path, help="folder that keeps the material for the next call")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--growth", type=int, nargs="*", metavar="POSTS",
        help=f"ours alone at several sizes (default: {' '.join(map(str, GROWTH))}), and how time grows",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.rival_posts = options.rival_posts or min(options.posts, 20_000)
    return options


def _case_rows(case: Case, folder: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    """A row for each way of a case."""
    n = getattr(options, case.size)
    measured = run_case(case, folder, n, options.rounds, options.threads, tell=_tell)
    ours = next(iter(measured.values()))
    return [
        {"stage": case.stage, "work": case.name, "way": name, "n": f"{n:,}"} | _way_row(one, ours, n)
        for name, one in measured.items()
    ]


def _way_row(one: Measured, ours: Measured, n: int) -> dict[str, str]:
    if one.skipped:
        return {"note": one.skipped}
    pairs = {"time": (one.seconds, ours.seconds), "CPU": (one.cpu_s, ours.cpu_s), "peak": (one.peak_mb, ours.peak_mb)}
    ratios = {f"{name} / ours": f"{other / own:.2f}" for name, (other, own) in pairs.items()}
    return _needed(one) | {"per s": _digits(n / one.seconds), "CPU s": _digits(one.cpu_s), "note": one.note} | ratios


def _growth_rows(case: Case, folder: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    """A row for each size; growth is the time over that of the size before, over what n log n would make of it."""
    rows, before = [], None
    for n in sorted(options.growth or GROWTH):
        one = next(
            iter(run_case(case, folder, n, options.rounds, options.threads, only_ours=True, tell=_tell).values())
        )
        row = {"stage": case.stage, "work": case.name, "posts": f"{n:,}"} | _needed(one)
        if before:
            expected = n * math.log(n) / (before[0] * math.log(before[0]))
            row["time / (n log n)"] = f"{one.seconds / before[1] / expected:.2f}"
        rows.append(row)
        before = n, one.seconds
    return rows


def _needed(one: Measured) -> dict[str, str]:
    return {"s": _digits(one.seconds), "before MB": f"{one.base_mb:,.0f}", "peak MB": f"{one.peak_mb:,.0f}"}


def _digits(value: float) -> str:
    """Three digits are as many as a shared machine allows to trust."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
