"""LightGBM and CatBoost over folds: out-of-fold and test predictions, scores, importance; each fold is kept on disk.

The scored fold decides nothing. When to stop boosting is decided by authors held out of the *training* side, after which
the model is fitted once more on the whole training side with the number of rounds found.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import catboost
import lightgbm
import numpy as np
import pandas as pd

from kit.errors import InputError
from kit.folds import TEST, fold_rows, inner_holdout
from kit.metrics import mae, src
from kit.run import Block, atomic_path, progress, write_json

WIDE = 256  # columns from which coarser bins pay: 2.6 times faster, no loss
LIGHTGBM = {
    "objective": "regression", "metric": "l1", "learning_rate": 0.03, "num_leaves": 31, "max_depth": 8,
    "min_child_samples": 20, "feature_fraction": 0.3, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 10.0,
    "extra_trees": True,
}
CATBOOST = {"loss_function": "RMSE", "eval_metric": "MAE", "learning_rate": 0.05, "depth": 6, "l2_leaf_reg": 3.0}


@dataclass(frozen=True)
class FoldResult:
    """What a model predicts for posts it was not taught with.

    Attributes:
        model: its name.
        oof: (n_posts,) float64, NaN where a post is scored in no fold (test posts, TRAIN_ONLY posts).
        test: (n_test,) float64, the mean over the folds' models, in the order of the test posts.
        scores: one row per fold: fold, n, src, mae, rounds, seconds.
        importance: column, gain (share of the total, mean over folds), largest first.
    """

    model: str
    oof: np.ndarray
    test: np.ndarray
    scores: pd.DataFrame
    importance: pd.DataFrame

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation of SRC and MAE over folds, with the number of posts, folds and seconds."""
        out = {f"{m}_mean": float(self.scores[m].mean()) for m in ("src", "mae")}
        out |= {f"{m}_std": float(self.scores[m].std(ddof=0)) for m in ("src", "mae")}
        totals = self.scores[["n", "seconds"]].sum()
        return out | {"n": int(totals["n"]), "folds": len(self.scores), "seconds": float(totals["seconds"])}


def fit_folds(
    block: Block,
    target: np.ndarray,
    folds: np.ndarray,
    posts: pd.DataFrame,
    model: str = "lightgbm",
    params: dict | None = None,
    *,
    rounds: int = 3000,
    patience: int = 100,
    weight: np.ndarray | None = None,
    stop_share: float = 0.1,
    refit: bool = True,
    n_threads: int = 2,
    seed: int = 0,
    device: str = "cpu",
    out_dir: Path | None = None,
) -> FoldResult:
    """A model per fold and what they predict; folds already on disk with the same inputs are read back.

    Args:
        block: features of all posts; `features.join_blocks` puts several together.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`.
        posts: the posts table; `Uid` is read, for the authors held out.
        model: one of MODELS.
        params: the library's own parameters, on top of the defaults here.
        rounds: at most so many trees.
        patience: stop after so many trees without a better MAE on the held-out authors.
        weight: (n_posts,) >= 0 for training: k counts a post k times, 0 leaves it out. Scores are never weighted.
        stop_share: of the training side, held out by author for early stopping; 0 fits exactly `rounds` trees.
        refit: fit again on the whole training side with the number of trees found.
        n_threads: of the library; one less than the idle cores, or waiting threads slow it down many times.
        seed: of sampling and held-out authors.
        device: "cpu", or "gpu" for CatBoost.
        out_dir: where to keep `fold_<k>.npz`, the models, `oof.npy`, `test.npy` and `scores.json`.

    Raises:
        InputError: unknown model, lengths that differ, or missing labels on train posts.

    Source: settings from HyFea, USTC and Alonso (method.md 5.1); held-out authors because test authors are new (5.2).
    """
    target = _checked_target(block, target, folds, posts)
    if model not in LEARNERS:
        raise InputError(f"model {model!r} is unknown; choose one of {', '.join(MODELS)}")
    weight = np.ones(len(target)) if weight is None else _checked_weight(weight, len(target))
    learner = LEARNERS[model](block, target, weight, params or {}, n_threads, seed, device)
    settings = {"model": model, "params": learner.params, "rounds": rounds, "patience": patience, "refit": refit,
                "stop_share": stop_share, "seed": seed, "columns": block.columns, "categorical": block.categorical}
    key = _key(settings, block.values, target, folds, weight, pd.factorize(posts["Uid"])[0]) if out_dir else ""
    parts = []
    for k in progress(range(int(folds.max()) + 1), label=f"{model} folds", unit="fold"):
        part = _read_fold(out_dir, k, key)
        if part is None:
            part = _fit_fold(learner, posts, folds, k, settings)
            _write_fold(out_dir, k, key, part, learner)
        parts.append(part)
    result = _collect(model, block, target, folds, parts)
    if out_dir:
        _write_result(Path(out_dir), result)
    return result


