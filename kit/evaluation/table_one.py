"""Table 1: what each block of features brings, for every model and their fusion, with the spread over folds.

A feature set is written as its blocks joined by "+", e.g. ``statistic+behaviour+clip_ft``. The word ``taught`` adds the
columns that are made from training labels inside each fold (`kit.boosting`), and ``tuned``, beside it, those of encoders tuned
on these labels (`kit.tuning`); the paper has no such rows. Blocks `statistic`
and `behaviour` stand in for the paper's statistical and user features, which it does not list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.metrics import over_folds
from kit.boosting.result import FoldResult
from kit.evaluation.blend import fit_blend
from kit.evaluation.bootstrap import paired_difference
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.matrix import join_blocks
from kit.run.tuned import TUNED, tuned_external, why_not_tuned

TAUGHT = "taught"
PAPER_ROWS = "paper"  # stands for the twelve feature sets of the paper's table
ALL = "all"  # stands for every block of the run, and TAUGHT
INSTEAD = {
    "clip_ft": "clip_ft_full",
    "blip": "blip2",
}  # a block of the paper's rows -> what stands there where a run has it
COMPACT, FULL = "clip_ft", "clip_ft_full"  # blocks of CLIP_FT: a digest of Eq. 11, and all of it
BLOCKS = (  # of ALL in this order, where the run has them; then those of the user's own
    "statistic", "behaviour", "external", "clip", COMPACT, "resnet_bert", "vit_bert", "blip", "blip2", "efficientnet", "minilm",
    "e5",
)  # fmt: skip
RAW = ("clip_image", "clip_text", "clip_cosine", FULL)  # they stand in ALL in a smaller form


@dataclass(frozen=True)
class FeatureSet:
    """One row of the table.

    Attributes:
        name: as the user wrote it.
        parts: its words; blocks, and perhaps TAUGHT and TUNED.
    """

    name: str
    parts: tuple[str, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if part not in (TAUGHT, TUNED))

    @property
    def taught(self) -> bool:
        return TAUGHT in self.parts

    @property
    def tuned(self) -> bool:
        return TUNED in self.parts


def parse_sets(names: Iterable[str], run: Run | None = None) -> list[FeatureSet]:
    """The feature sets of a list of names; PAPER_ROWS becomes the rows of the paper's Table 1, ALL every block of the run.

    The paper's rows with ``clip_ft`` take all of Eq. 11 (block ``clip_ft_full``) where `run` has it, else the compact block;
    those with ``blip`` take ``blip2`` in the same way.

    Raises:
        InputError: no name, one that names no block or one twice, or two names for the same set.
    """
    rows = pd.read_csv(PAPER)["features"]
    for usual, other in INSTEAD.items():
        if run is not None and run.has_block(other):
            rows = rows.str.replace(usual, other)
    names = [row for name in names for row in (rows if name == PAPER_ROWS else [name])]
    if ALL in names:
        names = [*dict.fromkeys(_all_blocks(run) if name == ALL else name for name in names)]
    sets = [FeatureSet(name, tuple(part.strip() for part in name.split("+"))) for name in names]
    if not sets:
        raise InputError("no feature set; name at least one, as statistic or statistic+behaviour")
    for one in sets:
        if "" in one.parts or len(set(one.parts)) < len(one.parts) or not one.blocks:
            raise InputError(
                f"feature set {one.name!r}: expected block names joined by '+', each once, as statistic+clip"
            )
        if one.tuned and not one.taught:
            raise InputError(f"feature set {one.name!r}: {TUNED} stands beside {TAUGHT}, as statistic+{TAUGHT}+{TUNED}")
    known = [frozenset(one.parts) for one in sets]
    if twice := [one.name for i, one in enumerate(sets) if known[i] in known[:i]]:
        raise InputError(f"feature set {twice[0]!r} stands in the list twice")
    return sets


def _all_blocks(run: Run | None) -> str:
    """The set of every block that the run has, one of the user's own among them; without a run, of those it always has."""
    if run is None:
        return "+".join([*BLOCKS[:2], TAUGHT])
    known = [name for name in BLOCKS if run.has_block(name)]  # asked by name: a step runs again when one appears
    return "+".join([*known, *(name for name in run.block_names() if name not in (*BLOCKS, *RAW)), TAUGHT])


