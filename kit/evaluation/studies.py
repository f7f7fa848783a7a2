"""The paper's two experiments on training posts: more weight for the popular tail, and fewer posts chosen by loss.

Both train the same booster again and again on the same folds and change nothing but who teaches it, inside the training
side of each fold. ``fit`` is `boosting.tasks.variants_of` some training: it takes all variants at once, each as its weight or
copies, seed and out_dir, so that they can be fitted side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.metrics import error_buckets, mae, src
from kit.boosting import sampling
from kit.boosting.result import FoldResult
from kit.evaluation.bootstrap import paired_difference
from kit.run.folds import fold_rows

Fit = Callable[[dict[Any, dict[str, Any]]], dict[Any, FoldResult]]
PLAIN = "plain"
N_BUCKETS = 8  # of the label range, for errors by popularity
PAPER_RATIO, PAPER_LOSS = 0.77, 0.01  # "using only 77 % ... less than 1 % degradation"
SCOPES = ("all posts", "within subcategory")


@dataclass(frozen=True)
class TailStudy:
    """What more weight for the tail does.

    Attributes:
        threshold: label above which a post belongs to the tail in the scores.
        table: one row per variant: scores overall and in the tail, biases, differences to "plain".
        buckets: variant, low, high, n, mae, bias: errors by label, means over seeds.
        oof: variant -> (n_seeds, n_posts) out-of-fold predictions.
    """

    threshold: float
    table: pd.DataFrame
    buckets: pd.DataFrame
    oof: dict[str, np.ndarray]


def tail_study(
    fit: Fit, target: np.ndarray, folds: np.ndarray, authors: np.ndarray, *, factors: Sequence[int] = (2, 3, 5),
    threshold: float = 0.0, seeds: Sequence[int] = (0,), folder: Path | None = None,
) -> TailStudy:  # fmt: skip
    """Every way to give the tail more weight, against training as it is.

    Variants: "plain"; "copies xk": posts of the tail stand k times in the training side; "weight xk": they stand once and
    count k times; "LDS": weights by label-distribution smoothing.

    Args:
        fit: see above.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`.
        authors: (n_posts,) key of each post's author.
        factors: the k of copies and weights.
        threshold: labels above it are the tail, e.g. 12 on SMPD; 0 takes the label above which 1.76 % of the posts lie.
        seeds: each variant is trained once per seed; scores, differences and their ranges are means over seeds.
        folder: where fits are kept for a later call.

    Source: section 4.2 and Figure 3 of the paper.
    """
    given = threshold or None
    scored = np.isfinite(target) & (folds >= 0)
    limit = given or sampling.tail_threshold(target[np.isfinite(target)])
    makers: dict[str, dict[str, Callable]] = {PLAIN: {}}
    for k in factors:
        makers[f"copies x{k}"] = {"copies": lambda rows, k=k: _copies(target, rows, k, given)}
    for k in factors:
        makers[f"weight x{k}"] = {"weight": lambda rows, k=k: sampling.tail_weights(target, rows, k, given)}
    makers["LDS"] = {"weight": lambda rows: sampling.lds_weights(target[rows])}
    per_fit = {name: {key: per_fold(folds, maker) for key, maker in how.items()} for name, how in makers.items()}
    found = fit({
        (name, seed): per_fit[name] | {"seed": seed, "out_dir": _place(folder, "tail", name, seed)}
        for name in makers for seed in seeds
    })  # fmt: skip
    rows, buckets, oof = [], [], {}
    for name in makers:
        results = [found[name, seed] for seed in seeds]
        oof[name] = np.stack([result.oof for result in results])
        rows.append({"variant": name, **_tail_scores(results, target, scored, limit)})
        rows[-1] |= _against(target, oof[PLAIN], oof[name], authors, scored)
        errors = error_buckets(np.tile(target[scored], len(seeds)), oof[name][:, scored].ravel(), N_BUCKETS)
        buckets.append(errors[errors["n"] > 0].assign(variant=name, n=lambda table: table["n"] // len(seeds)))
    table = pd.DataFrame(rows).assign(threshold=limit, seeds=len(seeds))
    return TailStudy(limit, table, pd.concat(buckets, ignore_index=True), oof)


def selection_study(
    fit: Fit, loss: np.ndarray, folds: np.ndarray, groups: np.ndarray, *, ratios: Sequence[float],
    seeds: Sequence[int] = (0,), folder: Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Training on a share of the training side chosen by classification loss, beside the two controls.

    Args:
        fit: see above.
        loss: (n_posts,) losses of CLIP_FT; those of scored posts are not read in their fold.
        folds: (n_posts,) from `folds.make_folds`.
        groups: (n_posts,) subcategories.
        ratios: shares to keep; 1 is trained too, as the reference.
        seeds: of selection, held-out authors and boosting; scores are means over them.
        folder: where fits are kept for a later call, as `tail_study` keeps them: its "plain" is the reference here.

    Returns:
        ratio, side, scope, n_taught, src, src_sd (folds), src_low, src_high (seeds), mae, mae_sd, mae_low, mae_high,
        seconds, seeds. The reference has side "all".

    Source: section 4.2 and Figure 4b of the paper, with the controls it lacks.
    """
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise InputError(f"ratios {list(ratios)}: expected shares above 0 and at most 1, as 0.77")
    cells = [(1.0, "all", SCOPES[0])]
    shares = sorted({float(ratio) for ratio in ratios if ratio < 1}, reverse=True)
    cells += [(ratio, side, scope) for scope in SCOPES for side in sampling.SIDES for ratio in shares]
    cells = [cell for cell in cells if cell[1:] != ("random", SCOPES[1])]  # random is random: one control is enough
    variants = {(*cells[0], seed): {"seed": seed, "out_dir": _place(folder, "tail", PLAIN, seed)} for seed in seeds}
    variants |= {
        (ratio, side, scope, seed): {
            "copies": selected(loss, folds, ratio, side, groups if scope == SCOPES[1] else None, seed), "seed": seed,
            "out_dir": _place(folder, f"selection/{side}_{scope}".replace(" ", "_"), f"{ratio:g}", seed),
        }
        for ratio, side, scope in cells[1:] for seed in seeds
    }  # fmt: skip
    found = fit(variants)
    rows = []
    for ratio, side, scope in cells:
        results = [found[ratio, side, scope, seed] for seed in seeds]
        rows.append({"ratio": ratio, "side": side, "scope": scope, **_seed_scores(results)})
        rows[-1]["n_taught"] = round(ratio * np.mean([len(fold_rows(folds, k)[0]) for k in range(folds.max() + 1)]))
    return pd.DataFrame(rows).assign(seeds=len(seeds))


def selected(
    loss: np.ndarray, folds: np.ndarray, ratio: float, side: str, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """(n_folds, n_posts) bool: which posts of each fold's training side `sampling.select_by_loss` keeps."""

    def kept(rows: np.ndarray) -> np.ndarray:
        return sampling.select_by_loss(loss[rows], ratio, None if groups is None else groups[rows], side, seed)

    return per_fold(folds, kept)


def per_fold(folds: np.ndarray, maker: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(n_folds, n_posts): maker(rows) for the rows of each training side, 0 for every other post."""
    sides = [fold_rows(folds, k)[0] for k in range(int(folds.max()) + 1)]
    made = [maker(rows) for rows in sides]
    out = np.zeros((len(sides), len(folds)), dtype=made[0].dtype)
    for k, rows in enumerate(sides):
        out[k, rows] = made[k]
    return out


def read_tail(study: TailStudy) -> str:
    """One line: what the variant with the least MAE in the tail does there and to everything else."""
    table = study.table.set_index("variant")
    best = table["mae_tail"].drop(PLAIN).idxmin()
    row, plain = table.loc[best], table.loc[PLAIN]
    overall = "lower" if row["d_src_high"] < 0 else "higher" if row["d_src_low"] > 0 else "unchanged within its range"
    return (
        f"Tail (label above {study.threshold:.2f}, n = {plain['n_tail']:,.0f} of {plain['n']:,.0f}): {best} moves the tail's "
        f"MAE from {plain['mae_tail']:.3f} to {row['mae_tail']:.3f} (the best of {len(table) - 1} variants on these very "
        f"posts); SRC over all posts is {overall} "
        f"({row['d_src']:+.4f}, 95 % range {row['d_src_low']:+.4f} to {row['d_src_high']:+.4f}) and the mean "
        f"prediction moves by {row['bias'] - plain['bias']:+.3f}."
    )


def read_selection(table: pd.DataFrame, ratio: float = PAPER_RATIO) -> str:
    """One line: what is left of SRC at the paper's ratio (or the nearest one), and whether a random choice does as well."""
    full = table[table["side"] == "all"].iloc[0]
    part = table[(table["side"] != "all") & (table["scope"] == SCOPES[0])]
    if part.empty:
        return "Only full training was run, so there is nothing to compare."
    nearest = part["ratio"].iloc[(part["ratio"] - ratio).abs().argmin()]
    rows = part[part["ratio"] == nearest].set_index("side")
    change = {side: rows.loc[side, "src"] / full["src"] - 1 for side in sampling.SIDES}
    within = "within" if change["lowest"] > -PAPER_LOSS else "not within"
    low, high = rows.loc["lowest", ["src_low", "src_high"]]
    verdict = (
        "choosing by loss beats choosing at random" if low > rows.loc["random", "src_high"]
        else "choosing by loss is worse than choosing at random" if high < rows.loc["random", "src_low"]
        else "choosing by loss is no different from choosing at random, given the spread over seeds"
    )  # fmt: skip
    return (
        f"At {nearest:.0%} of the training posts, lowest losses keep SRC {within} 1 % of full training "
        f"({change['lowest']:+.1%}; random {change['random']:+.1%}, highest {change['highest']:+.1%}; "
        f"{full['seeds']:.0f} seeds): {verdict}."
    )


def _copies(target: np.ndarray, rows: np.ndarray, factor: int, threshold: float | None) -> np.ndarray:
    counts = np.bincount(sampling.oversample_tail(target, rows, factor, threshold), minlength=len(target))
    return counts[rows].astype(np.uint16)  # one array per variant waits for its fit


def _tail_scores(results: list[FoldResult], target: np.ndarray, scored: np.ndarray, limit: float) -> dict[str, float]:
    """Means over seeds; SRC and MAE overall are means over folds with their standard deviation, tail scores are pooled."""
    tail = scored & (target > limit)
    pooled = []
    for result in results:
        error = result.oof - target
        pooled.append({"src_tail": src(target[tail], result.oof[tail]), "mae_tail": mae(target[tail], result.oof[tail]),
                       "bias": error[scored].mean(), "bias_tail": error[tail].mean()})  # fmt: skip
    counts = {"n": int(scored.sum()), "n_tail": int(tail.sum())}
    return counts | _seed_scores(results) | pd.DataFrame(pooled).mean().to_dict()


def _seed_scores(results: list[FoldResult]) -> dict[str, float]:
    summaries = pd.DataFrame([result.summary() for result in results])
    out = {}
    for metric in ("src", "mae"):
        means = summaries[metric]
        out |= {metric: means.mean(), f"{metric}_sd": summaries[f"{metric}_sd"].mean()}
        out |= {f"{metric}_low": means.min(), f"{metric}_high": means.max()}
    return out | {"seconds": summaries["seconds"].mean()}


def _against(target, plain: np.ndarray, oof: np.ndarray, authors: np.ndarray, scored: np.ndarray) -> dict[str, float]:
    found = paired_difference(target[scored], plain[:, scored], oof[:, scored], authors[scored])
    return {f"d_{name}": value for name, value in asdict(found).items()}


def _place(folder: Path | None, study: str, name: str, seed: int) -> Path | None:
    return folder / study / name.replace(" ", "_") / str(seed) if folder else None
