"""Zero-shot classification by sentences that name the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.encoders.text_tower import TextTower
from kit.release.taxonomy import prompt_names

CHUNK = 8192  # posts at a time


def zero_shot(
    tower: TextTower, classes: list[str], image_emb: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> float:
    """Share of ``rows`` whose image is nearest to the sentence that names its own class.

    Args:
        tower: text tower of the model that made the embeddings.
        classes: K subcategories.
        image_emb: (n_posts, d) float16, rows of norm 1.
        labels: (n_posts,) int class of each post, -1 where it has none.
        rows: row positions to measure on.
    """
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        return float("nan")
    return zero_shot_accuracy(image_emb, zero_shot_classes(tower, prompt_names(classes)), labels, rows)


@torch.no_grad()
def zero_shot_classes(tower: TextTower, names: Sequence[str], template: str = "a photo of a {}.") -> Tensor:
    """(K, d) class embeddings of norm 1 from a fixed template: what the frozen tower knows without training."""
    ids = tower.tokenize([template.format(name) for name in names]).to(next(tower.parameters()).device)
    return F.normalize(tower.encode_ids(ids)[0].float(), dim=-1)


def zero_shot_accuracy(features: np.ndarray, class_emb: Tensor, labels: np.ndarray, rows: np.ndarray) -> float:
    """Share of ``rows`` whose feature (n_posts, d) is nearest to its own class embedding (K, d)."""
    parts = np.array_split(rows, -(-len(rows) // CHUNK) or 1)
    cosines = (np.asarray(features[part], np.float32) @ class_emb.cpu().numpy().T for part in parts)  # times row norms
    return float((np.concatenate([part.argmax(axis=1) for part in cosines]) == labels[rows]).mean())
