"""Embeddings of a frozen encoder as a block: principal components of both modalities, and their cosine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kit.encoders.pca import apply_pca, fit_pca
from kit.run.block import Block


def clip_block(
    image_emb: np.ndarray | None, text_emb: np.ndarray | None, image_ok: np.ndarray | None, train_rows: np.ndarray,
    components: int, cosine: bool = True, name: str = "clip", source: str = "frozen CLIP", external: str = "",
    pca: Mapping[str, np.ndarray] | None = None,
) -> Block:  # fmt: skip
    """Block ``clip``, or that of another encoder: principal components of both embeddings, and their cosine.

    Args:
        image_emb, text_emb: (n_posts, d) float16; None for an encoder of the other modality alone.
        image_ok: (n_posts,) bool; image columns of other posts are NaN.
        train_rows: row positions the PCA is fitted on.
        components: columns per modality; 0 keeps all d.
        cosine: leave it out for a model that was trained on the train posts themselves: it has pulled their images and
            texts together, so their cosines are larger than those of test posts (KS distance 0.3 to 0.4 on the demo).
        name: of the block; its columns begin with it.
        source: whose embeddings these are.
        external: the pre-trained models they come from; "" for a model trained on the run's own posts.
        pca: of an earlier block, for further posts; None fits it.
    """
    parts, pca = {}, dict(pca or {})
    given = {kind: values for kind, values in (("image", image_emb), ("text", text_emb)) if values is not None}
    for kind, values in given.items():
        if components and kind not in pca:
            pca[kind] = fit_pca(values, train_rows[image_ok[train_rows]] if kind == "image" else train_rows, components)
        reduced = apply_pca(values, pca[kind]) if kind in pca else np.asarray(values, dtype=np.float32)
        parts[kind] = np.where(image_ok[:, None], reduced, np.nan) if kind == "image" else reduced
    columns = [f"{name}_{kind}_{i:02d}" for kind, values in parts.items() for i in range(values.shape[1])]
    if cosine and len(given) == 2:
        parts["cosine"] = image_text_cosine(image_emb, text_emb, image_ok)
        columns.append(f"{name}_cosine")
    values = np.column_stack(list(parts.values())).astype(np.float32)
    source += ": embeddings of " + " and ".join(given) + (", and their cosine" if "cosine" in parts else "")
    return Block(name, values, columns, [], source, external, pca=pca)


def image_text_cosine(image_emb: np.ndarray, text_emb: np.ndarray, image_ok: np.ndarray) -> np.ndarray:
    """(n_posts,) float32, how well image and text of a post agree; NaN without a readable image (arguments as above)."""
    products = np.einsum("nd,nd->n", np.asarray(image_emb, np.float32), np.asarray(text_emb, np.float32))
    return np.where(image_ok, products, np.float32(np.nan)).astype(np.float32)


def nearest_posts(embeddings: np.ndarray, rows: np.ndarray, pool: np.ndarray, n: int, chunk: int = 256) -> np.ndarray:
    """(m, n) positions of the posts of ``pool`` whose embedding is most like that of each of ``rows`` (m,), best first.

    Args:
        embeddings: (n_posts, d), rows of norm 1.
        rows: (m,) positions; a row is not its own neighbour.
        pool: positions to choose from.
        n: neighbours per row, as far as the pool has so many.
        chunk: rows compared at a time.
    """
    n = min(n, len(pool) - 1)
    among, found = np.asarray(embeddings[pool], np.float32), [np.empty((0, n), pool.dtype)]
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        cosine = np.where(part[:, None] == pool, -np.inf, np.asarray(embeddings[part], np.float32) @ among.T)
        best = np.argpartition(-cosine, n, axis=1)[:, :n]
        order = np.take_along_axis(-cosine, best, axis=1).argsort(axis=1, kind="stable")
        found.append(pool[np.take_along_axis(best, order, axis=1)])
    return np.concatenate(found)
