"""What encoders tuned on the label say (kit.tuning), as files of a run: one for each fit of the boosters, and encoder.

A file holds a column over all posts that the fit's training side alone has taught: ``tuned/<scheme>/fold_<k>/<encoder>.npz``,
and ``tuned/final/<encoder>.npz`` for the model on all train posts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kit.base.files import read_json
from kit.run.directory import Run

TUNED = "tuned"  # the folder in a run, and the word in a feature set
INDEX = f"{TUNED}/{TUNED}.json"  # written last: encoders with whose weights they started, schemes
FINAL = "final"


def tuned_file(fit: str, encoder: str) -> str:
    """Name in the run of the column of an encoder for a fit, "<scheme>/fold_<k>" or FINAL."""
    return f"{TUNED}/{fit}/{encoder}.npz"


def tuned_files(run: Run, scheme: str, n_folds: int, final: bool) -> dict[str, tuple[Path, ...]]:
    """Column -> its file for each fold, and last for the model on all train posts if ``final``."""
    fits = [*(f"{scheme}/fold_{k}" for k in range(n_folds)), *[FINAL] * final]
    files = {
        name: [run.input(tuned_file(fit, name), made_by="04_features") for fit in fits] for name in _index(run)[TUNED]
    }
    return {f"{TUNED}_{name}": tuple(paths) for name, paths in files.items()}


def tuned_columns(run: Run) -> list[str]:
    """Names of the columns, in their order."""
    return [f"{TUNED}_{name}" for name in _index(run)[TUNED]]


def tuned_external(run: Run) -> list[str]:
    """Whose weights the encoders had before they were tuned."""
    return list(_index(run)[TUNED].values())


def read_columns(files: Mapping[str, Sequence[Path]]) -> dict[str, np.ndarray]:
    """Column -> (n_fits, n_posts) float32, from ``tuned_files``."""
    return {name: np.stack([np.load(path)["column"] for path in paths]) for name, paths in files.items()}


def read_fit(run: Run, scheme: str, fit: str) -> np.ndarray:
    """(n_posts, m) float32, all columns of one fit, "fold_<k>" or FINAL."""
    place = FINAL if fit == FINAL else f"{scheme}/{fit}"
    files = [run.input(tuned_file(place, name), made_by="04_features") for name in _index(run)[TUNED]]
    return np.column_stack([np.load(path)["column"] for path in files])


def why_not_tuned(run: Run, schemes: Iterable[str]) -> str:
    """What keeps the word from being used in feature sets under these schemes, "" where nothing does."""
    if not run.has_file(INDEX):
        return "no encoder of this run was tuned: --set 04.tuned=minilm, or other names, does it"
    lacking = [scheme for scheme in schemes if scheme not in _index(run)["schemes"]]
    return (
        f"no encoder was tuned under folds by {' and '.join(lacking)}: add that to 04.tuned_schemes" if lacking else ""
    )


def _index(run: Run) -> dict:
    return read_json(run.input(INDEX, made_by="04_features, where 04.tuned names encoders"))
