"""Numbers from words without a language model: TF-IDF + SVD, tag frequencies, tag history. No label is ever read.

A tag's table is *long*: one row per (post, distinct tag), made once per posts table by `long_tags`; everything about tags
is a group-by or a sparse product over it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from kit.features.past import Past

MAX_TERMS = {"word": 200_000, "char": 100_000}  # vocabulary limit of one TF-IDF
SPLIT_POSTS = 20_000  # posts whose tags are texts at a time: a text takes ten times the room of its code
LONGEST_RUN = 3  # characters in a term, at most
SCRIPTS = {  # ranges of letters, for regular expressions
    "latin": "A-Za-z\u00c0-\u024f",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff",
    "indic": "\u0900-\u0dff",
    "thai": "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff",  # with Lao, Burmese and Khmer
    "kana": "\u3040-\u30ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ebef",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
}
UNSPACED = "".join(SCRIPTS[name] for name in ("thai", "kana", "han"))  # scripts that put no space between words
MIXED = 0.1, 0.9  # share of unspaced letters from which characters, and up to which words, say something
SVD_ITERATIONS = 4  # of the randomised range finder; more changes the leading components no longer


def long_tags(alltags: pd.Series, n_known: int | None = None) -> pd.DataFrame:
    """One row per (post, distinct tag), in the order of the post: `row` and `tag` (code, 0 = most frequent), both int32.

    Args:
        alltags: (n_posts,) tags separated by spaces, "" for none; compared in lower case.
        n_known: so many posts at the beginning give the codes; tags of later ones alone come after them. None: all.
    """
    n_known, number, n_uses, parts = len(alltags) if n_known is None else n_known, {}, np.zeros(0, dtype=np.int64), []
    for start in range(0, max(1, len(alltags)), SPLIT_POSTS):
        lists = alltags.iloc[start : start + SPLIT_POSTS].reset_index(drop=True).str.lower().str.split()
        words = lists.explode().dropna()
        code, distinct = pd.factorize(words)
        tag = np.array([number.setdefault(word, len(number)) for word in distinct], dtype=np.int64)[code]
        row = words.index.to_numpy() + start
        n_uses = np.bincount(tag[row < n_known], minlength=len(number)) + np.pad(n_uses, (0, len(number) - len(n_uses)))
        parts.append(pd.DataFrame({"row": row, "tag": tag}, dtype=np.int32).drop_duplicates())
    turn, codes = np.arange(len(number)), np.empty(len(number), dtype=np.int32)
    order = np.argsort(np.array(list(number), dtype=object))
    # ties in the words' order, those of later posts alone as they come
    turn[order] = np.where(n_uses[order] > 0, np.arange(len(number)), order)
    codes[np.lexsort((turn, -n_uses))] = np.arange(len(number))
    long = pd.concat(parts, ignore_index=True)
    long["tag"] = codes[long["tag"]]
    return long


def frequency_codes(values: pd.Series, n_known: int | None = None) -> np.ndarray:
    """Integer codes (n,) int64: 0 for the most frequent of the first n_known values (None: all), ties in the values' order.

    -1 for "" and for a value that is not among the first n_known.
    """
    values = values.astype("object").where(values.notna(), "")
    known = values.iloc[:n_known]
    counts = known[known != ""].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return counts.index.get_indexer(values)


def tag_matrix(long: pd.DataFrame, n_posts: int, min_posts: int = 2, n_known: int | None = None) -> sparse.csr_matrix:
    """(n_posts, n_tags) float32 of 0/1: which post has which tag, for tags of at least min_posts posts, commonest first.

    Only the first n_known posts count (None: all).
    """
    n_tags = int((np.bincount(known_uses(long, n_known)["tag"], minlength=1) >= min_posts).sum())
    kept = long[long["tag"] < n_tags]
    ones = np.ones(len(kept), dtype=np.float32)
    return sparse.csr_matrix((ones, (kept["row"], kept["tag"])), shape=(n_posts, n_tags))


def known_uses(long: pd.DataFrame, n_known: int | None) -> pd.DataFrame:
    """The rows of `long_tags` that belong to the first n_known posts; None for all."""
    return long if n_known is None else long[long["row"] < n_known]


def title_terms(
    texts: pd.Series, longest: int = 1, unit: str = "word", n_known: int | None = None
) -> sparse.csr_matrix:
    """(n, n_terms) float32: which text has which word (0/1), or how often which run of characters.

    Args:
        texts: (n,) text, None or "" for none; compared in lower case.
        longest: units in a term, at most.
        unit: "word": terms of at least two distinct texts. "char": terms of at least three; for scripts without spaces,
            where a whole title counts as one word.
        n_known: the first so many texts give the terms; None: all.
    """
    code, distinct = pd.factorize(texts.astype("object").where(texts.notna(), ""))
    n_distinct = len(distinct) if n_known is None else int(code[:n_known].max(initial=-1)) + 1
    least = {"word": 2, "char": 3}[unit]
    counter = CountVectorizer(
        analyzer=unit, ngram_range=(1, longest), min_df=min(least, n_distinct), max_features=MAX_TERMS[unit],
        binary=unit == "word", dtype=np.float32,
    )  # fmt: skip
    try:
        if n_known is None:
            return counter.fit_transform(distinct)[code]
        return counter.fit(distinct[:n_distinct]).transform(distinct)[code]
    except ValueError:  # sklearn's way to say that no term is common enough
        return sparse.csr_matrix((len(texts), 0), dtype=np.float32)


def tfidf(terms: sparse.csr_matrix, n_known: int | None = None) -> sparse.csr_matrix:
    """TF-IDF with 1 + log(count) for a count, its document frequencies those of the first n_known rows (None: of all).

    A matrix without entries as it is. The values are written into `terms` itself, which may be the largest thing in memory.
    """
    if not terms.nnz:
        return terms
    transformer = TfidfTransformer(sublinear_tf=True).fit(terms if n_known is None else terms[:n_known])
    return transformer.transform(terms, copy=False)


def unspaced_share(texts: pd.Series) -> float:
    """Share of the letters that belong to scripts without spaces between words; 0 without letters."""
    n_unspaced = texts.fillna("").str.count(f"[{UNSPACED}]").sum()
    return n_unspaced / max(1, texts.fillna("").str.count(f"[{''.join(SCRIPTS.values())}]").sum())


def tfidf_svd(texts: pd.Series, dim: int, seed: int, unit: str = "word", n_known: int | None = None) -> np.ndarray:
    """(n, dim) float32: truncated SVD of the TF-IDF of words and pairs of words, or of runs of characters.

    Source: HyFea's `get_data_feature.py` (TF-IDF of 1- and 2-grams, SVD 20, fitted on train and test together).
    """
    terms = title_terms(texts, {"word": 2, "char": LONGEST_RUN}[unit], unit, n_known)
    return truncated_svd(tfidf(terms, n_known), dim, seed, n_known)


def tag_svd(tags: sparse.csr_matrix, dim: int, seed: int, n_known: int | None = None) -> np.ndarray:
    """(n_posts, dim) float32: truncated SVD of the TF-IDF of tags. Source: HyFea, as `tfidf_svd`."""
    return truncated_svd(tfidf(tags.copy(), n_known), dim, seed, n_known)


def tag_neighbours(tags: sparse.csr_matrix, dim: int, seed: int, n_known: int | None = None) -> np.ndarray:
    """(n_posts, dim) float32: mean of tag vectors that hold which tags are used together.

    Vectors are the SVD of the positive pointwise mutual information of tags within posts, the closed form of skip-gram.

    Source: Levy and Goldberg 2014; stands in for the Word2Vec of tags in Alonso's 2026 code, without gensim.
    """
    if not tags.nnz:
        return np.zeros((tags.shape[0], dim), dtype=np.float32)
    known = tags if n_known is None else tags[:n_known]
    n_posts_of = np.asarray(known.sum(axis=0)).ravel()
    vectors = truncated_svd(ppmi(known.T.tocsr() @ known, n_posts_of, known.shape[0]), dim, seed)
    return normalize(tags, norm="l1") @ vectors


def ppmi(together: sparse.csr_matrix, count: np.ndarray, total: float) -> sparse.csr_matrix:
    """(n, n) float32 positive pointwise mutual information of pairs of different things.

    Args:
        together: (n, n) float32 how often two things meet, whose memory the result takes over; the diagonal is left out.
        count: (n,) how often each is there at all.
        total: occasions to meet, on which `count` counts.
    """
    together.sort_indices()
    row = np.repeat(np.arange(together.shape[0], dtype=together.indices.dtype), np.diff(together.indptr))
    pmi, expected = together.data * total, count[row]  # in place from here on: pairs are what tags have most of
    expected *= count[together.indices]
    pmi /= expected
    np.log(pmi, out=pmi)
    pmi[(pmi < 0) | (row == together.indices)] = 0
    found = sparse.csr_matrix((pmi, together.indices, together.indptr), together.shape, dtype=np.float32)
    found.eliminate_zeros()
    return found


def sequence_vectors(sequence: np.ndarray, tag: np.ndarray, dim: int, seed: int, window: int = 6) -> np.ndarray:
    """(n_tags, dim) float32: a vector for each tag that holds which tags come close to it in sequences.

    Args:
        sequence: (n,) int, ascending: which sequence each use of a tag belongs to.
        tag: (n,) int: the tags, each sequence in its order.
        window: tags at most so many places apart are company.

    Source: Levy and Goldberg 2014, with the window of the Word2Vec per user in Alonso's 2026 code.
    """
    n_tags = int(tag.max(initial=0)) + 1
    together = sparse.csr_matrix((n_tags, n_tags), dtype=np.float32)
    for step in range(1, window + 1):
        near = sequence[:-step] == sequence[step:]
        pair = tag[:-step][near], tag[step:][near]
        together += sparse.csr_matrix((np.ones(near.sum(), dtype=np.float32), pair), shape=together.shape)
    together = together + together.T
    company = np.asarray(together.sum(axis=0)).ravel()
    return truncated_svd(ppmi(together, company, company.sum()), dim, seed)


def truncated_svd(matrix: sparse.csr_matrix, dim: int, seed: int, n_known: int | None = None) -> np.ndarray:
    """(n, dim) float32 left singular vectors times singular values; columns that the matrix cannot fill are zero.

    The decomposition is that of the first n_known rows (None: of all).
    """
    out, known = np.zeros((matrix.shape[0], dim), dtype=np.float32), matrix if n_known is None else matrix[:n_known]
    rank = min(dim, min(known.shape) - 1)
    if rank > 0 and known.nnz:
        svd = TruncatedSVD(rank, algorithm="randomized", n_iter=SVD_ITERATIONS, random_state=seed)
        with np.errstate(invalid="ignore"):  # its share of explained variance is 0/0 where all rows are alike
            out[:, :rank] = svd.fit_transform(matrix) if n_known is None else svd.fit(known).transform(matrix)
    return out


def tag_frequency(long: pd.DataFrame, uid: pd.Series) -> pd.DataFrame:
    """How common a post's tags are: mean, max, min, std of log(posts with the tag) and log(authors using it), rare shares.

    Args:
        long: from `long_tags`.
        uid: (n_posts,) author of each post.

    Source: tag document frequency as in Alonso's 2026 code; counts over train and test together.
    """
    n_posts = len(uid)
    n_with = np.bincount(long["tag"])
    pairs = np.unique(pd.factorize(uid)[0][long["row"]] * len(n_with) + long["tag"].to_numpy())
    n_using = np.bincount(pairs % max(1, len(n_with)))
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
    n_before = date.rank(method="min").to_numpy() - 1
    uses = long[date.notna().to_numpy()[long["row"]]]
    time, row = date.astype("int64").to_numpy()[uses["row"]], uses["row"].to_numpy()
    past = Past(uses["tag"].to_numpy(), time)
    seen = past.counts()
    events = pd.DataFrame({"share": np.log((seen + 1) / (n_before[row] + 1))})
    events["days"] = np.log1p((time - past.latest(time)) / 86_400)
    grouped = events.groupby(row)
    stats = grouped.agg(["mean", "max", "min"])
    stats.columns = [f"tag_past_{what}_{stat}" for what, stat in stats.columns]
    stats["tag_past_new"] = pd.Series((seen == 0).astype(np.float32)).groupby(row).mean()
    return stats.reindex(range(len(date))).astype(np.float32)


def first_tags(long: pd.DataFrame, n_posts: int, n: int) -> np.ndarray:
    """(n_posts, n) int codes of each post's first distinct tags; the last repeated where there are fewer, -1 without tags.

    Args:
        long: from `long_tags`.
    """
    n_own = np.bincount(long["row"], minlength=n_posts)
    start = np.cumsum(n_own) - n_own
    place = start[:, None] + np.minimum(np.arange(n), n_own[:, None] - 1)
    tag = np.r_[long["tag"].to_numpy(), -1]
    return np.where(n_own[:, None] > 0, tag[np.where(n_own[:, None] > 0, place, -1)], -1)


def tag_trend(long: pd.DataFrame, period: np.ndarray, name: str, n_top: int = 100) -> pd.DataFrame:
    """How common a post's tags are in its own week or month: share, rank, trend (mean, max) and share of top tags.

    Share is log((posts with the tag + 1) / (posts + 1)) in the period, rank the logarithm of the tag's place in it, trend
    the share less that of the period before (NaN where that has no posts).

    Args:
        long: from `long_tags`.
        period: (n_posts,) whole number of the period, NaN for posts without a date; consecutive periods differ by one.
        name: of the period, for the column names.
        n_top: so many tags of a period are its top tags.
    """
    dated = np.isfinite(period)
    found = np.flatnonzero(dated[long["row"]])
    row, tag = long["row"].to_numpy()[found], long["tag"].to_numpy()[found]
    first = np.nanmin(period) if dated.any() else 0
    number = np.where(dated, period - first, 0).astype(np.int64)
    n_posts = np.r_[0, np.bincount(number[dated], minlength=1)]  # of the period before each period, then of itself
    n_tags = int(long["tag"].max()) + 1 if len(long) else 1
    use, at, n = np.unique(number[row] * n_tags + tag, return_inverse=True, return_counts=True)
    which = use // n_tags
    place = np.minimum(np.searchsorted(use, use - n_tags), max(len(use) - 1, 0))
    n_before = np.where(use[place] == use - n_tags, n[place], 0)
    share = np.log((n + 1) / (n_posts[which + 1] + 1))
    share_before = np.log((n_before + 1) / (n_posts[which] + 1))
    rank = pd.Series(n).groupby(which).rank(method="min", ascending=False).to_numpy()
    values = {"share": share, "rank": np.log(rank), "trend": np.where(n_posts[which] > 0, share - share_before, np.nan)}
    grouped = pd.DataFrame({key: value[at] for key, value in values.items()}).groupby(row)
    stats = grouped.agg(["mean", "max"])
    stats.columns = [f"tag_{name}_{what}_{stat}" for what, stat in stats.columns]
    stats[f"tag_{name}_top"] = pd.Series((rank <= n_top)[at].astype(np.float64)).groupby(row).mean()
    return stats.reindex(range(len(period))).astype(np.float32)
