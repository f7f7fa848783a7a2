"""Scores and losses of train posts by models that never met their authors, one model per fold of authors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import ks_2samp

from kit.base.code import code_of
from kit.base.files import digest, hash_array, read_npz, write_npz
from kit.base.machine import GB, memory_gb
from kit.base.tasks import machine_shape, map_tasks, on_cluster
from kit.clip_ft.export import SCORES, Export, export_posts
from kit.clip_ft.jobs import Job, as_files, open_job
from kit.clip_ft.prototypes import Prototypes, mean_directions
from kit.clip_ft.train import TrainingData
from kit.encoders.clip import Clip

WORKER_GB = 1.5  # of a process that trains a fold, without its CLIP
WORTH_POSTS = 5000  # fewer are trained on one fold after the other


def cross_fit(job: Job, export: Export, folder: Path, clip_dir: Path, workers: int = 0) -> Export:
    """``export`` with the scores and losses of train posts replaced by those of models that never met their authors.

    Args:
        job: with text and folds; set ``settings.epochs`` to the best epoch of the model trained on all fitting rows.
        export: of that model; its features and its test rows are kept.
        folder: where each fold keeps its files, ``fold_<k>/``; a finished fold is read, a cut one goes on.
        clip_dir: the folder ``job.clip`` was loaded from.
        workers: processes that train folds side by side; 0: as many as there are GPUs, each with its own. With one or
            none, the folds are trained one after another in this process.
    """
    n_side_by_side = workers or machine_shape()[1]
    todo = [int(fold) for fold in np.unique(job.folds[job.folds >= 0])]
    if n_side_by_side > 1 or on_cluster():
        found = _score_in_workers(job, todo, folder, clip_dir, workers, max(1, n_side_by_side))
    else:
        found = [score_fold(job, fold, folder / f"fold_{fold}") for fold in todo]
    scores, losses, out_of_fold = export.scores.copy(), export.losses.copy(), export.out_of_fold.copy()
    for part in found:
        rows = part["rows"]
        scores[rows], losses[rows], out_of_fold[rows] = part["scores"], part["losses"], True
    return replace(export, scores=scores, losses=losses, out_of_fold=out_of_fold)


def side_by_side(clip: Clip, folds: np.ndarray) -> int:
    """Processes for ``cross_fit`` on a machine without a GPU, as far as cores and memory go; 0 where it decides itself.

    One thread in each does more than many threads in one after the other: the products are small. Few posts are done
    before a process has started.

    Args:
        clip: that each will load.
        folds: as of ``Job``.
    """
    cores, gpus = machine_shape()
    weights_gb = sum(values.nbytes for values in clip.model.state_dict().values()) / GB
    fit = int(memory_gb()[0] / (WORKER_GB + 2 * weights_gb))  # weights as read, and as loaded
    n = min(folds.max() + 1, cores, fit - 1)  # this process stays beside them
    return 0 if gpus or on_cluster() or n < 2 or (folds >= 0).sum() < WORTH_POSTS else int(n)


def score_fold(job: Job, fold: int, folder: Path) -> dict[str, np.ndarray]:
    """Train on all other folds and score the posts of ``fold``; no post of the fold is in a prototype.

    Depends on no other fold. Writes ``scores.npz`` (key, rows, scores, losses) into ``folder``, last of all, and returns
    rows, scores and losses; one made with the same data, settings and code is kept.
    """
    rows, path = np.flatnonzero(job.folds == fold), folder / "scores.npz"
    others = np.flatnonzero((job.folds >= 0) & (job.folds != fold))
    data = replace(job.data, fit_rows=others, valid_rows=rows[:0])
    job = replace(job, data=data, prototypes=without_posts(job.prototypes, data, job.text, rows))
    key = digest([job.key(), hash_array(rows), code_of("kit.clip_ft.cross_fit")])
    if (kept := read_npz(path, key)) is None:
        found = export_posts(job.train(folder).model, job.bank, data, rows)
        kept = {"rows": rows, "scores": found.scores[rows], "losses": found.losses[rows]}
        write_npz(path, key=key, **kept)
    return kept


@dataclass(frozen=True)
class FoldTask:
    """One fold for a worker: where the job lies, which fold, how many workers share the memory of a machine."""

    job: Path
    fold: int
    workers: int


def score_task(task: FoldTask) -> dict[str, np.ndarray]:
    """``score_fold`` in a process of its own, on the GPU it was given."""
    job = open_job(task.job, torch.device("cuda" if torch.cuda.is_available() else "cpu"), task.workers)
    return score_fold(job, task.fold, task.job.with_name(f"fold_{task.fold}"))


def _score_in_workers(job: Job, todo: list[int], folder: Path, clip_dir: Path, workers: int, n: int) -> list[dict]:
    """The scores of the folds, made by tasks, n of them side by side on a machine."""
    cores, gpus = machine_shape()
    on_gpus, cpus = int(not workers and gpus > 0), max(1, cores // n)
    with as_files(job, folder / "job", clip_dir) as written:
        tasks = [FoldTask(written, fold, n) for fold in todo]
        done = map_tasks(score_task, tasks, cpus=cpus, gpus=on_gpus, cores=cpus * n, label="CLIP_FT", unit="fold")
        return [part for _, part in done]


def without_posts(prototypes: Prototypes, data: TrainingData, text: np.ndarray, rows: np.ndarray) -> Prototypes:
    """The prototypes made again from those of their shots that are not among ``rows``."""
    shots = prototypes.shots[~prototypes.shots["row"].isin(rows)]
    codes = pd.Index(prototypes.classes).get_indexer(shots["Subcategory"])
    at, n_classes = shots["row"].to_numpy(), len(prototypes.classes)
    visual = mean_directions(data.image, at, codes, n_classes, data.image_ok)
    return replace(prototypes, visual=visual, textual=mean_directions(text, at, codes, n_classes), shots=shots)


def score_shift(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """How differently each score is distributed over the rows ``first`` and ``second``: both means and the KS distance."""
    lines = []
    for name, column in zip(SCORES, scores.T, strict=True):
        parts = [part[~np.isnan(part)] for part in (column[first], column[second])]
        known = min(map(len, parts)) > 0
        lines.append((name, *(part.mean() if known else np.nan for part in parts)))
        lines[-1] += (ks_2samp(*parts).statistic if known else np.nan,)
    return pd.DataFrame(lines, columns=["score", "first", "second", "ks"])