def set_block(run: Run, one: FeatureSet) -> Block:
    """The blocks of a feature set side by side."""
    return join_blocks([run.read_block(name) for name in one.blocks], one.name)


def not_run(run: Run, sets: Iterable[FeatureSet], schemes: Iterable[str] = ()) -> dict[str, str]:
    """Name of each set that lacks a block -> "not run: ..." in the words of the step that could not make it.

    Args:
        schemes: whose folds the columns of TUNED must be there for.
    Raises:
        InputError: no set can be run.
    """
    sets = list(sets)
    lacking = {one.name: {b: run.why_no_block(b) for b in one.blocks if not run.has_block(b)} for one in sets}
    for one in sets:
        if one.tuned and (why := why_not_tuned(run, schemes)):
            lacking[one.name][TUNED] = why
    notes = {
        name: "not run: " + "; ".join(f"{b}: {why}" for b, why in blocks.items())
        for name, blocks in lacking.items()
        if blocks
    }
    if len(notes) == len(sets):
        raise InputError("none of the feature sets can be run. " + ". ".join(f"{k}: {v}" for k, v in notes.items()))
    return notes


def external_sources(run: Run, weights: Mapping[str, float]) -> list[str]:
    """What from outside the release stands behind the models that a fusion gives weight, each source once.

    Args:
        run: holds the blocks that the models learnt from.
        weights: "feature set/model" -> weight, as in `Blend.weights`.
    """
    sets = {name.rsplit("/", 1)[0] for name, weight in weights.items() if weight > 0}
    parsed = parse_sets(sets) if sets else []
    blocks = sorted({block for one in parsed for block in one.blocks})
    tuned = tuned_external(run) if any(one.tuned for one in parsed) else []
    return [*dict.fromkeys(filter(None, (*(run.read_block(block).external for block in blocks), *tuned)))]


