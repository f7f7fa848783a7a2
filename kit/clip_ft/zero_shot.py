"""Zero-shot classification by sentences that name the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.encoders.text_tower import TextTower

CHUNK = 8192  # posts at a time


@torch.no_grad()
def zero_shot_classes(tower: TextTower, names: Sequence[str], template: str = "a photo of a {}.") -> Tensor:
    """(K, d) class embeddings of norm 1 from a fixed template: what the frozen tower knows without training."""
    ids = tower.tokenize([template.format(name) for name in names]).to(next(tower.parameters()).device)
    return F.normalize(tower.encode_ids(ids)[0].float(), dim=-1)


def zero_shot_accuracy(features: np.ndarray, class_emb: Tensor, labels: np.ndarray, rows: np.ndarray) -> float:
    """Share of ``rows``, posts that have a class, whose feature (n_posts, d) is nearest to their class embedding (K, d)."""
    if not len(rows):
        return float("nan")
    parts = np.array_split(rows, -(-len(rows) // CHUNK))
    cosines = (np.asarray(features[part], np.float32) @ class_emb.cpu().numpy().T for part in parts)  # times row norms
    return float((np.concatenate([part.argmax(axis=1) for part in cosines]) == labels[rows]).mean())
