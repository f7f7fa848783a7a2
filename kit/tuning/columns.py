"""Columns of tuned encoders for every fit of the boosters, each taught by the labels of that fit's training side alone.

Posts of the training side are predicted by a network that saw none of their author's labels: the side is cut into parts by
author, and each is predicted by a network taught by the others. All other posts are predicted by one taught by the whole side.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.code import code_of
from kit.base.errors import InputError
from kit.base.files import digest, hash_array, read_npz, write_json, write_npz
from kit.base.metrics import mae, src
from kit.base.tasks import machine_shape, map_tasks
from kit.encoders.baselines import credit
from kit.encoders.registry import ENCODERS, chosen_models
from kit.encoders.weights import WEIGHTS_DIR, find_weights, missing_network
from kit.run.directory import Run
from kit.run.folds import Folds, inner_holdout, make_folds
from kit.run.tuned import FINAL, INDEX, TUNED, tuned_file

TUNABLE = ("minilm", "e5", "efficientnet")
PARTS = 3  # by author, of a training side
HELD_OUT = 0.15  # of the posts that teach a network, by author: choose the epoch


def check_encoders(
    names: Sequence[str], models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> None:
    """Refuse what could not be tuned.

    Raises:
        InputError: an unknown encoder, one whose weights are not on this computer, or peft is not installed.
    """
    if unknown := sorted(set(names) - set(TUNABLE)):
        raise InputError(f"04.tuned={','.join(unknown)}: encoders that can be tuned are {', '.join(TUNABLE)}")
    for name in names:
        if missing := missing_network(name, chosen_models(name, models)[name], weights_dir):
            raise InputError(f"04.tuned={name}: needs {missing}")
    if names and importlib.util.find_spec("peft") is None:
        raise InputError("04.tuned: the package peft is not installed: .venv/bin/python -m pip install -e '.[tuned]'")


def tune_encoders(
    run: Run, names: Sequence[str], texts: Sequence[str], cuts: Mapping[str, Folds], folder: Path,
    models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Write the columns of ``kit.run.tuned`` for every fold and for all train posts; what is there with the same inputs is kept.

    Args:
        names: of TUNABLE, at least one, as `check_encoders` lets them pass.
        texts: (n_posts,) what text encoders read.
        cuts: scheme -> its folds.
        folder: for the activations of the frozen halves.
        models: encoder -> another model than the usual one.
    Returns:
        scheme, encoder, n, src and mae of the column on the posts that are scored, src_frozen and mae_frozen of the ridge that
        it started from, epochs (mean over networks).
    """
    posts = run.posts()
    label, authors = posts["label"].to_numpy(), pd.factorize(posts["Uid"])[0]
    fits = {f"{scheme}/fold_{k}": cut.rows(k)[0] for scheme, cut in cuts.items() for k in range(len(cut.withheld))}
    fits |= {FINAL: np.flatnonzero(posts["split"] == "train")}
    gpus, tasks = int(machine_shape()[1] > 0), []
    for name in names:
        model = chosen_models(name, models)[name]
        source, below = (name, model, find_weights(name, model, weights_dir)), folder / "below" / name
        items = posts["image_path"].tolist() if ENCODERS[name].image else list(texts)
        inputs = [_keep_below(source, items, below), metadata.version("peft"), seed]
        for fit, rows in fits.items():
            taught_by = [hash_array(values) for values in (rows, label[rows], authors[rows])]
            key = digest([code_of("kit.tuning.columns", "kit.tuning.lora"), *inputs, *taught_by])
            tasks.append(TuneTask(run.dir, source, below, run.output(tuned_file(fit, name)), rows, seed, key))
    todo = [task for task in tasks if not task.is_done()]
    list(map_tasks(tune_fit, todo, cpus=0 if gpus else 1, gpus=gpus, label="tune encoders", unit="fit"))
    external = {name: credit(name, models).replace("frozen", "pre-trained", 1) for name in names}
    write_json(run.output(INDEX), {TUNED: external, "schemes": list(cuts)})
    return pd.DataFrame([_scores(run, scheme, cut, name, label) for scheme, cut in cuts.items() for name in names])


@dataclass(frozen=True)
class TuneTask:
    """An encoder, tuned for one fit.

    Attributes:
        run_dir: holds the posts table.
        source: encoder, model, and where its weights lie.
        below: folder of its activations.
        path: the file to write.
        rows: row positions of the training side.
        key: of all that the file depends on.
    """

    run_dir: Path
    source: tuple[str, str, Path]
    below: Path
    path: Path
    rows: np.ndarray
    seed: int
    key: str

    def is_done(self) -> bool:
        return read_npz(self.path, self.key) is not None

    def __str__(self) -> str:
        return f"{self.source[0]} for {self.path.parent}"


def tune_fit(task: TuneTask) -> None:
    """Write key, column and frozen (n_posts,) float32, NaN without an image, and losses (networks, epochs + 1) of a task."""
    from kit.encoders.precision import default_device
    from kit.tuning.activations import Activations, top_half
    from kit.tuning.lora import tuned_predictions

    posts, kept = Run(task.run_dir).posts(), Activations.open(task.below)
    label, top, device = posts["label"].to_numpy(), top_half(_encoder(task.source)), default_device()
    column, frozen = np.full((2, len(posts)), np.nan, dtype=np.float32)
    part, losses = make_folds(posts.iloc[task.rows], PARTS, "user", task.seed), []
    sides = [(task.rows[part != p], task.rows[part == p]) for p in range(PARTS)]
    for taught, asked in [*sides, (task.rows, np.setdiff1d(np.arange(len(posts)), task.rows))]:
        taught, asked = (rows[kept.item[rows] >= 0] for rows in (taught, asked))
        fit, stop = inner_holdout(posts, taught, HELD_OUT, task.seed)
        column[asked], frozen[asked], loss = tuned_predictions(top, kept, label, fit, stop, asked, task.seed, device)
        losses.append(loss)
    write_npz(task.path, key=task.key, column=column, frozen=frozen, losses=losses)


def _keep_below(source: tuple[str, str, Path], items: list[str], folder: Path) -> str:
    from kit.encoders.precision import default_device
    from kit.tuning.activations import keep_activations

    return keep_activations(_encoder(source), items, folder, default_device())


def _encoder(source: tuple[str, str, Path]) -> Any:
    from kit.encoders import networks

    return (networks.load_image_encoder if ENCODERS[source[0]].image else networks.load_text_encoder)(*source)


def _scores(run: Run, scheme: str, cut: Folds, name: str, label: np.ndarray) -> dict[str, Any]:
    found, epochs = np.full((2, len(label)), np.nan), []
    for k in range(len(cut.withheld)):
        valid = cut.rows(k)[1]
        with np.load(run.dir / tuned_file(f"{scheme}/fold_{k}", name)) as kept:
            found[:, valid] = kept["column"][valid], kept["frozen"][valid]
            epochs.append(kept["losses"].argmin(axis=1).mean())
    scored = np.isfinite(found[0])
    row = {"scheme": scheme, "encoder": name, "n": int(scored.sum()), "epochs": np.mean(epochs)}
    for end, values in zip(("", "_frozen"), found[:, scored], strict=True):
        row |= {f"src{end}": src(label[scored], values), f"mae{end}": mae(label[scored], values)}
    return row
