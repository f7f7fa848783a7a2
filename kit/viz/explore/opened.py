"""A finished run, opened to be asked: posts, predictions, the fusion and the stored models that did not see a post."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.evaluation import blend
from kit.evaluation.table_one import parse_sets, set_block
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import TEST, TRAIN_ONLY
from kit.run.predictions import read_fused, read_predictions, split_predictions
from kit.run.tuned import read_fit

MODELS_KEPT = 64  # stored models held in memory; a small one takes 1 MB


class Opened:
    """What all questions about a run share, read when it is first needed.

    Args:
        run: opened, to read or for the step that explores.

    Attributes:
        posts: the posts table.
        prediction: (n_posts,) of the fusion: nested out of fold for train posts, as submitted for test posts, else NaN.
        fold: (n_posts,) code of the fold that scores a post, under the scheme that decides.
        scheme: that scheme.

    Raises:
        InputError: 07 has not finished in this run.
    """

    def __init__(self, run: Run):
        self.run, self.posts = run, run.posts()
        table, self.scheme, self._method, self._calibrate = read_fused(run, self.posts)
        self.prediction, self.fold = table["prediction"].to_numpy(), table["fold"].to_numpy()
        self.target = self.posts["label"].to_numpy()
        self.kept: dict[Any, Any] = {}  # what questions have worked out and others can use
        self._rows = pd.Series(np.arange(len(self.posts)), index=self.posts["Pid"])
        self.model = lru_cache(MODELS_KEPT)(self._model)
        self.block = lru_cache(None)(self._block)

    def row(self, pid: str | int) -> int:
        """Row position of a post.

        Raises:
            InputError: the run has no such post.
        """
        if str(pid) not in self._rows.index:
            raise InputError(f"no post {pid!r} in {self.run.dir.name}; Pids are like {self.posts['Pid'].iloc[0]!r}")
        return int(self._rows[str(pid)])

    def predicted_row(self, pid: str | int) -> int:
        """Row position of a post that a model predicted without having seen it.

        Raises:
            InputError: there is none such: the post only teaches.
        """
        row = self.row(pid)
        if self.fold[row] == TRAIN_ONLY or not np.isfinite(self.prediction[row]):
            raise InputError(
                f"post {pid} teaches every fold by {self.scheme} and is predicted in none: no model has not seen it; "
                "take a later train post, or a test post"
            )
        return row

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """ "feature set/model" -> (n_posts,): out of fold for train posts, of the final model for test posts."""
        return {name: self._table[name].to_numpy() for name in self._table.columns if name not in ("Pid", "fold")}

    @cached_property
    def blend(self) -> blend.Blend:
        """The fusion of the submission, fitted again on the stored predictions."""
        oof, _ = split_predictions(self._table)
        return blend.fit_blend(oof, self.target, self.fold, method=self._method, calibrate=self._calibrate)

    @cached_property
    def weights(self) -> dict[str, float]:
        """ "feature set/model" -> its weight in the fusion, those above zero, largest first."""
        found = {name: weight for name, weight in self.blend.weights.items() if weight > 0}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def fuse(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64: what the submission's fusion makes of predictions of the models with weight, (n,) each."""
        nothing = np.zeros(len(next(iter(predictions.values()))))  # of models without weight
        return self.blend.predict({name: predictions.get(name, nothing) for name in self.blend.weights})

    @cached_property
    def _table(self) -> pd.DataFrame:
        return read_predictions(
            self.run.input(f"predictions_{self.scheme}.parquet", made_by="06_gbdt_folds"), self.posts
        )

    def keep(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made the first time that this name is asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def fit_name(self, row: int) -> str:
        """Name of the fit that predicted a post without having seen it."""
        return "final" if self.fold[row] == TEST else f"fold_{self.fold[row]}"

    def folder(self, features: str) -> Path:
        """Where the fits of a feature set lie."""
        return self.run.dir / "gbdt" / self.scheme / features

    def taught(self, features: str, fit: str) -> np.ndarray | None:
        """(n_posts, t) label-taught columns of a fit, those of tuned encoders last; None where its set has none."""
        teaching = self._teaching(features, fit)
        if teaching is None or not parse_sets([features])[0].tuned:
            return teaching and teaching["columns"]
        return np.hstack([teaching["columns"], read_fit(self.run, self.scheme, fit)])

    def ridge(self, features: str, fit: str) -> tuple[float, str]:
        """Penalty and view of the ridge among the label-taught columns of a fit."""
        teaching = self._teaching(features, fit)
        return float(teaching["alpha"]), str(teaching["view"])

    def _teaching(self, features: str, fit: str) -> dict[str, np.ndarray] | None:
        """What labels have taught for any model of a feature set: it is the same for all."""
        from kit.boosting.fit import kept_teaching

        name = next(name for name in self.predictions if name.rpartition("/")[0] == features)
        folder = self.folder(features)
        return kept_teaching(folder / name.rpartition("/")[2], fit, folder.parent / "taught")

    def load(self, name: str, fit: str, block: Block | None = None, taught: np.ndarray | None = None) -> Any:
        """A stored model on its own block and label-taught columns, or on those of other posts."""
        from kit.boosting.fit import load_fold

        features, _, model = name.rpartition("/")
        taught = self.taught(features, fit) if block is None else taught
        return load_fold(block or self.block(features), self.folder(features) / model, fit, taught)

    def _model(self, name: str, fit: str) -> Any:
        return self.load(name, fit)

    def _block(self, features: str) -> Block:
        return set_block(self.run, parse_sets([features])[0])
