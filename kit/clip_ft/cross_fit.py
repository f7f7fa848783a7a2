"""Scores and losses of train posts by models that never met their authors, one model per fold of authors."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import ks_2samp

from kit.base.code import code_of
from kit.base.files import atomic_path, digest, hash_array
from kit.base.machine import usable_cores
from kit.base.tasks import map_tasks
from kit.clip_ft.export import SCORES, Export, export_posts
from kit.clip_ft.jobs import open_job, write_job
from kit.clip_ft.prototypes import Prototypes, mean_directions
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import Settings, TrainingData, train, training_key
from kit.encoders.clip import Clip


def cross_fit(
    clip: Clip,
    bank: TextBank,
    prototypes: Prototypes,
    data: TrainingData,
    text: np.ndarray,
    settings: Settings,
    folds: np.ndarray,
    export: Export,
    folder: Path,
    clip_dir: Path,
    workers: int = 0,
) -> Export:
    """``export`` with the scores and losses of train posts replaced by those of models that never met their authors.

    Args:
        clip, bank, prototypes, data, settings: as for ``train``; set ``settings.epochs`` to the best epoch found there.
        text: (n_posts, d) text features the textual prototypes are made from.
        folds: (n_posts,) int, the fold of each train post, authors never split; negative elsewhere.
        export: of the model trained on all fitting rows; its features and its test rows are kept.
        folder: where each fold keeps its files, ``fold_<k>/``; a finished fold is read, a cut one goes on.
        clip_dir: the folder ``clip`` was loaded from.
        workers: processes that train folds side by side; 0: as many as there are GPUs, each with its own. With one or
            none, the folds are trained one after another in this process.
    """
    if (workers or torch.cuda.device_count()) > 1:
        _score_in_workers(clip_dir, bank, prototypes, data, text, settings, folds, folder, workers)
    scores, losses, out_of_fold = export.scores.copy(), export.losses.copy(), export.out_of_fold.copy()
    for fold in np.unique(folds[folds >= 0]):
        path = score_fold(clip, bank, prototypes, data, text, settings, folds, fold, folder / f"fold_{fold}")
        with np.load(path) as found:
            rows = found["rows"]
            scores[rows], losses[rows], out_of_fold[rows] = found["scores"], found["losses"], True
    return replace(export, scores=scores, losses=losses, out_of_fold=out_of_fold)


def score_fold(
    clip: Clip,
    bank: TextBank,
    prototypes: Prototypes,
    data: TrainingData,
    text: np.ndarray,
    settings: Settings,
    folds: np.ndarray,
    fold: int,
    folder: Path,
) -> Path:
    """Train on all other folds and score the posts of ``fold``; no post of the fold is in a prototype.

    Depends on no other fold. Writes ``scores.npz`` (key, rows, scores, losses) into ``folder``, last of all, and returns
    its path; one made with the same data, settings and code is kept. Arguments as for ``cross_fit``.
    """
    rows, path = np.flatnonzero(folds == fold), folder / "scores.npz"
    others = replace(data, fit_rows=np.flatnonzero((folds >= 0) & (folds != fold)), valid_rows=rows[:0])
    reduced = without_posts(prototypes, data, text, rows)
    key = training_key(clip, bank, reduced, others, settings)
    key = digest([key, hash_array(rows), code_of("kit.clip_ft.cross_fit")])
    if not _is_made(path, key):
        trained = train(clip, bank, reduced, others, settings, folder)
        found = export_posts(trained.model, bank, others, rows)
        with atomic_path(path) as temporary:
            np.savez(temporary, key=key, rows=rows, scores=found.scores[rows], losses=found.losses[rows])
    return path


@dataclass(frozen=True)
class FoldTask:
    """One fold for a worker: where the job lies, which fold, how many workers share the memory."""

    job: Path
    fold: int
    workers: int


def score_task(task: FoldTask) -> None:
    """``score_fold`` in a process of its own, on the GPU it was given."""
    job = open_job(task.job, torch.device("cuda" if torch.cuda.is_available() else "cpu"), task.workers)
    text, folds, place = job.more["text"], job.more["folds"], task.job.with_name(f"fold_{task.fold}")
    score_fold(job.clip, job.bank, job.prototypes, job.data, text, job.settings, folds, task.fold, place)


def _score_in_workers(clip_dir, bank, prototypes, data, text, settings, folds, folder, workers: int) -> None:
    """Let worker processes make the files of the folds, which the caller then finds (arguments as for ``cross_fit``)."""
    job = folder / "job"
    write_job(job, clip_dir, bank, prototypes, data, settings, text=text, folds=folds)
    on_gpus, n = not workers, workers or torch.cuda.device_count()
    tasks = [FoldTask(job, int(fold), n) for fold in np.unique(folds[folds >= 0])]
    cpus = max(1, usable_cores() // n)
    for _ in map_tasks(score_task, tasks, cpus=cpus, gpus=int(on_gpus), cores=cpus * n, label="CLIP_FT", unit="fold"):
        pass
    shutil.rmtree(job)


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


def _is_made(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    with np.load(path) as found:
        return str(found["key"]) == key