def _fit_fold(learner, posts: pd.DataFrame, folds: np.ndarray, k: int, settings: dict) -> dict:
    """Predictions of fold k for its scored posts and for the test posts."""
    started = time.perf_counter()
    train_idx, valid_idx = fold_rows(folds, k)
    train_idx = train_idx[learner.weight[train_idx] > 0]
    rounds = settings["rounds"]
    if settings["stop_share"]:
        fit_idx, stop_idx = inner_holdout(posts, train_idx, settings["stop_share"], settings["seed"] + k)
        rounds = learner.fit(fit_idx, rounds, stop_idx, settings["patience"])
    if settings["refit"] or not settings["stop_share"]:
        learner.fit(train_idx, rounds)
    test_idx = np.flatnonzero(folds == TEST)
    return {"valid": learner.predict(valid_idx), "test": learner.predict(test_idx), "gain": learner.gain(),
            "rounds": rounds, "seconds": time.perf_counter() - started}


class _LightGBM:
    """One binned dataset for all folds (bins see features of all posts, never labels), and the booster fitted last."""

    suffix = ".txt"

    def __init__(self, block: Block, target, weight, params: dict, n_threads: int, seed: int, device: str):
        wide = len(block.columns) > WIDE
        self.weight, self.values = weight, np.ascontiguousarray(block.values, dtype=np.float32)
        self.params = LIGHTGBM | {"max_bin": 63 if wide else 255} | params
        self._run = {"num_threads": n_threads, "seed": seed, "deterministic": True, "force_col_wise": True, "verbosity": -1}
        self._data = lightgbm.Dataset(
            self.values, np.nan_to_num(target), weight=weight, feature_name=[f"c{i}" for i in range(len(block.columns))],
            categorical_feature=[block.columns.index(c) for c in block.categorical], free_raw_data=False,
            params=self.params | self._run | {"feature_pre_filter": False},
        )

    def fit(self, fit_idx: np.ndarray, rounds: int, stop_idx: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on fit_idx; returns the number of trees, the best for stop_idx where given."""
        watch = {}
        if stop_idx is not None:
            watch = {"valid_sets": [self._data.subset(stop_idx)],
                     "callbacks": [lightgbm.early_stopping(patience, first_metric_only=True, verbose=False)]}
        self.booster = lightgbm.train(self.params | self._run, self._data.subset(fit_idx), rounds, **watch)
        return self.booster.best_iteration if stop_idx is not None else rounds

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.booster.predict(self.values[rows], num_threads=self._run["num_threads"]) if len(rows) else np.empty(0)

    def gain(self) -> np.ndarray:
        return self.booster.feature_importance("gain")

    def save(self, path: Path) -> None:
        self.booster.save_model(str(path))


class _CatBoost:
    """CatBoost on float columns and native categories, and the model fitted last."""

    suffix = ".cbm"

    def __init__(self, block: Block, target, weight, params: dict, n_threads: int, seed: int, device: str):
        wide = len(block.columns) > WIDE
        self.weight, self.target = weight, target
        self.params = CATBOOST | {"border_count": 64 if wide else 128} | params
        self._run = {"thread_count": n_threads, "random_seed": seed, "task_type": device.upper(), "verbose": False,
                     "allow_writing_files": False}
        coded = np.isin(block.columns, block.categorical)
        self._order = np.r_[np.flatnonzero(~coded), np.flatnonzero(coded)]
        self._floats = np.ascontiguousarray(block.values[:, ~coded], dtype=np.float32)
        self._codes = block.values[:, coded].astype(np.int64).astype("S").astype(object)

    def fit(self, fit_idx: np.ndarray, rounds: int, stop_idx: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on fit_idx; returns the number of trees, the best for stop_idx where given."""
        watch = {} if stop_idx is None else {"eval_set": self._pool(stop_idx), "early_stopping_rounds": patience}
        self.model = catboost.CatBoostRegressor(**self.params, **self._run, iterations=rounds)
        self.model.fit(self._pool(fit_idx), use_best_model=stop_idx is not None, **watch)
        return self.model.tree_count_

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(self._features(rows)) if len(rows) else np.empty(0)

    def gain(self) -> np.ndarray:
        gain = np.zeros(len(self._order))
        gain[self._order] = self.model.get_feature_importance()
        return gain

    def save(self, path: Path) -> None:
        self.model.save_model(str(path))

    def _features(self, rows: np.ndarray) -> catboost.FeaturesData:
        return catboost.FeaturesData(
            self._floats[rows] if self._floats.shape[1] else None, self._codes[rows] if self._codes.shape[1] else None
        )

    def _pool(self, rows: np.ndarray) -> catboost.Pool:
        return catboost.Pool(self._features(rows), self.target[rows], weight=self.weight[rows])


LEARNERS = {"lightgbm": _LightGBM, "catboost": _CatBoost}
MODELS = tuple(LEARNERS)


def _collect(model: str, block: Block, target: np.ndarray, folds: np.ndarray, parts: list[dict]) -> FoldResult:
    oof = np.full(len(target), np.nan)
    scores = []
    for k, part in enumerate(parts):
        _, valid_idx = fold_rows(folds, k)
        oof[valid_idx] = part["valid"]
        scores.append({"fold": k, "n": len(valid_idx), "src": src(target[valid_idx], part["valid"]),
                       "mae": mae(target[valid_idx], part["valid"]), "rounds": int(part["rounds"]),
                       "seconds": round(float(part["seconds"]), 2)})
    gain = np.mean([p["gain"] / max(p["gain"].sum(), 1e-12) for p in parts], axis=0)
    importance = pd.DataFrame({"column": block.columns, "gain": gain}).sort_values("gain", ascending=False, kind="stable")
    test = np.mean([p["test"] for p in parts], axis=0)
    return FoldResult(model, oof, test, pd.DataFrame(scores), importance.reset_index(drop=True))


def _key(settings: dict, *arrays: np.ndarray) -> str:
    """A hash of everything a fold's result depends on, library versions included."""
    versions = {"lightgbm": lightgbm.__version__, "catboost": catboost.__version__}
    hasher = hashlib.blake2b(json.dumps([settings, versions], sort_keys=True, default=str).encode(), digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape}{array.dtype}".encode())
        for start in range(0, len(array), 16_384):  # by pieces: a block may be larger than memory
            hasher.update(np.ascontiguousarray(array[start : start + 16_384]).data)
    return hasher.hexdigest()


def _read_fold(out_dir: Path | None, k: int, key: str) -> dict | None:
    """The stored fold, or None where there is none with this key."""
    path = Path(out_dir) / f"fold_{k}.npz" if out_dir else None
    if path is None or not path.exists():
        return None
    with np.load(path) as stored:
        return dict(stored) if str(stored["key"]) == key else None


def _write_fold(out_dir: Path | None, k: int, key: str, part: dict, learner) -> None:
    """The model first, then the file that says the fold is complete."""
    if out_dir is None:
        return
    with atomic_path(Path(out_dir) / f"fold_{k}{learner.suffix}") as path:
        learner.save(path)
    with atomic_path(Path(out_dir) / f"fold_{k}.npz") as path:
        np.savez(path, key=key, **part)


def _write_result(out_dir: Path, result: FoldResult) -> None:
    for name in ("oof", "test"):
        with atomic_path(out_dir / f"{name}.npy") as path:
            np.save(path, getattr(result, name))
    write_json(out_dir / "scores.json", {"model": result.model, "folds": result.scores.to_dict("records"),
                                         **result.summary()})


def _checked_target(block: Block, target: np.ndarray, folds: np.ndarray, posts: pd.DataFrame) -> np.ndarray:
    target = np.asarray(target, dtype=np.float64)
    lengths = {"block": len(block.values), "target": len(target), "folds": len(folds), "posts": len(posts)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"rows differ: {lengths}; all four must come from one run")
    missing = np.flatnonzero((folds != TEST) & ~np.isfinite(target))
    if len(missing):
        raise InputError(f"{len(missing)} train posts have no label, the first in row {missing[0]} "
                         f"(Pid {posts['Pid'].iloc[missing[0]]}); every train post needs one")
    return target


def _checked_weight(weight: np.ndarray, n_posts: int) -> np.ndarray:
    weight = np.asarray(weight, dtype=np.float64)
    if weight.shape != (n_posts,) or not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError(f"weights must be {n_posts} finite numbers >= 0, one per post; got shape {weight.shape}")
    return weight
