"""Principal components of embeddings, fitted on some rows."""

from __future__ import annotations

import numpy as np

CHUNK = 16384  # rows at a time


def fit_pca(values: np.ndarray, fit_rows: np.ndarray, n_components: int, chunk: int = CHUNK) -> np.ndarray:
    """(1 + min(n_components, d), d) float64: the mean of ``fit_rows`` and their principal components; NaN rows do not count.

    Mean and covariance are summed up chunk by chunk, so ``values`` may be a memory map. The sign of a component is
    such that its largest loading is positive.
    """
    dim = values.shape[1]
    total, outer, count = np.zeros(dim), np.zeros((dim, dim)), 0
    for start in range(0, len(fit_rows), chunk):
        part = np.asarray(values[fit_rows[start : start + chunk]], np.float64)
        part = part[~np.isnan(part).any(axis=1)]
        total, outer, count = total + part.sum(axis=0), outer + part.T @ part, count + len(part)
    mean = total / max(count, 1)
    _, vectors = np.linalg.eigh(outer / max(count, 1) - np.outer(mean, mean))
    components = vectors[:, ::-1][:, :n_components]
    components = components * np.sign(components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])])
    return np.vstack([mean, components.T])


def apply_pca(values: np.ndarray, pca: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """(n, n_components) float32 from what ``fit_pca`` returns; rows with NaN stay NaN."""
    parts = [
        ((np.asarray(values[start : start + chunk], np.float64) - pca[0]) @ pca[1:].T).astype(np.float32)
        for start in range(0, len(values), chunk)
    ]
    return np.concatenate(parts)
