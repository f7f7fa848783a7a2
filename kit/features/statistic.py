"""The statistic block: what the posts table itself says about a post, without images, models or labels.

Each family is one function (posts, settings) -> frame whose rows are the posts. Columns that end in `_code` are
categories (integer codes, -1 missing). All families see train and test posts at once; none sees a label, and none sees
Pid, whose order follows albums and therefore leaks (it is worth SRC 0.45 on a random split and 0.15 on a later one).
How an author posts, tags and titles over time is the matter of `kit.features.behaviour`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from kit.features import words
from kit.features.families import SECONDS_PER_DAY, Context, block_of, numbered
from kit.release.values import LARGEST, as_number
from kit.run.block import Block

EMOJI = "[\u2600-\u27bf\U0001f300-\U0001faff]"
CODED = ("Category", "Subcategory", "Concept", "timezone_id", "Mediatype", "Mediastatus")


def statistic_block(
    posts: pd.DataFrame, families: Iterable[str] | None = None, *, svd_dim: int = 32, n_top_tags: int = 200,
    use_pid: bool = False, seed: int = 0, n_known: int | None = None, folder: Path | None = None,
) -> Block:  # fmt: skip
    """Block "statistic": (n_posts, d) float32 from the six official files alone.

    Args:
        posts: the posts table, train and test rows; `label` is not read.
        families: names from FAMILIES, all by default.
        svd_dim: columns of each text SVD.
        n_top_tags: of the most frequent tags, which get a 0/1 column each.
        use_pid: adds the number in Pid; an artefact of how the release was ordered, for experiments only.
        seed: of the randomised SVDs.
        n_known: the first so many posts are those that models were taught with; see `Context`.
        folder: where the values lie; see `block_of`.

    Returns:
        Columns that are constant over all posts are dropped: a release without geo or profile data costs nothing. So
        are columns whose test values mostly lie outside the range seen in train (time itself excepted): a model can
        only guess what they mean there.

    Raises:
        InputError: a family is unknown, or no column varies.
    """
    context, extra = Context(posts, svd_dim, n_top_tags, seed, n_known), {"pid": pid} if use_pid else {}
    return block_of("statistic", FAMILIES, families, context, extra, folder)


def pid(context: Context) -> pd.DataFrame:
    """The number in Pid; none of `FAMILIES`."""
    return pd.DataFrame({"pid": pd.to_numeric(context.posts["Pid"].str.extract(r"(\d+)$")[0], errors="coerce")})


def profile(context: Context) -> pd.DataFrame:
    """Account facts: number of photos, paid account, time zone, lengths of what authors write about themselves.

    Some releases have a number there, as of followers; then it is a column.

    Source: "numerical" features of USTC and HyFea; 0.61 SRC alone on USTC's split.
    """
    posts = context.posts
    frame = posts[["ispro", "canbuypro", "timezone_offset"]].astype(np.float64)
    frame["log_photo_count"] = np.log1p(posts["photo_count"].clip(lower=0))
    for column in ("user_description", "location_description"):
        words = posts[column].astype("object").fillna("")
        frame[f"{column}_chars"] = words.str.len()
        frame[f"{column}_links"] = words.str.count("href|http")
        frame[f"{column}_number"] = as_number(words, -LARGEST, LARGEST)
        vector = posts.get(f"{column}_vector")
        frame[f"has_{column}"] = (words != "") | (False if vector is None else vector.notna())
    frame["has_pathalias"] = ~posts["Pathalias"].isin(["", "None"])
    for column in ("ispro", "photo_count", "timezone_offset"):
        frame[f"has_{column}"] = posts[column].notna()
    return frame


def account_age(context: Context) -> pd.DataFrame:
    """Days from an author's first photo (uploaded, taken) to the post, and photos per day since. Source: HyFea."""
    posts = context.posts
    frame = pd.DataFrame(index=posts.index)
    for column in ("photo_firstdate", "photo_firstdatetaken"):
        days = (posts["Postdate"] - posts[column]).dt.total_seconds() / SECONDS_PER_DAY
        frame[f"days_since_{column}"] = days
        frame[f"year_of_{column}"] = posts[column].dt.year
    frame["log_photos_per_day"] = np.log1p(posts["photo_count"].clip(lower=0)) - np.log1p(
        frame["days_since_photo_firstdate"].clip(lower=0)
    )
    return frame


def posting_time(context: Context) -> pd.DataFrame:
    """When the post appeared, in UTC and in the author's time zone, as numbers and as points on a circle.

    `week_hour` is weekday x 24 + hour (the x 7 in HyFea is a slip). Source: HyFea, Alonso, cactus8603.
    """
    posts = context.posts
    date = posts["Postdate"].dt
    hour = date.hour + date.minute / 60
    local_hour = (hour + posts["timezone_offset"].fillna(0) / 60) % 24
    frame = pd.DataFrame(
        {
            "year": date.year + (date.dayofyear - 1) / 366,
            "month": date.month,
            "day": date.day,
            "weekday": date.weekday,
            "week": date.isocalendar().week.astype(np.float64),
            "week_of_month": (date.day - 1) // 7 + 1,
            "hour": hour,
            "local_hour": local_hour,
            "week_hour": date.weekday * 24 + hour,
        }
    )
    circles = {"month": 12, "weekday": 7, "local_hour": 24, "week": 53}
    for column, period in circles.items():
        angle = 2 * np.pi * frame[column] / period
        frame[f"{column}_sin"], frame[f"{column}_cos"] = np.sin(angle), np.cos(angle)
    return frame


