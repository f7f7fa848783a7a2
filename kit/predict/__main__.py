"""python -m kit.predict RUN --posts FOLDER_OR_JSON: what a finished run says of posts that it has never met, with a range."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.code import is_module, module_hashes
from kit.base.errors import InputError
from kit.base.files import write_atomic
from kit.base.paths import resolve
from kit.encoders.registry import ENCODERS
from kit.evaluation import table_one
from kit.evaluation.blend import Blend
from kit.predict import blocks, models
from kit.predict.posts import join_posts, read_new
from kit.run.directory import Run
from kit.run.marks import read_mark
from kit.run.tuned import TUNED

LEVEL = 0.9  # of the range: share of the out-of-fold predictions that such ranges hold
NEEDED = ("04_features", "06_gbdt_folds", "07_blend")
MAKERS = ("02_prototypes", "03_clip_ft", *NEEDED)  # steps whose code must be that of now


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 predicted, 2 a mistake of the user)."""
    parser = argparse.ArgumentParser(prog="python -m kit.predict", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", metavar="RUN", help="a finished run, e.g. outputs/demo")
    parser.add_argument("--posts", metavar="FOLDER_OR_JSON", type=Path, required=True, help="the new posts")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("predictions.csv"), help="(default: predictions.csv)"
    )
    parser.add_argument(
        "--level", type=float, default=LEVEL, help=f"share of posts inside the range (default: {LEVEL})"
    )
    options = parser.parse_args(arguments)
    try:
        table = predict(resolve(options.run), options.posts, options.level)
        write_atomic(options.out, table.to_csv(index=False))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(table):,} posts, each with a range that holds {options.level:.0%} of the run's own")
    return 0


def predict(run_dir: Path, path: Path, level: float = LEVEL) -> pd.DataFrame:
    """Pid, Uid, prediction, low and high for each new post, on the scale of the label; prints what could not be computed.

    Args:
        run_dir: a finished run of this code.
        path: a folder in the layout of a release, whose test part is read, or a JSON file (see ``read_new``).
        level: share of the run's out-of-fold predictions that such ranges hold.
    Raises:
        InputError: posts or run are not as they must be; nothing is written then.
    """
    if not 0 < level < 1:
        raise InputError(f"--level {level}: expected a share between 0 and 1, as {LEVEL}")
    run = _open(run_dir)
    with tempfile.TemporaryDirectory() as folder:
        laid_out, work = Path(folder) / "release", Path(folder) / "work"
        laid_out.mkdir()
        work.mkdir()
        new, said = read_new(path, laid_out)
        posts, rows, unseen = join_posts(run.posts(), new)
        found, lost = _usable_models(run)
        asked = [model for model, weight in found.weights.items() if weight]
        wanted = dict.fromkeys(part for model in asked for part in _blocks_of(run, model))
        values, image_ok = blocks.new_values(run, posts, rows, list(wanted), work)
        if (~image_ok).any():
            unseen.append(f"{(~image_ok).sum():,} of the images cannot be read: what depends on them is missing")
        for line in [*said, *unseen, *lost]:
            print(f"note: {line}")
        joint = {name: blocks.joint_block(run.read_block(name), values[name], rows, len(posts)) for name in wanted}
        told = models.final_predictions(run, posts, rows, joint, asked, work)
        told |= {model: np.zeros(len(rows)) for model in found.weights if model not in told}  # their weight is 0
    prediction = found.predict(told)
    low, high = models.interval(run, found, posts, rows, prediction, level).T
    return pd.DataFrame({"Pid": new["Pid"], "Uid": new["Uid"], "prediction": prediction, "low": low, "high": high})


def _open(run_dir: Path) -> Run:
    """The run, if all that is needed of it is there and was made by the code of now."""
    run, again = Run.open(run_dir), "run ./run_all.sh for it again"
    marks = {step: read_mark(run_dir, step) for step in MAKERS}
    if missing := [step for step in NEEDED if marks[step] is None]:
        raise InputError(f"{run_dir} is not finished: {', '.join(missing)} did not run to the end; {again}")
    for step, mark in marks.items():
        kept = {name: value for name, value in mark["code"].items() if name != step} if mark else {}
        now = module_hashes(name for name in kept if is_module(name))
        if other := sorted(name for name in kept if now.get(name) != kept[name]):
            raise InputError(f"{run_dir} was made by other code ({step}: {', '.join(other[:3])}); {again}")
    return run


def _usable_models(run: Run) -> tuple[Blend, list[str]]:
    """The fusion of the models whose blocks can be made for new posts, and what is to be said of the others."""
    found, home, lost = models.fusion(run), models.model_home(run, run.posts()), {}
    for model, weight in found.weights.items():
        if weight and not (home / model / "final.npz").is_file():
            raise InputError(
                f"{run.dir} keeps no final model of {model}; make it with ./run_all.sh --force 06 --out {run.dir}"
            )
        for name in _blocks_of(run, model):
            if why := blocks.why_not(run, name, ENCODERS):
                lost[model] = f"block {name} cannot be made for new posts ({why}): fused without {model}"
    return (models.fusion(run, list(lost)) if lost else found), list(lost.values())


def _blocks_of(run: Run, model: str) -> tuple[str, ...]:
    one = table_one.parse_sets([model.rsplit("/", 1)[0]], run)[0]
    return one.blocks + (TUNED,) * one.tuned


if __name__ == "__main__":
    sys.exit(main())
