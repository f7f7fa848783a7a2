"""Numbers from words without a language model: TF-IDF + SVD, tag frequencies, tag history. No label is ever read.

A tag's table is *long*: one row per (post, distinct tag), made once per posts table by `long_tags`; everything about tags
is a group-by or a sparse product over it.
"""

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

MAX_TERMS = 200_000  # vocabulary limit of one TF-IDF
SVD_ITERATIONS = 4  # of the randomised range finder; more changes the leading components no longer


def long_tags(alltags: pd.Series) -> pd.DataFrame:
    """One row per (post, distinct tag): columns `row`, `tag` (code, 0 = most frequent) and `place` (0 = first in the post).

    Args:
        alltags: (n_posts,) tags separated by spaces, "" for none; compared in lower case.
    """
    words = alltags.reset_index(drop=True).str.lower().str.split().explode().dropna()
    row = words.index.to_numpy()
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.empty(0, dtype=int)
    place = np.arange(len(row)) - np.repeat(starts, np.diff(np.r_[starts, len(row)]))
    long = pd.DataFrame({"row": row, "tag": frequency_codes(words), "place": place})
    return long.drop_duplicates(["row", "tag"], ignore_index=True)


def frequency_codes(values: pd.Series, min_count: int = 1) -> np.ndarray:
    """Integer codes (n,) int64: 0 for the most frequent value, ties in the values' order; -1 below min_count and for ""."""
    values = values.astype("object").where(values.notna(), "")
    counts = values[values != ""].value_counts()
    counts = counts[counts >= min_count].sort_index().sort_values(ascending=False, kind="stable")
    return counts.index.get_indexer(values)


def tag_matrix(long: pd.DataFrame, n_posts: int, min_posts: int = 2) -> sparse.csr_matrix:
    """(n_posts, n_tags) float32 of 0/1: which post has which tag, for tags of at least min_posts posts, commonest first."""
    n_tags = int((np.bincount(long["tag"]) >= min_posts).sum()) if len(long) else 0
    kept = long[long["tag"] < n_tags]
    ones = np.ones(len(kept), dtype=np.float32)
    return sparse.csr_matrix((ones, (kept["row"], kept["tag"])), shape=(n_posts, n_tags))


def title_terms(texts: pd.Series, longest: int = 1) -> sparse.csr_matrix:
    """(n, n_terms) float32 of 0/1: which text has which term, for terms of at least two distinct texts.

    Args:
        texts: (n,) text, None or "" for none.
        longest: words in a term, at most.
    """
    code, distinct = pd.factorize(texts.astype("object").where(texts.notna(), ""))
    counter = CountVectorizer(
        ngram_range=(1, longest), min_df=min(2, len(distinct)), max_features=MAX_TERMS, binary=True
    )
    try:
        return counter.fit_transform(distinct).astype(np.float32)[code]
    except ValueError:  # sklearn's way to say that no term is common enough
        return sparse.csr_matrix((len(texts), 0), dtype=np.float32)


def tfidf_svd(texts: pd.Series, dim: int, seed: int) -> np.ndarray:
    """(n, dim) float32: truncated SVD of the TF-IDF of words and pairs of words.

    Source: HyFea's `get_data_feature.py` (TF-IDF of 1- and 2-grams, SVD 20, fitted on train and test together).
    """
    terms = title_terms(texts, longest=2)
    return truncated_svd(TfidfTransformer().fit_transform(terms) if terms.nnz else terms, dim, seed)


def tag_svd(tags: sparse.csr_matrix, dim: int, seed: int) -> np.ndarray:
    """(n_posts, dim) float32: truncated SVD of the TF-IDF of tags. Source: HyFea, as `tfidf_svd`."""
    return truncated_svd(TfidfTransformer().fit_transform(tags) if tags.nnz else tags, dim, seed)


