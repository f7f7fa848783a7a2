"""Pictures that look the same, though their files differ: perceptual hashes, and groups of those that are close."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kit.base.progress import progress
from kit.release.images import ImageDataset, group_by_content

SIDE, LOW = 32, 8  # pixels of the small grey picture, and of its lowest frequencies, a bit each
FLAT = 4.0  # grey levels of deviation below which a picture is one colour, and like any other
REACH = 3  # bits of 64 in which pictures that look the same may differ
BATCH = 256


def picture_groups(paths: Sequence[str], n_threads: int = 8) -> np.ndarray:
    """(n,) int64: one number for pictures that look the same; -1 for those that are unreadable, missing or of one colour.

    Args:
        paths: image files; "" for none.
        n_threads: images decoded at once.
    """
    first, inverse = np.unique(group_by_content(paths), return_inverse=True)
    dataset = ImageDataset([paths[row] for row in first], _small_grey, draft_px=SIDE)
    hashes, usable = [np.empty(0, np.uint64)], [np.empty(0, bool)]
    n_batches = -(-len(first) // BATCH)
    for pixels, reasons in progress(dataset.batches(BATCH, n_threads, 1), n_batches, "pictures", "batch"):
        grey = pixels[..., 0].astype(np.float32)
        hashes.append(picture_hashes(grey))
        usable.append((np.array(reasons) == "") & (grey.std(axis=(1, 2)) > FLAT))
    group, usable = near_same(np.concatenate(hashes)), np.concatenate(usable)
    return np.where(usable, group, -1)[inverse]


def picture_hashes(grey: np.ndarray) -> np.ndarray:
    """(n,) uint64 from (n, 32, 32) grey levels: which of the lowest frequencies are above their median.

    Source: pHash as in the package imagehash (Buchner), here for many pictures at once.
    """
    low = dctn(grey, axes=(1, 2))[:, :LOW, :LOW].reshape(len(grey), LOW * LOW)
    return np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1).view(np.uint64).ravel()


def near_same(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 group of each hash: those that differ in at most REACH bits, and those that are so related through others.

    Hashes so close are equal in one of four quarters, so only those with an equal quarter are compared.
    """
    distinct, inverse = np.unique(hashes, return_inverse=True)
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for quarter in distinct.view(np.uint16).reshape(len(distinct), 4).T:
        order = np.argsort(quarter, kind="stable")
        ordered, at = quarter[order], np.arange(len(order) - 1)
        for gap in range(1, len(order)):
            at = at[at + gap < len(order)]
            at = at[ordered[at] == ordered[at + gap]]
            if not len(at):
                break
            one, other = order[at], order[at + gap]
            close = np.bitwise_count(distinct[one] ^ distinct[other]) <= REACH
            pairs.append(np.stack([one[close], other[close]]))
    rows, columns = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(distinct), len(distinct)))
    return connected_components(graph, directed=False)[1][inverse].astype(np.int64)


def _small_grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))[..., None]
