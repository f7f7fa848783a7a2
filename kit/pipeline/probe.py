"""What small pieces of the steps' work take on this machine, and so all of it: a JSON object, place of the step -> seconds.

A few trees are fitted on as many numbers as will be, the features of a few posts are made; for networks see ``probe_networks``.

    python -m kit.pipeline.probe '[["01_eda", {"data_dir": "inputs/demo", "n_folds": 3}]]' outputs/demo
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.machine import usable_cores
from kit.base.paths import resolve
from kit.encoders.registry import ENCODERS
from kit.evaluation.table_one import FeatureSet, parse_sets
from kit.features.behaviour import behaviour_block
from kit.features.statistic import statistic_block
from kit.pipeline.plan import NETWORKS, START_S, size
from kit.pipeline.probe_networks import Networks
from kit.release import smpd
from kit.release.external import EXTERNAL
from kit.run.directory import Run
from kit.run.folds import usual_folds

SAMPLE = {  # what the probe works on
    "posts": 2000, "least_rows": 500, "rows": 4000, "columns": 200, "codes": 4, "trees": 30,
}  # fmt: skip
COLUMNS = {"statistic": 350, "behaviour": 180, "clip_ft_full": 3700}  # of blocks that are not made yet; others: OTHER
OTHER = 64
GROWTH = {"lightgbm": 0.003, "catboost": 0.0055}  # trees until early stopping, times learning rate, per taught post
SLOWER, POWER = 4000, 0.2  # taught posts from which they grow with this power only
SOLUTIONS, CHOSEN = 12, 7  # of the ridge for each fold; and for each part on which it chooses penalty and view
STEPS = 60  # of its solver, in products with the dense columns alone
FITS = ("05_oversampling", "06_gbdt_folds")  # steps
SCHEMES = 2  # that 06.schemes=auto stands for
TORCH_S = 3.0  # to load it, and its like
EXPLORED = 8  # times that 08 makes the features of all posts, about
DRAWN_S, WORKER_S = 2.5, 3.0  # of figures and tables around fits; to start a process
TASK_S, FUSED_S = 0.5, 0.2  # around one call of `fit_folds`; to fuse what it says
FINAL = 0.6  # of a fold: the model for test posts needs no counting
TRAIN = 0.63  # share of the posts that have a label


def probe(steps: Sequence[tuple[str, Mapping[str, Any]]], run_dir: Path) -> dict[str, float]:
    """Seconds of each step by its place, and "posts", the number of posts; one core works, as many will as there are.

    Args:
        steps: name and parameters of each; those with a `data_dir` say where the posts are while the run has none.
        run_dir: of the run.
    """
    started, run = time.perf_counter(), Run(run_dir)
    folder = next((p["data_dir"] for _, p in steps if "data_dir" in p), None)
    posts = run.posts() if run.has_file("posts.parquet") else smpd.read_release(resolve(folder))
    read_s, told = time.perf_counter() - started, {"posts": len(posts)}
    n_folds = next((p["n_folds"] for _, p in steps if p.get("n_folds")), usual_folds(int(TRAIN * len(posts))))
    networks, features_s = Networks(posts), _features_s(posts)
    lacking = {"external", "clip", "clip_ft", *ENCODERS}  # blocks that none of the steps makes
    crawled = {"external"} if set(EXTERNAL) <= set(posts) else set()
    for place, (name, asked) in enumerate(steps):
        seconds: float | None = None
        if name == "01_eda":
            seconds = 3 * read_s
        elif name == "02_prototypes":
            seconds = networks.clip_s(asked)
            lacking -= {"clip"} if seconds != 0 else set()
        elif name == "03_clip_ft":
            seconds = networks.clip_ft_s(asked)
            lacking -= {"clip_ft"} if seconds != 0 else set()
        elif name == "04_features":
            seconds = None if asked["tuned"] else features_s + networks.encoders_s(asked)
            lacking = lacking - {"external", *ENCODERS} | networks.lacking(asked) | {"external"} - crawled
        elif name in FITS:
            seconds = _fits_s(asked, n_folds, TRAIN * len(posts), run, lacking)
        elif name == "07_blend":
            seconds = FUSED_S * sum(
                len(asked["sets"]) * len(asked["models"]) for name, asked in steps if "sets" in asked
            )
        elif name == "08_explore":
            seconds = EXPLORED * features_s + TORCH_S * any(other == "02_prototypes" for other, _ in steps)
        if seconds is not None:
            told[str(place)] = START_S + seconds + TORCH_S * (name in NETWORKS)
    return told


def _features_s(posts: pd.DataFrame) -> float:
    some = posts.iloc[: SAMPLE["posts"]].reset_index(drop=True)
    started = time.perf_counter()
    statistic_block(some), behaviour_block(some)
    seconds, n, n_some = time.perf_counter() - started, max(2, len(posts)), max(2, len(some))
    return seconds * n * np.log(n) / (n_some * np.log(n_some))  # tests/recorded/speed.md: how time grows


def _fits_s(asked: Mapping[str, Any], n_folds: int, n_train: float, run: Run, lacking: set[str]) -> float:
    """Trees of all fits, by what a tree takes on as many posts and, in proportion, columns."""
    from kit.boosting.fit import COUNTED, REFIT, STOP_POSTS, Training
    from kit.boosting.learners import LEARNERS

    sets, models, times = _asked_fits(asked, run, lacking)
    columns = [sum(_columns(block, run) for block in one.blocks) for one in sets]
    n_columns, n_folds_fitted, n_taught = sum(columns), n_folds * times + FINAL, n_train * (1 - 1 / n_folds)
    total = n_folds_fitted * _ridge_s(n_taught) * sum(n for n, one in zip(columns, sets, strict=True) if one.taught)
    stop = min(Training.stop_share, STOP_POSTS / max(1.0, n_taught))  # share that decides when to stop
    for model in (name for name in models if name in GROWTH):  # others take next to nothing
        rate = asked["learning_rate"] or LEARNERS[model].settings({}, SAMPLE["columns"])["learning_rate"]
        trees = min(asked["rounds"], GROWTH[model] * n_taught * min(1, SLOWER / n_taught) ** (1 - POWER) / rate)
        counted, again = min(asked["rounds"], trees + asked["patience"]), stop > REFIT
        prepared_s, tree_s = _fit_s(model, n_taught)
        counted /= COUNTED if again else 1
        fit_s = (1 - stop) * (prepared_s + counted * tree_s) + again * (prepared_s + trees * tree_s)
        total += n_folds_fitted * fit_s * n_columns
    return DRAWN_S + WORKER_S + (times * len(sets) * len(models) * TASK_S + total) / usable_cores()


def _asked_fits(
    asked: Mapping[str, Any], run: Run, lacking: set[str]
) -> tuple[list[FeatureSet], list[str], float]:  # fmt: skip
    """Feature sets and models of 05 or 06 that will be fitted, and how often each of them is fitted to all folds."""
    if "features" in asked:
        return parse_sets([asked["features"]]), [asked["model"]], size("05", asked)
    sets = parse_sets(asked["sets"], run if run.block_names() else None)
    lacking = {block for block in lacking if not run.has_block(block)}
    return [one for one in sets if not lacking & set(one.blocks)], asked["models"], SCHEMES * len(asked["schemes"])


def _columns(block: str, run: Run) -> int:
    return len(run.read_block(block).columns) if run.has_block(block) else COLUMNS.get(block, OTHER)


def _ridge_s(n: float) -> float:
    """Seconds of the columns taught by labels in one fold, for each column of the block: products with all its values."""
    from kit.boosting.ridge import JUDGED_ON, JUDGES

    values = np.ones((20 * SAMPLE["least_rows"], SAMPLE["columns"]), dtype=np.float32)
    started = time.perf_counter()
    values[:, 0] @ values @ values.T
    step_s = (time.perf_counter() - started) / values.size
    return (SOLUTIONS + CHOSEN * (2 if n <= JUDGED_ON else min(1, JUDGES / n))) * STEPS * step_s * n


def _fit_s(model: str, n: float) -> tuple[float, float]:
    """Seconds of a fit without its trees, and of one of its trees, for each of its columns."""
    from kit.boosting.data import Data
    from kit.boosting.learners import LEARNERS

    rng, rows, k = np.random.default_rng(0), int(np.clip(n, SAMPLE["least_rows"], SAMPLE["rows"])), SAMPLE["columns"]
    values = rng.normal(size=(rows, k)).astype(np.float32)
    target, is_code = values[:, :5].sum(axis=1).astype(np.float64), np.arange(k) >= k - SAMPLE["codes"]
    values[:, is_code] = rng.geometric(0.02, size=(rows, SAMPLE["codes"]))
    learner = LEARNERS[model]
    fitted = learner(
        learner.prepare(Data(values, is_code, target), learner.settings({}, 500), 1, 0, "cpu"), None, np.ones(rows), 1
    )
    times = []
    for n_trees in (1, 1, 1, 1 + SAMPLE["trees"]):  # a first fit; what is to do beside trees, twice; and with trees
        fitted.fit(np.arange(rows), n_trees)
        times.append(time.perf_counter())
    *beside, both = np.diff(times)
    beside = min(beside)  # something else may have held up either
    more = max(1.0, n / rows) / k
    return beside * more, max(1e-6, both - beside) / SAMPLE["trees"] * more


if __name__ == "__main__":
    print(json.dumps(probe(json.loads(sys.argv[1]), Path(sys.argv[2]))))
