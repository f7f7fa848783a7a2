"""The columns of posts as they would be if a post were changed; what depends on other posts' choices stays as it is.

A family of columns that reads a post and its past is made anew on the posts table with the changed post in its place. Columns
from a decomposition (SVD, PCA) are made on all posts and the changed ones beside them, laid over the stored columns, and
only the difference between the changed post and itself is taken: with nothing changed every column is the stored one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.encoders.frozen import clip_block
from kit.features import behaviour, statistic, words
from kit.features.families import Context
from kit.release.texts import post_texts
from kit.run.block import Block
from kit.run.marks import read_mark
from kit.viz.explore import towers
from kit.viz.explore.opened import Opened

ASKED = ("hour", "weekday", "tags", "title", "image")
# families of columns -> what they read of a post: of that post alone; of others, too, which stay the same
OWN = {"posting_time": {"time"}, "account_age": {"time"}, "text_shape": {"title", "tags"}}
PAST = {
    "counts": {"time", "title"}, "tag_frequency": {"time", "tags"}, "tag_history": {"time", "tags"},
    "author_history": {"time"}, "album_so_far": {"time", "title"}, "vocabulary_so_far": {"time", "tags"},
    "windows": {"time", "title", "tags"},
}  # fmt: skip
BY_AUTHOR = {"author_history", "album_so_far", "vocabulary_so_far", "windows"}  # of these: they read one author's posts
DECOMPOSED = {"title_svd": {"title"}, "tags_svd": {"tags"}, "tag_neighbours": {"tags"}}
ROOMS = {"statistic": statistic.FAMILIES, "behaviour": behaviour.FAMILIES}  # block -> its families
FAMILIES = {**statistic.FAMILIES, **behaviour.FAMILIES}
HELD = {  # what a change leaves as it is although it might move
    "time": "what the author does on the whole (rhythm, habits)",
    "title": "the author's albums and habits",
    "tags": "the author's vocabulary and habits, and how often other posts use the tags",
    "image": "everything but the image features",
}


def changed_posts(opened: Opened, row: int, variants: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The post once per variant, each changed.

    Args:
        variants: values of some of ASKED: hour (0 to 23, UTC), weekday (0 Monday to 6), tags (separated by spaces, or a
            list), title, image (a file).

    Raises:
        InputError: an unknown name, a value out of range, a time for a post without a date, or a missing image file.
    """
    one = opened.posts.iloc[[row] * len(variants)].reset_index(drop=True)
    title, tags, image, date = (one[name].tolist() for name in ("Title", "Alltags", "image_path", "Postdate"))
    for place, variant in enumerate(variants):
        if unknown := set(variant) - set(ASKED):
            raise InputError(f"what_if knows {', '.join(ASKED)}, not {', '.join(sorted(unknown))}")
        title[place] = variant.get("title", title[place])
        asked = variant.get("tags", tags[place])
        tags[place] = asked if isinstance(asked, str) else " ".join(asked)
        image[place] = str(variant.get("image", image[place]))
        if "image" in variant and towers.unreadable(image[place]):
            raise InputError(f"image={image[place]!r}: {towers.unreadable(image[place])}")
        date[place] = _moved(date[place], variant.get("hour"), variant.get("weekday"))
    moved = pd.Series(date, dtype=opened.posts["Postdate"].dtype)
    return one.assign(Title=title, Alltags=tags, image_path=image, Postdate=moved)


def _moved(date: pd.Timestamp, hour: int | None, weekday: int | None) -> pd.Timestamp:
    """The date at another hour, on another day of its week."""
    for name, value, most in (("hour", hour, 23), ("weekday", weekday, 6)):
        if value is not None and not (isinstance(value, (int, np.integer)) and 0 <= value <= most):
            raise InputError(f"{name}={value!r}: expected a whole number from 0 to {most}")
    if hour is None and weekday is None:
        return date
    if pd.isna(date):
        raise InputError("this post has no date, so that its hour or weekday cannot be changed")
    date = date if hour is None else date.replace(hour=int(hour))
    return date if weekday is None else date + pd.Timedelta(days=int(weekday) - date.weekday())


def what_changes(opened: Opened, row: int, changed: pd.DataFrame) -> set[str]:
    """Of "time", "title", "tags", "image", what differs from the post in any variant."""
    one = opened.posts.iloc[row]
    columns = {"time": "Postdate", "title": "Title", "tags": "Alltags", "image": "image_path"}
    return {what for what, name in columns.items() if not (changed[name].eq(one[name]) | pd.isna(one[name])).all()}


