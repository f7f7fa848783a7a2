"""The blocks of a run with rows for new posts: by the run's own parameters, codes, vocabularies, decompositions, networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.features.behaviour import behaviour_block
from kit.features.external import external_block
from kit.features.statistic import statistic_block
from kit.predict.encode import CLIP, CLIP_FT
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.marks import read_mark
from kit.run.tuned import TUNED

FROM_TABLE = ("statistic", "behaviour", "external")


def why_not(run: Run, name: str, encoders: Iterable[str]) -> str:
    """What keeps a block of the run from being made for new posts, in words; "" where nothing does."""
    folder = run.dir / "blocks" / name
    if name == TUNED:
        return "the networks tuned on its labels are not kept"
    if run.is_imported(name):
        return "it was imported, and what made it is on another machine"
    if name not in (*FROM_TABLE, *CLIP, *CLIP_FT, *encoders):
        return "no step of the chain makes it"
    if name in ("clip", "clip_ft", *encoders) and not (folder / "pca.npz").is_file() and _components(run, name):
        return "it was made by an earlier version, which did not keep its principal components: run its step again"
    return ""


def new_values(
    run: Run, posts: pd.DataFrame, rows: np.ndarray, names: Iterable[str], folder: Path
) -> tuple[dict, np.ndarray]:
    """Block -> (n_new, d) values of new posts, columns as in the run's block; and (n_new,) bool, whose image could be read.

    Args:
        posts: the run's posts with new ones in their places or behind them, from ``join_posts``.
        rows: positions of the new ones, whose values are made.
        names: blocks that ``why_not`` has nothing against.
        folder: for files on the way.
    """
    n_run = len(run.posts())
    n_known = n_run if len(posts) > n_run else None
    table = {name: _table_block(run, posts, name, n_known) for name in names if name in FROM_TABLE}
    found = {name: _in_order(run.read_block(name), block, rows) for name, block in table.items()}
    if encoded := [name for name in names if name not in FROM_TABLE]:
        new, out = folder / "new.parquet", folder / "encoded.npz"
        posts.iloc[rows].reset_index(drop=True).to_parquet(new, index=False)
        command = [sys.executable, "-m", "kit.predict.encode", str(run.dir), str(new), str(out), *encoded]
        done = subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise InputError(f"the networks of {run.dir} could not encode the posts: {last[0]}")
        with np.load(out) as kept:
            return found | {name: kept[name] for name in encoded}, kept["image_ok"]
    return found, np.ones(len(rows), dtype=bool)


def joint_block(block: Block, values: np.ndarray, rows: np.ndarray, n_posts: int) -> Block:
    """The block of a run with the values of new posts in their rows."""
    joint = np.empty((n_posts, len(block.columns)), dtype=block.values.dtype)
    joint[: len(block.values)] = block.values
    joint[rows] = values
    return replace(block, values=joint)


def _table_block(run: Run, posts: pd.DataFrame, name: str, n_known: int | None) -> Block | None:
    own = read_mark(run.dir, "04_features")["parameters"]
    if name == "statistic":
        return statistic_block(
            posts, own["families"] or None, svd_dim=own["svd_dim"], n_top_tags=own["n_top_tags"], use_pid=own["use_pid"],
            seed=own["seed"], n_known=n_known,
        )  # fmt: skip
    if name == "behaviour":
        return behaviour_block(
            posts, own["behaviour_families"] or None, dim=own["svd_dim"], n_top_tags=own["n_top_tags"], seed=own["seed"],
            n_known=n_known,
        )  # fmt: skip
    return external_block(posts)


def _in_order(kept: Block, made: Block, rows: np.ndarray) -> np.ndarray:
    """(n_new, d) values in the columns of the run's block; NaN for one that was not made."""
    return pd.DataFrame(made.values[rows], columns=made.columns).reindex(columns=kept.columns).to_numpy(np.float32)


def _components(run: Run, name: str) -> int:
    if name == "clip_ft":
        return 1
    mark = read_mark(run.dir, "02_prototypes" if name == "clip" else "04_features")
    return mark["parameters"]["components"] if mark else 1
