"""What the final models of a run say of new posts: each model, their fusion as 07 has it, and how far off it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.evaluation import blend, intervals, table_one
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import TEST
from kit.run.marks import read_mark
from kit.run.matrix import join_blocks
from kit.run.predictions import read_folds, read_fused, read_predictions, split_predictions


def fusion(run: Run, without: Sequence[str] = ()) -> blend.Blend:
    """The fusion of 07, fitted again on the out-of-fold predictions that the run keeps.

    Args:
        without: models that cannot say anything of the new posts; the others are fused without them.
    Raises:
        InputError: no model is left.
    """
    posts = run.posts()
    _, scheme, method, calibrate = read_fused(run, posts)
    table = read_predictions(run.input(f"predictions_{scheme}.parquet"), posts).drop(columns=list(without))
    oof, _ = split_predictions(table)
    if not oof:
        raise InputError(
            f"no model of {run.dir} can be asked: {', '.join(without)} rest on blocks that cannot be made here"
        )
    found = blend.fit_blend(
        oof, posts["label"].to_numpy(), table["fold"].to_numpy(), method=method, calibrate=calibrate
    )
    return blend.for_the_test_part(found, run, posts, scheme, calibrate)


def interval(
    run: Run, found: blend.Blend, posts: pd.DataFrame, rows: np.ndarray, prediction: np.ndarray, level: float
) -> np.ndarray:  # fmt: skip
    """(n_new, 2) range of each prediction, as much left out on each side; see `kit.evaluation.intervals`.

    Args:
        found: the fusion that predicts.
        posts, rows: the run's posts and new ones, from ``join_posts``.
        prediction: (n_new,).
        level: share of the out-of-fold predictions that such ranges hold.
    """
    known = run.posts()
    cut = read_folds(run, known, read_fused(run, known)[1])
    ranges = intervals.fit_ranges(found.oof, intervals.earlier_in_folds(known, cut), known["label"].to_numpy())
    earlier = intervals.earlier_posts(posts, np.flatnonzero(posts["split"] == "train"))[rows]
    ends = ranges(prediction, earlier, ((1 - level) / 2, (1 + level) / 2))
    return np.clip(ends, found.learnt.low, found.learnt.high)


def model_home(run: Run, posts: pd.DataFrame) -> Path:
    """Where 06 keeps the models that are submitted, each under its name ``<feature set>/<learner>``.

    Args:
        posts: of the run.
    """
    return run.dir / "gbdt" / read_fused(run, posts)[1]


def final_predictions(
    run: Run, posts: pd.DataFrame, rows: np.ndarray, blocks: Mapping[str, Block], models: Sequence[str], folder: Path
) -> dict[str, np.ndarray]:
    """Model -> (n_new,) what its fit on all train posts says of the rows.

    Args:
        posts: the run's posts and new ones, from ``join_posts``.
        blocks: name -> the block of all of them.
        models: names ``<feature set>/<learner>``.
        folder: for files on the way.
    """
    from kit.boosting.fit import Machine, Training, load_final

    own, known = read_mark(run.dir, "06_gbdt_folds")["parameters"], run.posts()
    home, cut = model_home(run, known), np.full(len(posts), TEST)
    cut[: len(known)] = read_folds(run, known, home.name).fold
    target, said = posts["label"].to_numpy(np.float64), {}
    for model in models:
        name, learner = model.rsplit("/", 1)
        one = table_one.parse_sets([name], run)[0]
        block = join_blocks([blocks[part] for part in one.blocks])
        training = Training(learner, taught=one.taught, seed=own["seed"])
        machine = Machine(own["threads"])
        fitted = load_final(block, target, cut, posts, training, machine, home / model, folder / name)
        said[model] = fitted.predict(rows)
    return said
