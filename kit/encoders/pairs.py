"""Posts as pairs of an image and a text, and how often one finds the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

MAX_SHARED = 5  # posts that may have one text; a text of more says little about any of their images
CANDIDATES = 1_000  # among which a post's own text has to be found
ENOUGH = 5  # times chance; below, images and texts of these posts do not agree


@dataclass(frozen=True)
class Pairs:
    """n posts that have an image and a text.

    Attributes:
        image: (n, d_i) float32 vectors of the images.
        text: (n, d_t) float32 vectors of the texts.
        text_id: (n,) int, equal for equal texts.
        author: (n,) int.
    """

    image: np.ndarray
    text: np.ndarray
    text_id: np.ndarray
    author: np.ndarray

    def __len__(self) -> int:
        return len(self.author)

    def take(self, rows: np.ndarray) -> Pairs:
        """Some of them."""
        return Pairs(self.image[rows], self.text[rows], self.text_id[rows], self.author[rows])

    def shuffled(self, seed: int) -> Pairs:
        """The same images, each with the text of another post: what alignment finds where nothing is to be found."""
        order = np.random.default_rng(seed).permutation(len(self))
        return Pairs(self.image, self.text[order], self.text_id[order], self.author)


def make_pairs(
    image: np.ndarray, text: np.ndarray, image_ok: np.ndarray, texts: np.ndarray, authors: pd.Series, rows: np.ndarray
) -> Pairs:
    """The pairs among ``rows``: posts with a readable image and a text that has a letter and that few posts share.

    Args:
        image, text: (n_posts, d) vectors.
        image_ok: (n_posts,) bool.
        texts: (n_posts,) texts.
        authors: (n_posts,) names.
        rows: positions of the posts to take.
    """
    part = pd.Series(texts[rows].astype(str))
    shared = part.map(part.value_counts()).to_numpy()
    usable = image_ok[rows] & part.str.contains(r"[^\W\d_]").to_numpy() & (shared <= MAX_SHARED)
    vectors = (np.asarray(values[rows[usable]], np.float32) for values in (image, text))
    return Pairs(*vectors, pd.factorize(part[usable])[0], pd.factorize(authors.iloc[rows[usable]])[0])


def recall(pairs: Pairs, seed: int = 0) -> dict[str, float]:
    """How often a post's own text is the nearest to its image, or among the ten nearest, and the other way round.

    Args:
        pairs: of one space, rows of norm 1; of equal texts the first is a candidate.
        seed: of the draw of at most ``CANDIDATES`` candidates.
    Returns:
        candidates, recall@1, recall@10 (means of both directions), chance@1, chance@10.
    """
    rows = np.random.default_rng(seed).permutation(np.unique(pairs.text_id, return_index=True)[1])[:CANDIDATES]
    cosine, n = pairs.image[rows] @ pairs.text[rows].T, len(rows)
    ranks = np.concatenate([(part >= part.diagonal()[:, None]).sum(axis=1) for part in (cosine, cosine.T)])
    found = {f"recall@{k}": float((ranks <= k).mean()) if n else np.nan for k in (1, 10)}
    return {"candidates": n, **found, **{f"chance@{k}": min(k, n) / max(n, 1) for k in (1, 10)}}


def agreement(found: dict[str, float], shuffled: dict[str, float] | None = None) -> tuple[pd.DataFrame, str]:
    """What ``recall`` found as a table, against chance and shuffled pairs, and what follows from it in words."""
    lines = {"this model": found} | ({"aligned on shuffled pairs": shuffled} if shuffled else {})
    table = pd.DataFrame(lines).T
    table.loc["chance", ["candidates", "recall@1", "recall@10"]] = [
        found["candidates"],
        found["chance@1"],
        found["chance@10"],
    ]
    times = found["recall@10"] / found["chance@10"] if found["candidates"] else np.nan
    if not found["candidates"]:
        words = "No author is held out (02.valid_share), so whether image and text agree was not measured."
    elif times >= ENOUGH:
        words = (
            f"Image and text agree: a post's own text is among the ten nearest {times:.1f} times as often as by chance."
        )
    else:
        words = (
            f"Image and text DO NOT agree in these data: a post's own text is among the ten nearest only {times:.1f} times as "
            f"often as by chance ({ENOUGH} would be enough). What follows: cosines between image and text, zero-shot classes and "
            "the textual prototypes of images say little here; what image and text say each on its own is not touched by that."
        )
    return table[["candidates", "recall@1", "recall@10"]], words