def geo(context: Context) -> pd.DataFrame:
    """Latitude, longitude and accuracy where a place is given (accuracy above 0). Source: HyFea, cactus8603."""
    columns = context.posts[["Latitude", "Longitude", "Geoaccuracy"]].astype(np.float64)
    placed = columns["Geoaccuracy"].fillna(0) > 0
    return columns.where(placed).assign(has_geo=placed)


def text_shape(context: Context) -> pd.DataFrame:
    """Lengths and make-up of title and tags: words, characters, digits, capitals, punctuation, links, scripts, emoji.

    Source: USTC `Wordchar` (SRC 0.41 alone on its split), HyFea, cactus8603.
    """
    frame = pd.DataFrame(index=context.posts.index)
    for column in ("Title", "Alltags"):
        text = context.posts[column]
        chars, n_words = text.str.len(), text.str.count(r"\S+")
        frame[f"{column}_chars"], frame[f"{column}_words"] = chars, n_words
        frame[f"{column}_word_chars"] = (chars - n_words + 1).clip(lower=0) / n_words.clip(lower=1)
        kinds = {"digits": r"\d", "capitals": r"[A-Z]", "marks": r"[^\w\s]", "not_ascii": r"[^\x00-\x7f]|\?\?"}
        kinds |= {"emoji": EMOJI, "questions": "[?\uff1f]"}
        kinds |= {script: f"[{letters}]" for script, letters in words.SCRIPTS.items()}
        for kind, pattern in kinds.items():
            frame[f"{column}_{kind}"] = text.str.count(pattern) / chars.clip(lower=1)
    frame["Title_links"] = context.posts["Title"].str.count("href|http")
    return frame


def category(context: Context) -> pd.DataFrame:
    """Category ids, time zone and media type as codes ordered by frequency. Source: HyFea, USTC."""
    return pd.DataFrame({f"{c}_code": words.frequency_codes(context.posts[c], context.n_known) for c in CODED})


def counts(context: Context) -> pd.DataFrame:
    """How often the post's author, category, day and title occur in train and test, as logarithms.

    Source: Uid_count of HyFea; counts and distinct counts within the author of Alonso.
    """
    posts = context.posts
    keys = {"author": ["Uid"], "author_subcategory": ["Uid", "Subcategory"], "author_title": ["Uid", "Title"]}
    keys |= {c.lower(): [c] for c in ("Category", "Subcategory", "Concept")}
    table = posts[["Uid", "Category", "Subcategory", "Concept", "Title"]].apply(lambda c: pd.factorize(c)[0])
    table["day"] = posts["Postdate"].dt.floor("D").astype("int64")
    keys |= {"day": ["day"], "author_day": ["Uid", "day"]}
    frame = pd.DataFrame(
        {f"log_n_{name}": np.log(table.groupby(columns)["Title"].transform("size")) for name, columns in keys.items()}
    )
    for column in ("Category", "Subcategory", "Concept"):
        frame[f"author_distinct_{column}"] = table.groupby("Uid")[column].transform("nunique")
    return frame


def top_tags(context: Context) -> pd.DataFrame:
    """One 0/1 column for each of the most frequent tags, where an SVD would blur them."""
    top = context.tag_matrix[:, : context.n_top_tags].astype(np.uint8).toarray()
    return pd.DataFrame(top, columns=[f"top_tag_{i}" for i in range(top.shape[1])])


def title_svd(context: Context) -> pd.DataFrame:
    """TF-IDF of title words, reduced; in scripts without spaces of runs of characters, in mixed titles of both."""
    titles, dim, seed, n_known = context.posts["Title"], context.svd_dim, context.seed, context.n_known
    unspaced, frames = words.unspaced_share(titles.iloc[:n_known]), []
    if unspaced <= words.MIXED[1]:
        frames.append(numbered("title_svd", words.tfidf_svd(titles, dim, seed, n_known=n_known)))
    if unspaced >= words.MIXED[0]:
        frames.append(numbered("title_char_svd", words.tfidf_svd(titles, dim, seed, "char", n_known)))
    return pd.concat(frames, axis=1)


def tags_svd(context: Context) -> pd.DataFrame:
    """TF-IDF of tags, reduced; see `words.tag_svd`."""
    return numbered("tags_svd", words.tag_svd(context.tag_matrix, context.svd_dim, context.seed, context.n_known))


def tag_neighbours(context: Context) -> pd.DataFrame:
    """Mean vector of the post's tags, which holds their company; see `words.tag_neighbours`."""
    vectors = words.tag_neighbours(context.tag_matrix, context.svd_dim, context.seed, context.n_known)
    return numbered("tag_neighbours", vectors)


def description(context: Context) -> pd.DataFrame:
    """What authors say of themselves and their place: SVD of its TF-IDF, or of the vectors that old releases give."""
    frames = []
    for column in ("user_description", "location_description"):
        dim, vectors = context.svd_dim // 2, context.posts.get(f"{column}_vector")
        if vectors is not None and vectors.iloc[: context.n_known].notna().any():
            given = vectors.notna().to_numpy()
            dense = np.zeros((len(vectors), len(vectors[given].iloc[0])), dtype=np.float32)
            dense[given] = np.stack(vectors[given].to_numpy())
            reduced = words.truncated_svd(sparse.csr_matrix(dense), dim, context.seed, context.n_known)
        else:
            reduced = words.tfidf_svd(context.posts[column], dim, context.seed, n_known=context.n_known)
        frames.append(numbered(f"{column}_svd", reduced))
    return pd.concat(frames, axis=1)


FAMILIES: dict[str, Callable[[Context], pd.DataFrame]] = {f.__name__: f for f in (
    profile, account_age, posting_time, geo, text_shape, category, counts, top_tags, title_svd, tags_svd, tag_neighbours,
    description,
)}  # fmt: skip