def held(opened: Opened, blocks: Sequence[str], changes: set[str]) -> list[str]:
    """What stays as it is although the change might move it, in words."""
    lines = [HELD[what] for what in ("time", "title", "tags", "image") if what in changes]
    lines += ["the columns of all other posts, and the models"]
    followed = {"statistic", "behaviour", "external"} | ({"clip"} if opened.run.has_block("clip_image") else set())
    if changes & {"title", "tags", "image"} and (others := [name for name in blocks if name not in followed]):
        lines.append(f"block {', '.join(others)}")
    return lines


def block_rows(opened: Opened, row: int, changed: pd.DataFrame, blocks: Sequence[str]) -> dict[str, np.ndarray]:
    """Block -> (n_variants, d) float32: its rows of the changed posts.

    Args:
        changed: from `changed_posts`.
    """
    changes = what_changes(opened, row, changed)
    rows = {}
    for name in blocks:
        block = opened.run.read_block(name)
        rows[name] = np.repeat(np.asarray(block.values[row : row + 1], np.float32), len(changed), axis=0)
        if name in ROOMS:
            frames = _own(opened, row, changed, changes) + _codes(opened, row, changed, changes, block.columns)
            frames += _past(opened, row, changed, changes, name) + _decomposed(opened, row, changed, changes, block)
            _lay(rows[name], block.columns, frames)
        if name == "clip" and changes & {"title", "tags", "image"} and opened.run.has_block("clip_image"):
            _lay(rows[name], block.columns, [_clip(opened, row, changed, changes, block.columns)])
    return rows


# columns of the changed posts (n_variants rows), and of the post itself (1 row)
Pair = tuple[pd.DataFrame, pd.DataFrame]


def _lay(rows: np.ndarray, columns: Sequence[str], frames: Sequence[Pair]) -> None:
    """Move the stored rows by what each column's changed value differs from the post's own."""
    place = {name: i for i, name in enumerate(columns)}
    for new, old in frames:
        for name in new.columns.intersection(place):
            values, own = new[name].to_numpy(np.float32), np.float32(old[name].iloc[0])
            stored = rows[:, place[name]]
            same = (values == own) | (np.isnan(values) & np.isnan(own))
            moved = values if name.endswith("_code") or np.isnan(own) else stored + (values - own)
            rows[:, place[name]] = np.where(same, stored, moved)


def _own(opened: Opened, row: int, changed: pd.DataFrame, changes: set[str]) -> list[Pair]:
    """Families that read the post alone."""
    table = pd.concat([changed, opened.posts.iloc[[row]]], ignore_index=True)
    frames = [FAMILIES[name](_context(opened, table)) for name, reads in OWN.items() if reads & changes]
    return [(frame.iloc[:-1], frame.iloc[-1:]) for frame in frames]


def _past(opened: Opened, row: int, changed: pd.DataFrame, changes: set[str], block: str) -> list[Pair]:
    """Families that read the post and those before it: one posts table per variant, with the post replaced."""
    known = [name for name in PAST if name in ROOMS[block]]
    families = [name for name in known if PAST[name] & changes]
    if not families:
        return []
    own = opened.keep(("past", block, row), lambda: _row_of(opened, row, opened.posts.iloc[[row]], known))
    new = [_row_of(opened, row, changed.iloc[[place]], families) for place in range(len(changed))]
    return [(pd.concat(new, ignore_index=True), own[new[0].columns])]


def _row_of(opened: Opened, row: int, one: pd.DataFrame, families: Sequence[str]) -> pd.DataFrame:
    """The families' columns of a post with another in its place, (1, d) float32."""
    posts, uid, tags = replaced(opened, row, one), opened.posts["Uid"], None
    if one["Alltags"].iloc[0] == opened.posts["Alltags"].iloc[row]:  # its slowest part, and the same for every variant
        tags = opened.keep("long tags", lambda: words.long_tags(opened.posts["Alltags"]))
    every = _context(opened, posts, tags)
    mine = np.flatnonzero(uid == uid.iloc[row])
    alone = _context(opened, posts.iloc[mine].reset_index(drop=True))
    parts = {True: (alone, [int(np.searchsorted(mine, row))]), False: (every, [row])}
    frames = []
    for name in families:
        context, place = parts[name in BY_AUTHOR]
        frames.append(FAMILIES[name](context).iloc[place].reset_index(drop=True))
    return pd.concat(frames, axis=1).astype(np.float32)


def replaced(opened: Opened, row: int, one: pd.DataFrame) -> pd.DataFrame:
    """The posts table with another post in place of one."""
    posts = opened.posts.copy()
    for name in ("Title", "Alltags", "Postdate"):
        posts[name] = posts[name].where(np.arange(len(posts)) != row, one[name].iloc[0])
    return posts


def extended(opened: Opened, row: int, changed: pd.DataFrame) -> pd.DataFrame:
    """The posts table, the changed posts, and last the post itself once more."""
    return pd.concat([opened.posts, changed, opened.posts.iloc[[row]]], ignore_index=True)


