"""A scratch copy of a run: links to all its files, beside which a notebook may write whatever it likes."""

from __future__ import annotations

import os
from pathlib import Path

from kit.base.files import read_json, write_json

LAB, SCRATCH = "lab", "scratch"  # in a run: working copies of the notebooks, and the copy of the run they work in
ORIGIN = "scratch.json"  # in a scratch copy: of which run it is one
NOT_COPIED = {LAB, "logs", "notebooks", ".lock", ".lock.json", ORIGIN}  # of the top of a run


def make_scratch(run_dir: Path) -> Path:
    """The folder ``lab/scratch`` of a run, holding a link to every file of the run that has no namesake there yet.

    Everything the kit writes takes its name by a rename, which replaces the link and leaves the file behind it alone. What
    was written into the copy stays there; links to files that have gone are removed.
    """
    scratch = run_dir / LAB / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    for path in scratch.rglob("*"):
        if path.is_symlink() and not path.exists():
            path.unlink()
    tops = [path for path in run_dir.iterdir() if path.name not in NOT_COPIED]
    for top in tops:
        for path in [top] if top.is_file() else top.rglob("*"):
            own = scratch / path.relative_to(run_dir)
            if path.is_file() and ".tmp" not in path.name and not own.exists():
                own.parent.mkdir(parents=True, exist_ok=True)
                own.symlink_to(os.path.relpath(path, own.parent))
    write_json(scratch / ORIGIN, {"scratch copy of": str(run_dir)})
    return scratch


def original_of(folder: Path) -> Path | None:
    """The run of which a folder is a scratch copy; None if it is none."""
    path = folder / ORIGIN
    return Path(read_json(path)["scratch copy of"]) if path.is_file() else None
