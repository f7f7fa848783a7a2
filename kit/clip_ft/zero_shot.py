"""What frozen features know of the classes: by sentences that name them, and by a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kit.encoders.text_tower import TextTower

CHUNK = 8192  # posts at a time
PROBE_POSTS = 20_000  # at most, that a linear classifier learns from


@torch.no_grad()
def zero_shot_classes(tower: TextTower, names: Sequence[str], template: str = "a photo of a {}.") -> Tensor:
    """(K, d) class embeddings of norm 1 from a fixed template: what the frozen tower knows without training."""
    ids = tower.tokenize([template.format(name) for name in names]).to(next(tower.parameters()).device)
    return F.normalize(tower.encode_ids(ids)[0].float(), dim=-1)


def nearest_class(features: np.ndarray, class_emb: Tensor, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) int: the class whose embedding (K, d) is nearest to the feature (n_posts, d) of each of ``rows``."""
    parts = np.array_split(rows, max(1, -(-len(rows) // CHUNK)))
    cosines = (np.asarray(features[part], np.float32) @ class_emb.cpu().numpy().T for part in parts)  # times row norms
    return np.concatenate([part.argmax(axis=1) for part in cosines])


def zero_shot_accuracy(features: np.ndarray, class_emb: Tensor, labels: np.ndarray, rows: np.ndarray) -> float:
    """Share of ``rows``, posts that have a class, whose feature (n_posts, d) is nearest to their class embedding (K, d)."""
    return float((nearest_class(features, class_emb, rows) == labels[rows]).mean()) if len(rows) else float("nan")


def confused(said: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Which classes are taken for which, those that go wrong most often first.

    Args:
        said, labels: (n,) int places in ``classes``, of posts that have a class.

    Returns:
        DataFrame subcategory, n, right (share of its posts), taken_for (the wrong class said most often; "" without), share.
    """
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (labels, said), 1)
    n, right = counts.sum(axis=1), counts.diagonal().copy()
    np.fill_diagonal(counts, 0)
    names, most, part = np.array(classes), counts.max(axis=1), 1 / np.maximum(n, 1)
    taken_for = np.where(most, names[counts.argmax(axis=1)], "")
    table = pd.DataFrame(
        {"subcategory": names, "n": n, "right": right * part, "taken_for": taken_for, "share": most * part}
    )
    return table.iloc[np.argsort(right - n, kind="stable")].query("n > 0").reset_index(drop=True)


def probe_accuracy(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, folds: np.ndarray, seed: int = 0
) -> float:  # fmt: skip
    """Share of ``rows`` whose class a linear classifier finds that learnt from the posts of all other folds.

    Args:
        features: (n_posts, d), rows of norm 1.
        labels: (n_posts,) int class, -1 where a post has none.
        rows: posts that have a class.
        folds: (n_posts,) int, authors never split; posts of negative ones teach nothing.
        seed: of the draw where there are more than ``PROBE_POSTS``.
    Source: linear probe of CLIP, Radford et al., ICML 2021 (logistic regression).
    """
    right, rng = np.zeros(len(rows), dtype=bool), np.random.default_rng(seed)
    for fold in np.unique(folds[rows]):
        fit = np.flatnonzero((folds >= 0) & (folds != fold) & (labels >= 0))
        fit = rng.permutation(fit)[:PROBE_POSTS]
        probe = LogisticRegression(C=10.0, max_iter=300)  # features of norm 1 need little shrinkage
        probe.fit(np.asarray(features[fit], np.float32), labels[fit])
        own = folds[rows] == fold
        right[own] = probe.predict(np.asarray(features[rows[own]], np.float32)) == labels[rows[own]]
    return float(right.mean()) if len(rows) else float("nan")