def _decomposed(opened: Opened, row: int, changed: pd.DataFrame, changes: set[str], block: Block) -> list[Pair]:
    """Decompositions of all posts and the changed ones, turned so that they lie over the stored columns."""
    pairs = []
    for name, reads in DECOMPOSED.items():
        kept = [
            column for column in block.columns if column.rpartition("_")[0] in (name, name.replace("_svd", "_char_svd"))
        ]
        if not reads & changes or not kept:
            continue
        frame = FAMILIES[name](_context(opened, extended(opened, row, changed)))
        stored = np.asarray(block.values[:, [block.columns.index(column) for column in kept]], np.float64)
        made = frame.to_numpy(np.float64)
        turn = np.linalg.lstsq(made[: len(stored)], stored, rcond=1e-6)[0]
        laid = pd.DataFrame(made[len(stored) :] @ turn, columns=kept)
        pairs.append((laid.iloc[:-1], laid.iloc[-1:]))
    return pairs


def _codes(opened: Opened, row: int, changed: pd.DataFrame, changes: set[str], columns: Sequence[str]) -> list[Pair]:
    """Columns of single tags, by the tags' places among all posts as they are."""
    if "tags" not in changes:
        return []
    codes = opened.keep("tag codes", lambda: _tag_codes(opened.posts["Alltags"]))
    lists = [text.lower().split() for text in [*changed["Alltags"], opened.posts["Alltags"].iloc[row]]]
    known = [[codes.get(tag, len(codes)) for tag in dict.fromkeys(tags)] for tags in lists]
    first = np.array([(tags + tags[-1:] * behaviour.N_FIRST_TAGS or [-1] * behaviour.N_FIRST_TAGS)[: behaviour.N_FIRST_TAGS]
                      for tags in known])  # fmt: skip
    n_top = settings_of(opened)["n_top_tags"]
    frame = pd.DataFrame(
        np.where(first < n_top, first, -1), columns=[f"tag_{i + 1}_code" for i in range(first.shape[1])]
    )
    top = [column for column in columns if column.startswith("top_tag_")]
    single = {column: [float(int(column.rpartition("_")[2]) in tags) for tags in known] for column in top}
    frame = frame.join(pd.DataFrame(single, index=frame.index))
    return [(frame.iloc[:-1], frame.iloc[-1:])]


def _tag_codes(alltags: pd.Series) -> dict[str, int]:
    """Tag -> its code in `words.long_tags`."""
    used = alltags.str.lower().str.split().explode().dropna()
    return dict(zip(used, words.frequency_codes(used), strict=True))


def _clip(opened: Opened, row: int, changed: pd.DataFrame, changes: set[str], columns: Sequence[str]) -> Pair:
    """Block `clip`: the towers see the changed posts and the post itself; components are those of the stored embeddings."""
    run, n = opened.run, len(opened.posts)
    image, text = (np.asarray(run.read_block(name).values) for name in ("clip_image", "clip_text"))
    ok = run.read_table("image_ok")["image_ok"].to_numpy()
    table, size = extended(opened, row, changed).iloc[n:], len(changed) + 1
    new_image, new_text, new_ok = (np.repeat(values[[row]], size, 0) for values in (image, text, ok))
    if "image" in changes:
        new_image, new_ok = towers.encode_images(run.dir, table["image_path"].tolist()), np.full(size, True)
        new_ok[-1] = ok[row]
    if changes & {"title", "tags"}:
        new_text = towers.encode_texts(
            run.dir, post_texts(table, settings_of(opened, "02_prototypes")["text_source"]).tolist()
        )
    n_columns = sum(column.startswith("clip_image_") for column in columns)
    block = clip_block(
        np.vstack([image, new_image]), np.vstack([text, new_text]), np.r_[ok, new_ok],
        np.flatnonzero(opened.posts["split"] == "train"), 0 if n_columns == image.shape[1] else n_columns,
        cosine="clip_cosine" in columns,
    )  # fmt: skip
    frame = pd.DataFrame(block.values[n:], columns=block.columns)
    return frame.iloc[:-1], frame.iloc[-1:]


def _context(opened: Opened, posts: pd.DataFrame, tags: pd.DataFrame | None = None) -> Context:
    own = settings_of(opened)
    return behaviour.AuthorContext(posts, own["svd_dim"], own["n_top_tags"], own["seed"], given_tags=tags)


def settings_of(opened: Opened, step: str = "04_features") -> dict[str, Any]:
    """The parameters a step ran with.

    Raises:
        InputError: it has left no mark.
    """
    mark = read_mark(opened.run.dir, step)
    if mark is None:
        raise InputError(f"{step} has left no done-mark in {opened.run.dir.name}: let ./run_all.sh finish it")
    return mark["parameters"]
