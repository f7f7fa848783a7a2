"""Posts that are alike: by image, by text, by what CLIP_FT made of both, by tags; and what like posts of one author say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.preprocessing import normalize

from kit.base.errors import InputError
from kit.features import words
from kit.viz.explore import cards, page, towers
from kit.viz.explore.opened import Opened

SAME, MIN_PAIRS = 0.85, 10  # the paper's cosine; pairs from which a category is told
CHUNK = 4096  # posts compared at a time


def neighbours(opened: Opened, pid: str | int, by: str = "image", n: int = 12) -> page.Shown:
    """The posts most like a post, of both parts, best first, with their labels.

    Args:
        by: "image" or "text" (embeddings of 02, or the block of another encoder, where 02 was left out), "clip_ft" (block
            of 03), "tags" (TF-IDF).

    Raises:
        InputError: another word, or the run has no such features.
    """
    row = opened.row(pid)
    cosine = cosines(vectors(opened, by), row)
    cosine[row] = -np.inf
    return _nearest(opened, cosine, n)


def search(opened: Opened, text: str, n: int = 12) -> page.Shown:
    """The posts whose picture is most like a text, by the CLIP of 02.

    Raises:
        InputError: 02 was left out.
    """
    image = np.asarray(opened.run.read_block("clip_image").values, np.float32)
    cosine = image @ towers.encode_texts(opened.run.dir, [text])[0].astype(np.float32)
    return _nearest(opened, cosine, n)


def _nearest(opened: Opened, cosine: np.ndarray, n: int) -> page.Shown:
    best = np.argsort(-cosine, kind="stable")[:n]
    shown = cards.gallery(opened, best, [f"cosine {value:.3f}" for value in cosine[best]])
    return page.Shown(shown.table.assign(cosine=cosine[best]), shown.html)


def vectors(opened: Opened, by: str) -> np.ndarray | sparse.csr_matrix:
    """(n_posts, d) rows of norm 1, or 0 where a post has nothing to compare.

    Raises:
        InputError: as in `neighbours`.
    """
    made: dict[str, Callable[[], np.ndarray | sparse.csr_matrix]] = {
        "image": lambda: _dense(opened, "clip_image", "efficientnet", "resnet_bert"),
        "text": lambda: _dense(opened, "clip_text", "minilm", "e5"),
        "clip_ft": lambda: _dense(opened, "clip_ft"),
        "tags": lambda: words.tfidf(words.tag_matrix(words.long_tags(opened.posts["Alltags"]), len(opened.posts))),
    }
    if by not in made:
        raise InputError(f"by={by!r}: choose one of {', '.join(made)}")
    return opened.keep(("vectors", by), made[by])


def cosines(vectors: np.ndarray | sparse.csr_matrix, row: int) -> np.ndarray:
    """(n_posts,) float32 cosine of each post with one."""
    if sparse.issparse(vectors):
        return np.asarray((vectors @ vectors[row].T).todense(), np.float32).ravel()
    return vectors @ vectors[row]


def _dense(opened: Opened, *blocks: str) -> np.ndarray:
    """Rows of the first block that the run has, of norm 1; principal components are first brought to one scale."""
    name = next((name for name in blocks if opened.run.has_block(name)), None)
    if name is None:
        raise InputError(f"this run has none of the blocks {', '.join(blocks)}: {opened.run.why_no_block(blocks[0])}")
    block = opened.run.read_block(name)
    values = np.nan_to_num(np.asarray(block.values, np.float32))
    if name == "clip_ft":
        values = values[:, [i for i, column in enumerate(block.columns) if "_pc_" in column]]
    elif name == "resnet_bert":
        values = values[:, [i for i, column in enumerate(block.columns) if "_image_" in column]]
    return normalize(values)


def similar_pairs(opened: Opened, least: float = SAME, by: str = "image") -> pd.DataFrame:
    """Pairs of posts of one author with nearly the same picture: how far apart their labels are.

    The paper says of such pairs, of cosine above 0.85, that their popularity differs by up to 300 %, and that it is stable
    in some categories. Labels are logarithms to base 2, so a difference of 1 is a factor of 2 in views, 300 % are a
    factor of 4.

    Args:
        least: cosine from which two pictures are nearly the same.
        by: as for `neighbours`.

    Returns:
        category ("all" first), pairs, median and largest difference of the labels, the share of pairs that differ by a
        factor of 4 or more, and the median difference of as many pairs of one author and category taken at random.

    Source: section 1 of the paper.
    """
    found = _pairs(opened, vectors(opened, by), least)
    rows = []
    for name, part in [("all", found), *found.groupby("category", sort=False)]:
        if name != "all" and part["alike"].sum() < MIN_PAIRS:
            continue
        alike, others = part.loc[part["alike"], "difference"], part.loc[~part["alike"], "difference"]
        rows.append({"category": name, "pairs": len(alike), "median": alike.median(), "largest": alike.max(),
                     "share of a factor 4": (alike >= 2).mean(), "median of other pairs": others.median(),
                     "other pairs": len(others)})  # fmt: skip
    table = pd.DataFrame(rows)
    return pd.concat([table[:1], table[1:].sort_values("median")], ignore_index=True)


def _pairs(opened: Opened, vectors: np.ndarray | sparse.csr_matrix, least: float) -> pd.DataFrame:
    """category, cosine, difference, alike of every pair of labelled posts of one author and category."""
    posts = opened.posts
    labelled = posts[posts["label"].notna()]
    parts = [pd.DataFrame(columns=["category", "difference", "alike"]).astype({"difference": float, "alike": bool})]
    for (_, category), rows in labelled.groupby(["Uid", "Category"], observed=True, sort=False).indices.items():
        if len(rows) < 2:
            continue
        at = labelled.index.to_numpy()[rows[:CHUNK]]
        own = vectors[at]
        cosine = (own @ own.T).toarray() if sparse.issparse(own) else own @ own.T
        first, second = np.triu_indices(len(at), 1)
        difference = np.abs(opened.target[at[first]] - opened.target[at[second]])
        parts.append(
            pd.DataFrame({"category": category, "difference": difference, "alike": cosine[first, second] > least})
        )
    return pd.concat(parts, ignore_index=True)
