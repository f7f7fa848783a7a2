"""Boosting over folds: ``kit.boosting.fit`` against the scikit-learn wrapper, fitted per fold from a DataFrame.

Both fit twice per fold, as notebook 06 does: until the MAE on held-out authors of the training side stops falling, then on
the whole training side with the trees found. Same columns, folds, held-out authors, parameters and threads; what differs
is who holds the data and how often it is binned. Scores must agree
within 0.001; those of CatBoost, whose random draws follow its bins, within 0.003.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import catboost
import lightgbm
import numpy as np
import pandas as pd

from kit.base.files import atomic_path
from kit.base.metrics import mae, src
from kit.boosting.fit import Machine, Training, fit_folds
from kit.boosting.learners import LEARNERS
from kit.features.behaviour import behaviour_block
from kit.features.statistic import statistic_block
from kit.run.block import Block
from kit.run.folds import fold_rows, inner_holdout, make_folds
from kit.run.matrix import join_blocks
from tests.bench.material import posts_table
from tests.bench.measure import Case, Found, Measured, Task, n_threads

N_FOLDS, STOP_SHARE, SEED = 5, 0.2, 0
COLUMNS = {statistic_block: 150, behaviour_block: 150}  # of each block; 300 in all
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 100))  # trees at most; binning counts for less the more there are
PATIENCE = 50
MB_PER_VALUE = 4 / 2**20
CLOSE = {"lightgbm": 1e-3, "catboost": 3e-3}  # of SRC and MAE, for the train part of SMPD; fewer posts scatter more
SMPD_TRAIN = 305_613


def matrices(folder: Path, n: int) -> None:
    """Train rows of the first columns of both blocks as .npy, and their posts, for a release of n posts."""
    posts = posts_table(folder, n)
    _path(folder, n, "").mkdir(exist_ok=True)
    train = (posts["split"] == "train").to_numpy()
    for make, k in COLUMNS.items():
        block = make(posts)
        kept = [name for name in block.columns if name not in block.categorical][:k]
        values = np.ascontiguousarray(block.values[train][:, [block.columns.index(name) for name in kept]])
        pd.Series(kept).to_csv(_path(folder, n, f"{block.name}.txt"), index=False, header=False)
        with atomic_path(_path(folder, n, f"{block.name}.npy")) as temporary:
            np.save(temporary, values)
    with atomic_path(_path(folder, n, "posts.parquet")) as temporary:
        posts[train].reset_index(drop=True).to_parquet(temporary, index=False)


def ours(model: str, folder: Path, n: int) -> Task:
    """Blocks stay on disk; every fit of LightGBM bins its own rows, those of CatBoost are slices of one pool."""
    posts, target, folds = _posts(folder, n)

    def work() -> np.ndarray:
        blocks = [
            Block(path.stem, np.load(path, mmap_mode="r"), path.with_suffix(".txt").read_text().splitlines())
            for path in _blocks(folder, n)
        ]
        result = fit_folds(
            join_blocks(blocks), target, folds, posts,
            Training(model, {}, ROUNDS, PATIENCE, STOP_SHARE, taught=False, final=False, seed=SEED), Machine(n_threads()),
        )  # fmt: skip
        return result.oof

    return Task(work, partial(_scores, target), partial(_note, target))


def wrapper(model: str, folder: Path, n: int) -> Task:
    """One DataFrame, and per fold what everybody writes."""
    posts, target, folds = _posts(folder, n)
    params = LEARNERS[model].settings({}, sum(COLUMNS.values()))

    def work() -> np.ndarray:
        names = [name for path in _blocks(folder, n) for name in path.with_suffix(".txt").read_text().splitlines()]
        table = pd.DataFrame(np.hstack([np.load(path) for path in _blocks(folder, n)]), columns=names)
        oof = np.full(len(target), np.nan)
        for k in range(N_FOLDS):
            train_idx, valid_idx = fold_rows(folds, k)
            fit_idx, stop_idx = inner_holdout(posts, train_idx, STOP_SHARE, SEED)
            held = table.iloc[stop_idx], target[stop_idx]
            n_trees = FITTED[model](params, ROUNDS, table.iloc[fit_idx], target[fit_idx], held)[1]
            oof[valid_idx] = FITTED[model](params, n_trees, table.iloc[train_idx], target[train_idx])[0].predict(
                table.iloc[valid_idx]
            )
        return oof

    return Task(work, partial(_scores, target), partial(_note, target))


def _lightgbm(params: dict, rounds: int, table: pd.DataFrame, target: np.ndarray, held: tuple | None = None):
    model = lightgbm.LGBMRegressor(
        **params, n_estimators=rounds, n_jobs=n_threads(), random_state=SEED, deterministic=True, force_col_wise=True,
        verbosity=-1,
    )  # fmt: skip
    if held is None:
        return model.fit(table, target), rounds
    stop = lightgbm.early_stopping(PATIENCE, first_metric_only=True, verbose=False)
    model.fit(table, target, eval_set=[held], callbacks=[stop])
    return model, model.best_iteration_


def _catboost(params: dict, rounds: int, table: pd.DataFrame, target: np.ndarray, held: tuple | None = None):
    model = catboost.CatBoostRegressor(
        **params,
        iterations=rounds,
        thread_count=n_threads(),
        random_seed=SEED,
        verbose=False,
        allow_writing_files=False,
    )
    watch = {"eval_set": held, "early_stopping_rounds": PATIENCE, "use_best_model": True} if held else {}
    model.fit(table, target, **watch)
    return model, model.tree_count_


FITTED = {"lightgbm": _lightgbm, "catboost": _catboost}


def _path(folder: Path, n: int, name: str) -> Path:
    return folder / f"folds_{n}" / name


def _blocks(folder: Path, n: int) -> list[Path]:
    return sorted((folder / f"folds_{n}").glob("*.npy"))


def _posts(folder: Path, n: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    posts = pd.read_parquet(_path(folder, n, "posts.parquet"))
    return posts, posts["label"].to_numpy(), make_folds(posts, N_FOLDS, "user", SEED)


def _scores(target: np.ndarray, oof: np.ndarray) -> Found:
    return {"src": np.array([src(target, oof)]), "mae": np.array([mae(target, oof)]), "n": np.array([len(oof)])}


def _note(target: np.ndarray, oof: np.ndarray, measured: Measured) -> str:
    n = len(target)
    matrix = n * sum(COLUMNS.values()) * MB_PER_VALUE
    added = (measured.peak_mb - measured.base_mb) / matrix
    scores = f"SRC {src(target, oof):.4f}, MAE {mae(target, oof):.4f}"
    return f"{scores}; {n:,} x {sum(COLUMNS.values())} float32 {matrix:,.0f} MB; added at most {added:.2f} x that"


def _differs(model: str, ours: Found, other: Found) -> str:
    close = CLOSE[model] * max(1, SMPD_TRAIN / int(ours["n"][0])) ** 0.5
    apart = {name: abs(float(ours[name][0] - other[name][0])) for name in ("src", "mae")}
    return "" if max(apart.values()) < close else f"scores differ by {apart}, more than {close:.4f}"


CASES = tuple(
    Case(
        __name__,
        f"five folds, {model}",
        {"ours": partial(ours, model), "wrapper per fold": partial(wrapper, model)},
        matrices,
        differs=partial(_differs, model),
    )
    for model in ("lightgbm", "catboost")
)
