"""The behaviour block: how the author of a post posts, tags and titles, from the posts table alone.

Families are functions as in `kit.features.statistic`; none sees a label or Pid. Most describe an author by all of the author's
posts, train and test together. Those named in CAUSAL say only what was known when the post appeared: their values stay
when later posts are taken away. One rule holds for them all: *earlier* means strictly earlier, so posts of one author and
one second (an *instant*) do not know each other, and posts without a date have no past and are nobody's past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.preprocessing import normalize

from kit.features import words
from kit.features.families import SECONDS_PER_DAY, Context, block_of, numbered
from kit.features.past import Past
from kit.run.block import Block

BURST_GAP = 3_600  # seconds to the previous post, at most, for a post to go on with its burst
RECENT_DAYS = (1, 7, 30)
WINDOWS = {"3": 3, "5": 5, "all": 2**35}  # instants of the author, the post's own included
N_FIRST_TAGS = 5
MIN_TAG_POSTS = 5  # for a tag to be part of a tag sequence
STATISTICS = ("mean", "std", "min", "max", "skew")


@dataclass(frozen=True)
class AuthorContext(Context):
    """The posts table with what the families about authors share; arrays are by row position."""

    @cached_property
    def author(self) -> np.ndarray:
        """(n_posts,) int code of the author."""
        return pd.factorize(self.posts["Uid"], use_na_sentinel=False)[0]

    @cached_property
    def time(self) -> np.ndarray:
        """(n_posts,) int seconds since 1970, 0 without a date."""
        seconds = self.posts["Postdate"].dt.as_unit("s").astype("int64")
        return np.where(self.posts["Postdate"].notna(), seconds, 0)

    @cached_property
    def dated(self) -> np.ndarray:
        """Row positions of the posts with a date."""
        return np.flatnonzero(self.posts["Postdate"].notna())

    @cached_property
    def periods(self) -> pd.DataFrame:
        """Numbers since 1970 of each post's day, ISO week and month (UTC); NaN without a date."""
        day = self.time // SECONDS_PER_DAY
        month = self.time.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
        weeks = (day + 3) // 7  # 1970-01-01 was a Thursday
        frame = pd.DataFrame({"day": day, "week": weeks, "month": month}, dtype=np.float64)
        frame[self.posts["Postdate"].isna().to_numpy()] = np.nan
        return frame

    @cached_property
    def past(self) -> Past:
        """The past of the author of each dated post."""
        return Past(self.author[self.dated], self.time[self.dated])

    @cached_property
    def instant(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each dated post (n_dated,): number of its instant, by author and time, and of its author's first instant."""
        author, time = self.author[self.dated], self.time[self.dated]
        number = pd.DataFrame({"author": author, "time": time}).groupby(["author", "time"]).ngroup()
        return number.to_numpy(), number.groupby(author).transform("min").to_numpy()

    @cached_property
    def album(self) -> np.ndarray:
        """(n_posts,) int code of the posts of one author with one title; -1 without a title."""
        title = self.posts["Title"].str.strip()
        code, distinct = pd.factorize(title)
        return np.where(title == "", -1, pd.factorize(self.author * len(distinct) + code)[0])

    @cached_property
    def tag_of_author(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes (n_uses,) of author and tag together, in the order of `long_tags`; author and tag of each code."""
        uses = self.author[self.long_tags["row"]] * self.n_tags + self.long_tags["tag"].to_numpy()
        pairs, code = np.unique(uses, return_inverse=True)
        return code, pairs // self.n_tags, pairs % self.n_tags

    @cached_property
    def n_authors(self) -> int:
        return int(self.author.max()) + 1

    @cached_property
    def n_tags(self) -> int:
        return int(self.long_tags["tag"].max()) + 1 if len(self.long_tags) else 1

    @cached_property
    def own(self) -> pd.DataFrame:
        """Whole numbers that each post carries in itself; sums of them are exact, in whatever order they are made."""
        posts, date = self.posts, self.posts["Postdate"].dt
        columns = {
            "title_chars": posts["Title"].str.len(),
            "title_words": posts["Title"].str.count(r"\S+"),
            "tag_chars": posts["Alltags"].str.len(),
            "n_tags": np.bincount(self.long_tags["row"], minlength=len(posts)),
            "minute": date.hour * 60 + date.minute,
            "weekday": date.weekday,
            "has_geo": posts["Geoaccuracy"].fillna(0) > 0,
        }
        return pd.DataFrame({name: np.asarray(values, dtype=np.float64) for name, values in columns.items()})

    def place(self, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> pd.DataFrame:
        """Frame of all posts from columns of the posts `rows`; NaN for the others."""
        return pd.DataFrame(columns, index=rows).reindex(range(len(self.posts)))

    def of_author(self, columns: Mapping[str, np.ndarray] | pd.DataFrame) -> pd.DataFrame:
        """Frame of all posts from columns by author: a frame indexed by author code, or arrays (n_authors,)."""
        table = pd.DataFrame(columns).reindex(range(self.n_authors))
        return table.take(self.author).reset_index(drop=True)


def behaviour_block(
    posts: pd.DataFrame, families: Iterable[str] | None = None, *, dim: int = 32, n_top_tags: int = 200, seed: int = 0,
    n_known: int | None = None, folder: Path | None = None,
) -> Block:  # fmt: skip
    """Block "behaviour": (n_posts, d) float32 about the authors of the posts.

    Args:
        posts: the posts table, train and test rows; neither `label` nor `Pid` is read.
        families: names from FAMILIES, all by default; `CAUSAL` has those that know no later post.
        dim: columns of the tag-sequence vectors.
        n_top_tags: most frequent tags that keep a code of their own among the first tags of a post.
        seed: of the randomised SVD.
        n_known: the first so many posts are those that models were taught with; see `Context`.
        folder: where the values lie; see `block_of`.

    Returns:
        Without columns that are constant, or whose test values mostly lie outside the range seen in train.

    Raises:
        InputError: a family is unknown, none is chosen, or no column varies.
    """
    context = AuthorContext(posts, dim, n_top_tags, seed, n_known)
    return block_of("behaviour", FAMILIES, families, context, folder=folder)


# --- tags -------------------------------------------------------------------------------------------------------------


def tag_sequence(context: AuthorContext) -> pd.DataFrame:
    """What an author tags, in order: mean vector of the tags an author uses, and codes of the post's first five tags.

    Vectors hold which tags come within six places in the authors' sequences of tags, in the order of their posts (those
    of one instant in the order of the table, undated ones last). A post with fewer tags repeats its last.

    Source: tag sequences per user in Alonso's 2026 code, with Word2Vec (size 32, window 6, min_count 5).
    """
    long, n_posts = context.long_tags, len(context.posts)
    n_with = np.bincount(words.known_uses(long, context.n_known)["tag"], minlength=context.n_tags)
    turn = np.empty(n_posts, dtype=np.int64)
    turn[np.lexsort((context.time, context.posts["Postdate"].isna(), context.author))] = np.arange(n_posts)
    used = long[n_with[long["tag"]] >= MIN_TAG_POSTS]
    used = used.iloc[np.argsort(turn[used["row"]], kind="stable")]
    taught = words.known_uses(used, context.n_known)
    vectors = words.sequence_vectors(
        context.author[taught["row"]], taught["tag"].to_numpy(), context.svd_dim, context.seed
    )
    author, tag = context.author[used["row"]], used["tag"].to_numpy()
    uses = sparse.csr_matrix((np.ones(len(tag)), (author, tag)), shape=(context.n_authors, len(vectors)))
    mean = (normalize(uses, norm="l1") @ vectors).astype(np.float32)
    mean[np.diff(uses.indptr) == 0] = np.nan
    frame = context.of_author(numbered("tag_sequence", mean[:, vectors.any(axis=0)]))
    first = words.first_tags(long, n_posts, N_FIRST_TAGS)
    codes = np.where(first < context.n_top_tags, first, -1)
    return frame.join(pd.DataFrame(codes, columns=[f"tag_{i + 1}_code" for i in range(N_FIRST_TAGS)]))


def tag_frequency(context: AuthorContext) -> pd.DataFrame:
    """How common the post's tags are, in all and in its week and month; see `words.tag_trend`."""
    long, periods = context.long_tags, context.periods
    trends = [words.tag_trend(long, periods[name].to_numpy(), name) for name in ("week", "month")]
    return words.tag_frequency(long, context.posts["Uid"]).join(trends)


def tag_history(context: AuthorContext) -> pd.DataFrame:
    """How known the post's tags were when it appeared; see `words.tag_history`."""
    return words.tag_history(context.long_tags, context.posts["Postdate"].dt.as_unit("s"))


def vocabulary(context: AuthorContext) -> pd.DataFrame:
    """The author's tags: how many distinct ones, their entropy in nats, tags per post, and the share nobody else uses."""
    pair, author, tag = context.tag_of_author
    n_authors, row, n_posts = context.n_authors, context.long_tags["row"], len(context.posts)
    n_uses, distinct = np.bincount(author[pair], minlength=n_authors), np.bincount(author, minlength=n_authors)
    share = np.bincount(pair, minlength=len(author)) / n_uses[author]
    private = (np.bincount(tag, minlength=1) == 1)[tag]
    by_author = {
        "author_log_tags": np.log1p(distinct),
        "author_tag_entropy": np.bincount(author, -share * np.log(share), minlength=n_authors),
        "author_tags_per_post": n_uses / np.bincount(context.author),
        "author_private_tags": _ratio(np.bincount(author, private, minlength=n_authors), distinct),
    }
    own = _ratio(np.bincount(row, private[pair], minlength=n_posts), np.bincount(row, minlength=n_posts))
    return context.of_author(by_author).assign(post_private_tags=own)


def vocabulary_so_far(context: AuthorContext) -> pd.DataFrame:
    """The author's tags before the post: how many, the share of its tags among them, overlap with the previous post.

    The overlap is the Jaccard index with all tags of the author's previous instant.
    """
    dated, n_dated = context.dated, len(context.dated)
    position = np.full(len(context.posts), -1)
    position[dated] = np.arange(n_dated)
    row = position[context.long_tags["row"]]
    pair, tag, row = context.tag_of_author[0][row >= 0], context.long_tags["tag"].to_numpy()[row >= 0], row[row >= 0]
    time = context.time[dated]
    first = pd.Series(time[row]).groupby(pair).transform("min").to_numpy()
    n_own = np.bincount(row, minlength=n_dated)
    n_known = np.bincount(row, time[row] > first, minlength=n_dated)
    distinct = context.past.sums(_firsts(pair, row, time))
    instant, start = context.instant
    there = np.unique(instant[row] * context.n_tags + tag)
    n_there = np.bincount(there // context.n_tags, minlength=n_dated)
    again = np.isin((instant[row] - 1) * context.n_tags + tag, there)
    n_again = np.bincount(row, again, minlength=n_dated)
    overlap = _ratio(n_again, np.where(instant > start, n_own + n_there[instant - 1] - n_again, 0))
    columns = {"known_tags": _ratio(n_known, n_own), "tag_overlap": overlap}
    return context.place(columns | {"author_log_tags_so_far": np.log1p(distinct)}, dated)


# --- time -------------------------------------------------------------------------------------------------------------


def posting_rhythm(context: AuthorContext) -> pd.DataFrame:
    """How an author posts over time: gaps between posts (log hours), posts per active day, span, bursts.

    A burst is a run of an author's posts none of which is more than an hour after the one before.
    """
    author, seconds = context.author[context.dated], context.time[context.dated]
    order = np.lexsort((seconds, author))
    gap, follows = np.diff(seconds[order]), np.diff(author[order]) == 0
    gaps = pd.Series(np.log1p(gap[follows] / 3600)).groupby(author[order][1:][follows]).agg(list(STATISTICS))
    n_posts = np.bincount(author, minlength=context.n_authors)
    by_author = {f"author_log_gap_{name}": gaps[name].reindex(range(context.n_authors)) for name in STATISTICS}
    for name, period in context.periods.iloc[context.dated].astype(np.int64).items():
        active = pd.Series(period.to_numpy()).groupby(author).nunique().reindex(range(context.n_authors), fill_value=0)
        by_author[f"author_posts_per_{name}"] = _ratio(n_posts, active.to_numpy())
    angle = 2 * np.pi * (seconds % SECONDS_PER_DAY) / SECONDS_PER_DAY
    east, north = (np.bincount(author, part(angle), context.n_authors) for part in (np.cos, np.sin))
    by_author["author_hour_focus"] = _ratio(np.hypot(east, north), n_posts)
    times = pd.Series(seconds).groupby(author)
    by_author["author_log_days"] = np.log1p((times.max() - times.min()) / SECONDS_PER_DAY)
    return context.of_author(by_author).join(_bursts(context, order, np.r_[False, follows & (gap <= BURST_GAP)]))


def _bursts(context: AuthorContext, order: np.ndarray, goes_on: np.ndarray) -> pd.DataFrame:
    """Size of each post's burst and its place in it, from 1; posts of one instant share the first place they take."""
    goes_on = goes_on[: len(order)]
    position = np.arange(len(order))
    begin = np.maximum.accumulate(np.where(goes_on, 0, position))
    size = np.bincount(begin, minlength=1)[begin]
    same = np.diff(context.instant[0][order], prepend=-1) == 0
    place = np.maximum.accumulate(np.where(same, 0, position)) - begin + 1
    return context.place({"log_burst_size": np.log(size), "log_burst_place": np.log(place)}, context.dated[order])


def author_history(context: AuthorContext) -> pd.DataFrame:
    """What was known of the author when the post appeared: number of earlier posts, also recent ones, days since then.

    Unlike totals these mean the same for an author whose later posts lie beyond the end of the collection.
    """
    columns = _past("author", context.past, context.time[context.dated])
    for days in RECENT_DAYS:
        columns[f"log_author_posts_in_{days}_days"] = np.log1p(context.past.counts(days * SECONDS_PER_DAY))
    return context.place(columns, context.dated)


# --- albums -----------------------------------------------------------------------------------------------------------


def albums(context: AuthorContext) -> pd.DataFrame:
    """Albums, the posts of one author with one title: posts in the album, albums of the author, posts per album."""
    titled = np.flatnonzero(context.album >= 0)
    album = context.album[titled]
    _, one_post = np.unique(album, return_index=True)
    n_albums = np.bincount(context.author[titled[one_post]], minlength=context.n_authors)
    n_posts = np.bincount(context.author, minlength=context.n_authors)
    by_author = {"author_log_albums": np.log1p(n_albums), "author_posts_per_album": _ratio(n_posts, n_albums)}
    size = context.place({"log_album_size": np.log(np.bincount(album, minlength=1)[album])}, titled)
    return context.of_author(by_author).join(size)


def album_so_far(context: AuthorContext) -> pd.DataFrame:
    """The album before the post: its earlier posts, days since its first and its last, and earlier albums of the author."""
    dated, album = context.dated, context.album[context.dated]
    titled, time = np.flatnonzero(album >= 0), context.time[dated]
    n_albums = context.past.sums(_firsts(album[titled], titled, time))
    columns = _past("album", Past(album[titled], time[titled]), time[titled])
    past = context.place(columns, dated[titled])
    return past.join(context.place({"author_log_albums_so_far": np.log1p(n_albums)}, dated))


# --- the author's posts as numbers ------------------------------------------------------------------------------------


def windows(context: AuthorContext) -> pd.DataFrame:
    """Means of a post's own numbers over the author's last 3, 5 and all instants with it, and its distance from the past.

    A window holds the post and all posts of the author's last instants before it (2, 4, all); the distance is the post's
    own number less the mean over the others.

    Source: moving averages in USTC's code, which raise its SRC from 0.715 to 0.721 on its own split.
    """
    own = context.own.iloc[context.dated]
    instant, start = context.instant
    n_before = np.r_[0, np.cumsum(np.bincount(instant, minlength=1))]
    columns = {}
    for name in own:
        values = own[name].to_numpy()
        before = np.r_[0.0, np.cumsum(np.bincount(instant, values, minlength=1))]
        for window, length in WINDOWS.items():
            oldest = np.maximum(instant - (length - 1), start)
            n_past, past = n_before[instant] - n_before[oldest], before[instant] - before[oldest]
            columns[f"{name}_last_{window}_mean"] = (past + values) / (n_past + 1)
            columns[f"{name}_last_{window}_off"] = values - _ratio(past, n_past)
    return context.place({name: values.astype(np.float32) for name, values in columns.items()}, context.dated)


def author_profile(context: AuthorContext) -> pd.DataFrame:
    """An author's posts in numbers: mean, std, min, max, skew of the posts' own numbers; variety of categories and hours.

    Variety is the number of distinct values and the share of the most frequent one.

    Source: statistics per user in Alonso's 2026 code.
    """
    by_author = context.own.groupby(context.author).agg(list(STATISTICS))
    by_author.columns = [f"author_{name}_{statistic}" for name, statistic in by_author.columns]
    values = {name: context.posts[name] for name in ("Category", "Subcategory", "Concept", "Mediatype")}
    for name, column in (values | {"hour": context.posts["Postdate"].dt.hour}).items():
        code = pd.factorize(column)[0]
        author, code = context.author[code >= 0], code[code >= 0]
        pair, n = np.unique(author * (len(context.posts) + 1) + code, return_counts=True)
        uses = pd.Series(n).groupby(pair // (len(context.posts) + 1)).agg(["size", "max", "sum"])
        by_author[f"author_n_{name}"] = uses["size"]
        by_author[f"author_main_{name}"] = uses["max"] / uses["sum"]
    return context.of_author(by_author.astype(np.float32))


FAMILIES: dict[str, Callable[[AuthorContext], pd.DataFrame]] = {f.__name__: f for f in (
    tag_sequence, tag_frequency, tag_history, posting_rhythm, author_history, albums, album_so_far, vocabulary,
    vocabulary_so_far, windows, author_profile,
)}  # fmt: skip
CAUSAL = frozenset({"tag_history", "author_history", "album_so_far", "vocabulary_so_far", "windows"})


def _firsts(key: np.ndarray, event: np.ndarray, time: np.ndarray) -> np.ndarray:
    """(n,) for how many keys each of n events is the first one (one of them, where several are of one instant).

    Args:
        key, event: (m,) which key is there in which event.
        time: (n,) of the events.
    """
    order = np.lexsort((time[event], key))
    first = event[order[np.unique(key[order], return_index=True)[1]]]
    return np.bincount(first, minlength=len(time)).astype(np.float64)


def _past(key: str, past: Past, time: np.ndarray) -> dict[str, np.ndarray]:
    """Of each event (n,): number of earlier events of its key, days since the last and the first of them, as logarithms."""
    columns = {f"log_{key}_earlier_posts": np.log1p(past.counts())}
    for name, then in {"last": past.latest(time), "first": past.earliest(time)}.items():
        columns[f"log_{key}_days_since_{name}"] = np.log1p((time - then) / SECONDS_PER_DAY)
    return columns


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
