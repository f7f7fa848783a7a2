"""Finished fits in a folder, each with a hash of all it depends on, code and library versions included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np

from kit.base.code import code_of
from kit.base.files import atomic_path, read_npz, write_json, write_npy, write_npz
from kit.boosting.data import TrainingSide
from kit.boosting.result import FoldResult
from kit.run.block import Block


class Store:
    """Finished fits in a folder, each with a hash of all it depends on; without a folder nothing is kept.

    Attributes:
        fitted: of each fit asked for, whether it was made; the others were read back.
    """

    def __init__(self, out_dir: Path | None, settings: dict, block: Block, *arrays: np.ndarray):
        self._dir, self.fitted = Path(out_dir) if out_dir else None, []
        if self._dir:
            described = {**settings, "code": code_of("kit.boosting.fit"), "columns": block.columns,
                         "categorical": block.categorical, "values": block.digest}  # fmt: skip
            self._key = hash_inputs(described, *arrays)

    def get(
        self, name: str, side: TrainingSide, fit: Callable[[], tuple[dict, Any]], n_trees: int | None = None
    ) -> dict:
        """The numbers of a fit: read back where its key fits, else made by ``fit`` and kept, the model first."""
        path = self._dir / f"{name}.npz" if self._dir else None
        arrays = [side.rows, side.weight, side.copies, *([] if side.tuned is None else [side.tuned])]
        key = f"{self._key} {hash_inputs({}, *arrays)} {n_trees}" if path else ""
        kept = read_npz(path, key) if path else None
        self.fitted.append(kept is None)
        if kept:
            return kept
        part, learner = fit()
        if path:
            with atomic_path(path.with_suffix(learner.suffix)) as temporary:
                learner.save(temporary)
            write_npz(path, key=key, **part)
        return part

    def finish(self, result: FoldResult) -> None:
        """Write the result as a whole."""
        if not self._dir:
            return
        for name in ("oof", "test"):
            write_npy(self._dir / f"{name}.npy", getattr(result, name))
        records = {"model": result.model, **result.summary(), "per_fold": result.scores.to_dict("records")}
        write_json(self._dir / "scores.json", records)


def hash_inputs(settings: dict, *arrays: np.ndarray) -> str:
    """A hash of everything a fit depends on, library versions included."""
    versions = {"lightgbm": lightgbm.__version__, "catboost": catboost.__version__}
    hasher = hashlib.blake2b(json.dumps([settings, versions], sort_keys=True, default=str).encode(), digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape}{array.dtype}".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()
