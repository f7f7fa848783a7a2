"""Which training posts teach, and how much: selection by classification loss, and more weight for the popular tail.

Everything here takes the labels or losses of one training side and answers for that side alone; nothing touches a post
that is scored. The arrays go to `gbdt.fit_folds` as its `weight` and `copies`.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d

from kit.base.errors import InputError
from kit.base.shares import largest_remainder

SIDES = ("lowest", "highest", "random")
TAIL_SHARE = 0.0176  # of SMPD's train labels lie above 12: 5,384 of 305,613
REWEIGHTINGS = ("sqrt_inv", "inverse")
INVERSE_LIMITS = (5, 1000)  # counts beyond which inverse weights no longer change


def select_by_loss(
    loss: np.ndarray, keep: float, groups: np.ndarray | None = None, side: str = "lowest", seed: int = 0
) -> np.ndarray:
    """Which posts stay when a share of them is kept by loss: (n,) bool with round(keep * n) True.

    Args:
        loss: (n,) classification losses of training posts. NaN means that a post has none (no class, no image): such
            posts are kept at the same rate, drawn at random.
        keep: share to keep, in (0, 1].
        groups: (n,) keys within which to rank, e.g. subcategories; the largest remainders get what rounding leaves. None
            ranks all posts together, which can delete a hard class altogether.
        side: "lowest" keeps small losses (the paper's selection as we read it), "highest" large ones, "random" any: the
            two controls without which the first says nothing.
        seed: of random draws and of the order of ties.

    Raises:
        InputError: keep or side out of range, lengths that differ, an infinite loss.

    Source: loss-based sample selection, section 4.2 of the paper, which keeps 77 % and does not say which side.
    """
    loss = np.asarray(loss, dtype=np.float64)
    if loss.ndim != 1 or np.isinf(loss).any():
        raise InputError(f"losses must be a vector of numbers (NaN for none); got shape {loss.shape}, or an infinity")
    if not 0 < keep <= 1:
        raise InputError(f"keep={keep} is no share of the training posts; choose one above 0 and at most 1, as 0.77")
    if side not in SIDES:
        raise InputError(f"side {side!r} is unknown; choose one of {', '.join(SIDES)}")
    group = np.zeros(len(loss), dtype=np.int64) if groups is None else _codes(groups, len(loss))
    group = group * 2 + np.isnan(loss)  # posts without a loss are groups of their own
    _, group = np.unique(group, return_inverse=True)
    key = {"lowest": loss, "highest": -loss, "random": np.zeros(len(loss))}[side]
    order = np.lexsort((np.random.default_rng(seed).permutation(len(loss)), np.nan_to_num(key), group))
    n_of = np.bincount(group)
    place = np.empty(len(loss), dtype=np.int64)
    place[order] = np.arange(len(loss)) - np.repeat(np.cumsum(n_of) - n_of, n_of)
    return place < largest_remainder(n_of, round(keep * n_of.sum()))[group]


def tail_threshold(target: np.ndarray, share: float = TAIL_SHARE) -> float:
    """The label above which `share` of the posts lie, so that "the tail" means the same on labels of another range.

    Args:
        target: (n,) labels of training posts.
        share: of the posts in the tail, in (0, 1).

    Raises:
        InputError: no label, a label that is not finite, share out of range.
    """
    target = _labels(target)
    if not 0 < share < 1:
        raise InputError(f"the share of the tail is {share}; choose one between 0 and 1, as {TAIL_SHARE}")
    return float(np.quantile(target, 1 - share, method="lower"))


def oversample_tail(target: np.ndarray, rows: np.ndarray, factor: int, threshold: float | None = None) -> np.ndarray:
    """Row positions with those of the tail repeated: (n,) ascending, what `gbdt` counts as copies.

    Args:
        target: (n_posts,) labels; only those of `rows` are read.
        rows: row positions of one training side.
        factor: how often a post of the tail stands in the result, at least 1.
        threshold: labels above it are the tail (12 on SMPD); None takes `tail_threshold` of these rows.

    Raises:
        InputError: factor below 1, a label of `rows` that is not finite.

    Source: simple over-sampling of posts with popularity above 12, section 4.2 of the paper (Figure 3).
    """
    if factor < 1 or factor != int(factor):
        raise InputError(f"factor={factor}: a post can stand in the training side 1, 2, 3, ... times")
    return np.repeat(rows, np.where(in_tail(target, rows, threshold), int(factor), 1))


def tail_weights(target: np.ndarray, rows: np.ndarray, factor: float, threshold: float | None = None) -> np.ndarray:
    """(len(rows),) weights: `factor` for the tail, 1 for the rest (arguments as in `oversample_tail`).

    Unlike copies, weights leave the number of posts in a leaf and in a bagging sample as they are.
    """
    if not factor > 0:
        raise InputError(f"factor={factor}: a weight must be above 0")
    return np.where(in_tail(target, rows, threshold), float(factor), 1.0)


def in_tail(target: np.ndarray, rows: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """(len(rows),) bool, whether the label of a row lies above the threshold (as in `oversample_tail`)."""
    labels = _labels(np.asarray(target, dtype=np.float64)[rows])
    return labels > (tail_threshold(labels) if threshold is None else threshold)


def lds_weights(
    target: np.ndarray, bin_width: float = 0.5, reweight: str = "sqrt_inv", kernel_size: int = 5, sigma: float = 1.0
) -> np.ndarray:
    """(n,) weights of mean 1 that grow where labels are rare: label-distribution smoothing.

    Counts per bin are damped (their square root, or clipped), smoothed by a Gaussian kernel with its peak at 1, and
    inverted.

    Args:
        target: (n,) labels of one training side.
        bin_width: of a bin, in label units.
        reweight: "sqrt_inv": weights go with 1 / sqrt(count); "inverse": with 1 / count.
        kernel_size: bins under the kernel, odd.
        sigma: of the kernel, in bins.

    Raises:
        InputError: an unknown reweighting, a kernel that is no kernel, a label that is not finite.

    Source: Yang et al. 2021, "Delving into Deep Imbalanced Regression"; values of its training script.
    """
    target = _labels(target)
    if reweight not in REWEIGHTINGS:
        raise InputError(f"reweighting {reweight!r} is unknown; choose one of {', '.join(REWEIGHTINGS)}")
    if kernel_size < 1 or kernel_size % 2 == 0 or not sigma > 0 or not bin_width > 0:
        raise InputError(
            f"kernel_size={kernel_size}, sigma={sigma}, bin_width={bin_width}: the kernel needs an odd number of bins, and "
            "all three must be above 0"
        )
    bins = np.floor((target - target.min()) / bin_width).astype(np.int64)
    counts = np.bincount(bins).astype(np.float64)
    counts = np.sqrt(counts) if reweight == "sqrt_inv" else np.where(counts > 0, counts.clip(*INVERSE_LIMITS), 0)
    reach = kernel_size // 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight = 1 / convolve1d(counts, kernel, mode="constant")[bins]
    return weight / weight.mean()


def _codes(groups: np.ndarray, n: int) -> np.ndarray:
    groups = np.asarray(groups)
    if len(groups) != n:
        raise InputError(f"{n} losses but {len(groups)} group keys; one of each per post is needed")
    return np.unique(groups.astype(str), return_inverse=True)[1]


def _labels(target: np.ndarray) -> np.ndarray:
    target = np.asarray(target, dtype=np.float64)
    if not target.size or not np.isfinite(target).all():
        raise InputError(
            "training labels must be finite numbers, and at least one; give rows of the training side only"
        )
    return target