def table_one(
    sets: Iterable[FeatureSet], results: Mapping[tuple[str, str], FoldResult], target: np.ndarray, folds: np.ndarray,
    lacking: Mapping[str, str] | None = None, limit: float = np.inf,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:  # fmt: skip
    """One row per feature set, and the fused out-of-fold predictions (n_posts,) of each set that was run.

    Args:
        sets: in the order of the table.
        results: (set name, model) -> what `fit_folds` returned under these folds; a model may lack sets it cannot learn from.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`.
        lacking: set name -> why it was not run.
        limit: a fit of more trees than that was ended by the number of rounds, not by early stopping.

    Returns:
        Columns features, note, n, folds, and for each model and "fusion": src, mae and their standard deviations over
        folds; for each model `rounds` (mean number of trees), `at_limit` (folds above the limit) and `device`. The fusion
        is the convex blend of the models, its score nested (see `kit.evaluation.blend`).
    """
    lacking, models = lacking or {}, list(dict.fromkeys(model for _, model in results))
    rows, fused = [], {}
    for one in sets:
        if one.name in lacking:
            rows.append({"features": one.name, "note": lacking[one.name]})
            continue
        own = {model: results[one.name, model] for model in models if (one.name, model) in results}
        blend = fit_blend({model: result.oof for model, result in own.items()}, target, folds)
        fused[one.name] = blend.oof
        scores = {model: result.scores for model, result in own.items()} | {FUSION: blend.scores}
        row = {"features": one.name, "note": "", "n": int(blend.scores["n"].sum()), "folds": len(blend.scores)}
        for model, table in scores.items():
            row |= {f"{model}_{name}": value for name, value in over_folds(table).items()}
            if model != FUSION:
                devices = ", ".join(sorted(set(table["device"]))) if "device" in table else ""
                row |= {f"{model}_rounds": table["rounds"].mean(), f"{model}_device": devices}
                row |= {f"{model}_at_limit": int((table["rounds"] > limit).sum())}
        rows.append(row)
    return pd.DataFrame(rows), fused


def limit_warning(table: pd.DataFrame, parameter: str = "06.rounds") -> str:
    """Which fits were still improving when their rounds ended, and what to raise; "" where there is none."""
    columns = [name for name in table if name.endswith("_at_limit")]
    found = [f"{row['features']} {name.removesuffix('_at_limit')} ({row[name]:.0f} of {row['folds']:.0f} folds)"
             for _, row in table.iterrows() for name in columns if row[name] > 0]  # fmt: skip
    return f"rounds ended before early stopping did: {'; '.join(found)}. Raise {parameter}" if found else ""


def gains(
    sets: Iterable[FeatureSet], fused: Mapping[str, np.ndarray], target: np.ndarray, authors: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """What each feature set gains over others, with 95 % ranges of a paired bootstrap over authors.

    Each set is compared with the row above it, and with the largest earlier set it contains ("without ..."), which shows
    what the blocks it adds bring; the first set with the median of all labels.

    Args:
        sets, fused: as `table_one` takes and returns them; sets that were not run are passed over.
        target: (n_posts,) label.
        authors: (n_posts,) key of each post's author.
        seed: of the draws.

    Returns:
        features, against, what ("row above", "added: ...", "all"), n, src, src_low, src_high, mae, mae_low, mae_high,
        reading. Differences are this set minus the other: SRC above 0 and MAE below 0 are good.
    """
    run, rows = [one for one in sets if one.name in fused], []
    for place, one in enumerate(run):
        base = largest_subset(one, run[:place])
        compared = []
        if place == 0:
            compared.append(("median of all labels", "all", np.full(len(target), np.nanmedian(target))))
        if base is not None:
            added = " ".join(part for part in one.parts if part not in base.parts)
            compared.append((base.name, f"added: {added}", fused[base.name]))
        if place and (base is None or base.name != run[place - 1].name):
            compared.append((run[place - 1].name, "row above", fused[run[place - 1].name]))
        for against, what, other in compared:
            both = np.isfinite(target) & np.isfinite(other) & np.isfinite(fused[one.name])
            found = paired_difference(target[both], other[both], fused[one.name][both], authors[both], seed=seed)
            about = {"features": one.name, "against": against, "what": what, "n": int(both.sum())}
            rows.append(about | asdict(found))
            rows[-1]["reading"] = reading(rows[-1])
    return pd.DataFrame(rows)


def largest_subset(one: FeatureSet, earlier: Iterable[FeatureSet]) -> FeatureSet | None:
    """The earlier set with the most parts of those that `one` contains; of equals the last; None where there is none."""
    inside = [other for other in earlier if set(other.parts) < set(one.parts)]
    return max(reversed(inside), key=lambda other: len(other.parts), default=None)


def reading(row: Mapping[str, float]) -> str:
    """ "better", "worse", "mixed" or "no clear difference", by which of the two ranges leave out zero."""
    signs = {
        np.sign(row[f"{metric}_low"]) * sign
        for metric, sign in (("src", 1), ("mae", -1))
        if row[f"{metric}_low"] * row[f"{metric}_high"] > 0
    }
    words = {frozenset(): "no clear difference", frozenset({1}): "better", frozenset({-1}): "worse"}
    return words.get(frozenset(signs), "mixed")


FUSION = "fusion"  # name of the fused models among the models
PAPER = Path(__file__).with_name("paper_table_1.csv")  # Table 1 of the paper, scored on the challenge's server


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the paper's numbers for the same features; rows the paper lacks stay, theirs are empty.

    The paper's CLIP_FT is all of Eq. 11: its numbers stand beside the full block where the table has it, and those of BLIP
    beside ``blip2``.
    """
    paper = pd.read_csv(PAPER)
    for usual, other in INSTEAD.items():
        if table["features"].str.contains(other).any():
            paper["features"] = paper["features"].str.replace(usual, other)
    return table.merge(paper.rename(columns={c: f"paper_{c}" for c in paper if c != "features"}), "left", "features")