def tag_neighbours(tags: sparse.csr_matrix, dim: int, seed: int) -> np.ndarray:
    """(n_posts, dim) float32: mean of tag vectors that hold which tags are used together.

    Vectors are the SVD of the positive pointwise mutual information of tags within posts, the closed form of skip-gram.

    Source: Levy and Goldberg 2014; stands in for the Word2Vec of tags in Alonso's 2026 code, without gensim.
    """
    if not tags.nnz:
        return np.zeros((tags.shape[0], dim), dtype=np.float32)
    together = (tags.T @ tags).tocoo()
    n_posts_of = np.asarray(tags.sum(axis=0)).ravel()
    off = together.row != together.col
    row, col, n_both = together.row[off], together.col[off], together.data[off]
    pmi = np.log(n_both * tags.shape[0] / (n_posts_of[row] * n_posts_of[col]))
    ppmi = sparse.csr_matrix((np.maximum(pmi, 0), (row, col)), shape=together.shape, dtype=np.float32)
    return normalize(tags, norm="l1") @ truncated_svd(ppmi, dim, seed)


def truncated_svd(matrix: sparse.csr_matrix, dim: int, seed: int) -> np.ndarray:
    """(n, dim) float32 left singular vectors times singular values; columns that the matrix cannot fill are zero."""
    out = np.zeros((matrix.shape[0], dim), dtype=np.float32)
    rank = min(dim, min(matrix.shape) - 1)
    if rank > 0 and matrix.nnz:
        svd = TruncatedSVD(rank, algorithm="randomized", n_iter=SVD_ITERATIONS, random_state=seed)
        with np.errstate(invalid="ignore"):  # its share of explained variance is 0/0 where all rows are alike
            out[:, :rank] = svd.fit_transform(matrix)
    return out


def tag_frequency(long: pd.DataFrame, uid: pd.Series) -> pd.DataFrame:
    """How common a post's tags are: mean, max, min, std of log(posts with the tag) and log(authors using it), rare shares.

    Args:
        long: from `long_tags`.
        uid: (n_posts,) author of each post.

    Source: tag document frequency as in Alonso's 2026 code; counts over train and test together.
    """
    n_posts = len(uid)
    author = pd.factorize(uid)[0][long["row"]]
    n_using = long.assign(author=author).groupby("tag")["author"].nunique().to_numpy()
    n_with = np.bincount(long["tag"])
    values = pd.DataFrame(
        {
            "row": long["row"],
            "posts": np.log1p(n_with)[long["tag"]],
            "authors": np.log1p(n_using)[long["tag"]],
            "alone": (n_with == 1)[long["tag"]].astype(np.float32),
            "rare": (n_with <= 5)[long["tag"]].astype(np.float32),
        }
    )
    grouped = values.groupby("row")
    stats = grouped[["posts", "authors"]].agg(["mean", "max", "min", "std"])
    stats.columns = [f"tag_{what}_{stat}" for what, stat in stats.columns]
    stats = stats.join(grouped[["alone", "rare"]].mean().add_prefix("tag_share_"))
    return stats.reindex(range(n_posts)).astype(np.float32)


def tag_history(long: pd.DataFrame, date: pd.Series) -> pd.DataFrame:
    """How known a post's tags were when it appeared: each tag's share of the earlier posts, and days since its last use.

    Shares, unlike counts, do not grow with the age of the collection, so they mean the same in a later test part.

    Args:
        long: from `long_tags`.
        date: (n_posts,) datetime; only strictly earlier posts count. Posts without a date get NaN.
    """
    seconds = date.astype("int64").where(date.notna())
    n_before = (seconds.rank(method="min") - 1).to_numpy()
    events = long.assign(time=seconds.to_numpy()[long["row"]], n_before=n_before[long["row"]]).dropna(subset="time")
    events = events.sort_values(["tag", "time"], kind="stable")
    events["seen"] = events.groupby("tag").cumcount()
    instants = events.drop_duplicates(["tag", "time"])  # posts of one instant do not know each other
    last = instants["time"] - instants.groupby("tag")["time"].shift()
    instants = instants[["tag", "time", "seen"]].assign(days=np.log1p(last / 86_400))
    events = events.drop(columns="seen").merge(instants, on=["tag", "time"])
    events["share"] = np.log((events["seen"] + 1) / (events["n_before"] + 1))
    events["new"] = (events["seen"] == 0).astype(np.float32)
    grouped = events.groupby("row")
    stats = grouped[["share", "days"]].agg(["mean", "max", "min"])
    stats.columns = [f"tag_past_{what}_{stat}" for what, stat in stats.columns]
    stats["tag_past_new"] = grouped["new"].mean()
    return stats.reindex(range(len(date))).astype(np.float32)
