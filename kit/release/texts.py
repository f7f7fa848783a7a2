"""The text of a post as encoders read it."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

from kit.base.errors import InputError

TEXT_SOURCES = ("title_tags", "title", "tags")
LETTER, LATIN = r"[^\W\d_]", "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]"
MOSTLY_OTHER = 0.25  # share of other letters from which on they say most of a text; see `other_letters`


def post_texts(posts: pd.DataFrame, source: str = "title_tags") -> np.ndarray:
    """The description r of every post (Eq. 3), plain text without HTML.

    Args:
        posts: the posts table.
        source: ``title_tags`` = "title. tags"; ``title`` = the title, or the tags where the title has no letter;
            ``tags`` = the tags, or the title where there are none.
    Returns:
        (n_posts,) object array of str, "" where a post has neither.
    """
    if source not in TEXT_SOURCES:
        raise InputError(f"text source '{source}' is unknown; choose one of {', '.join(TEXT_SOURCES)}")
    title = _plain_text(posts["Title"])
    tags = _plain_text(posts["Alltags"])
    titled = title.str.contains(r"[^\W\d_]", regex=True)
    if source == "title":
        return title.where(titled, tags.where(tags != "", title)).to_numpy(object)
    if source == "tags":
        return tags.where(tags != "", title).to_numpy(object)
    both = title.str.rstrip(".") + ". " + tags
    return both.where(titled & (tags != ""), title.where(titled | (tags == ""), tags)).to_numpy(object)


def other_letters(titles: pd.Series) -> float:
    """Share of the letters that are not Latin, over all titles; 0 without letters.

    From ``MOSTLY_OTHER`` on most of what the titles say is in other letters. It is the share at which both give as many
    tokens: of Chinese titles a token of multilingual-e5-small is 1.03 letters, of English ones 3.16.
    """
    letters = titles.fillna("").str.count(LETTER).sum()
    return float(1 - titles.fillna("").str.count(LATIN).sum() / letters) if letters else 0.0


def _plain_text(column: pd.Series) -> pd.Series:
    """The texts without HTML tags and entities, white space collapsed."""
    texts = column.astype(object).fillna("").astype(str).reset_index(drop=True)
    marked = texts.str.contains("[<&]", regex=True)
    texts[marked] = texts[marked].str.replace(r"<[^<>]*>", " ", regex=True).map(html.unescape)
    return texts.str.split().str.join(" ")
