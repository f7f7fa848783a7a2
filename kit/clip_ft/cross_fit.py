"""Class scores of train posts by models that were not fitted to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from kit.clip_ft.export import SCORES, Export, export_posts, without_posts
from kit.clip_ft.prototypes import Prototypes
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import Settings, TrainingData, train
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
) -> Export:
    """``export`` with the scores and losses of training rows replaced by those of models that never met their authors.

    Args:
        clip, bank, prototypes, data, settings: as for ``train``; set ``settings.epochs`` to the best epoch found there.
        text: (n_posts, d) text features the textual prototypes are made from.
        folds: (n_posts,) int, the fold of each training row, authors never split; negative elsewhere.
        export: of the model trained on all fitting rows; its features and its test rows are kept.
        folder: checkpoints of the fold models, ``fold_<k>/``.
    """
    scores, losses = export.scores.copy(), export.losses.copy()
    for fold in np.unique(folds[folds >= 0]):
        mine = np.flatnonzero(folds == fold)
        others = replace(data, fit_rows=np.flatnonzero((folds >= 0) & (folds != fold)), valid_rows=mine[:0])
        trained = train(
            clip, bank, without_posts(prototypes, data, text, mine), others, settings, folder / f"fold_{fold}"
        )
        held_out = export_posts(trained.model, bank, data, mine)
        scores[mine], losses[mine] = held_out.scores[mine], held_out.losses[mine]
    return replace(export, scores=scores, losses=losses)


def score_shift(scores: np.ndarray, fit_rows: np.ndarray, valid_rows: np.ndarray) -> pd.DataFrame:
    """Mean of each score on rows the model was fitted to and on unseen ones, and their Kolmogorov-Smirnov distance."""
    lines = []
    for name, column in zip(SCORES, scores.T, strict=True):
        fit, valid = (part[~np.isnan(part)] for part in (column[fit_rows], column[valid_rows]))
        lines.append((name, fit.mean(), valid.mean(), ks_2samp(fit, valid).statistic))
    return pd.DataFrame(lines, columns=["score", "fitted", "unseen", "ks"])
