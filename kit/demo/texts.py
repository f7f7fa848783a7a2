"""Titles and tags of synthetic posts, and what of them counts for popularity."""

from __future__ import annotations

import numpy as np
import pandas as pd

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black")
MOODS = (
    "beautiful", "lovely", "amazing", "my", "little", "the", "happy", "quiet", "crazy", "old", "new", "perfect",
    "tired", "boring", "wonderful", "strange", "fresh", "sweet", "lonely", "wild", "golden", "lazy", "simple", "epic",
)  # fmt: skip
FILLERS = (  # phrases of one, two, three and four words
    ("today", "again", "shot", "2016", "life", "please", "2", "finally", "caf?", "time", "yesterday", "??"),
    ("at home", "with friends", "last weekend", "from above", "for you", "at night", "after work", "part two"),
    ("in the morning", "by the river", "in the city", "on the road", "before the show", "with my sister", "i love it"),
    ("what do you think?", "under the old bridge", "as seen last week", "during our summer trip", "on my way home"),
)
CAMERA_NAMES = ("IMG_{:04d}", "DSC_{:04d}", "DSC{:05d}", "P10{:05d}", "{:d}", "Untitled")
GENERIC_TAGS = (
    "photography", "canon", "nikon", "square", "iphoneography", "instagramapp", "squareformat",
    "uploaded:by=instagram", "2016", "2015", "photo", "bw", "art", "nature", "light", "blackandwhite", "portrait",
    "street", "travel", "color", "love", "night", "usa", "europe", "london", "sony", "fujifilm", "50mm", "bokeh",
    "vintage", "film", "hdr", "urban", "people", "girl", "life", "fun", "cute", "home", "city", "sky", "water",
    "winter", "summer", "explore", "flickr", "picoftheday", "photooftheday", "instagood", "igers", "follow",
    "likeforlike", "tbt", "selfie", "mobile", "android", "vsco", "outdoor", "indoor", "closeup", "macro", "landscape",
    "green", "blue", "red", "new", "old", "model", "studio", "flash", "sunset", "trip", "family", "friends", "day",
    "germany", "paris", "newyork", "california", "tokyo", "italy", "spain", "park", "streetphoto", "stilllife",
)  # fmt: skip


def draw_texts(posts: pd.DataFrame, taxonomy: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Title and Alltags of every post, and what of them counts: named_colour (-1: none), title_words, n_title,
    tag_words, n_tags.

    Half of the albums share one title and one set of tags, as on the real site.
    """
    shared = rng.random(posts["album"].iloc[-1] + 1) < 0.5
    is_own = ~posts["album"].duplicated() | ~shared[posts["album"]]
    text = np.cumsum(is_own) - 1  # text number of each post
    source = posts[is_own].reset_index(drop=True)
    fields = _draw_titles(source, taxonomy, rng) | _draw_tags(source, taxonomy, rng)
    return {name: values[text] for name, values in fields.items()}


def _draw_titles(posts: pd.DataFrame, taxonomy: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Titles: 8 % empty, 22 % of one word, else [mood] [colour] subject [filler ...] cut to a drawn number of words."""
    n = len(posts)
    bare = rng.random(n)
    n_words = np.where(
        bare < 0.08, 0, np.where(bare < 0.30, 1, 1 + np.ceil(rng.lognormal(0.8, 0.9, n)).clip(1, 24))
    ).astype(int)
    subject = np.where(
        rng.random(n) < 0.5,
        taxonomy["prompt_name"].to_numpy()[posts["concept"]],
        taxonomy["concept"].to_numpy()[posts["concept"]],
    )
    one_word = rng.random(n)  # below 0.55 the subject, below 0.75 a file name of the camera, else a mood
    mood = np.where(np.where(n_words == 1, one_word >= 0.75, rng.random(n) < 0.6), rng.integers(0, len(MOODS), n), -1)
    mood[n_words == 0] = -1
    colour = np.where((n_words >= 3) & (rng.random(n) < 0.5), rng.integers(0, len(COLOURS), n), -1)
    has_subject = rng.random(n) < 0.88
    filler = rng.integers(0, 1000, (n, 4))
    camera, number = rng.integers(0, len(CAMERA_NAMES), n), rng.integers(1, 9999, n)
    style = rng.random(n)
    titles = [
        _title(*row)
        for row in zip(
            n_words.tolist(), subject.tolist(), one_word.tolist(), mood.tolist(), colour.tolist(), has_subject.tolist(),
            filler.tolist(), camera.tolist(), number.tolist(), style.tolist(), strict=True,
        )
    ]  # fmt: skip
    weights = np.append(rng.standard_normal(len(MOODS)), 0.0)  # the last one is for -1, no mood
    titles = np.array(titles, dtype=object)
    length = np.array([title.count(" ") + bool(title) for title in titles.tolist()])
    return {"Title": titles, "named_colour": colour, "title_words": weights[mood], "n_title": length}


def _title(n_words, subject, one_word, mood, colour, has_subject, filler, camera, number, style) -> str:
    """One title from its draws."""
    if n_words == 0:
        return ""
    if n_words == 1:
        if 0.55 <= one_word < 0.75:
            return CAMERA_NAMES[camera].format(number)
        words = [MOODS[mood] if mood >= 0 else subject.replace(" ", "")]
    else:
        words = [MOODS[mood]] if mood >= 0 else []
        words += [COLOURS[colour]] if colour >= 0 else []
        words += subject.split() if has_subject else []
        for draw in filler * 2:
            if (room := n_words - len(words)) <= 0:
                break
            phrases = FILLERS[min(room, len(FILLERS)) - 1]
            words += phrases[draw % len(phrases)].split()
        words = words[:n_words]
    title = " ".join(words)
    if style < 0.45:
        title = title[0].upper() + title[1:]
    elif style < 0.6:
        title = title.title()
    return f'<a href="http://example.org/{number}" rel="nofollow">{title}</a>' if style > 0.997 else title


def _draw_tags(posts: pd.DataFrame, taxonomy: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Tags: 5 % none, else about 9 (heavy tail): the concept, its subcategory, related concepts and generic tags."""
    n, n_concepts = len(posts), len(taxonomy)
    habit = rng.normal(np.log(8), 0.6, posts["user"].max() + 1)
    n_wanted = np.round(np.exp(rng.normal(habit[posts["user"]], 0.5))).clip(1, 60) * (rng.random(n) >= 0.05)
    owner = np.repeat(np.arange(n), n_wanted.astype(int))
    generic_p = 1 / np.arange(4, len(GENERIC_TAGS) + 4)
    generic = n_concepts + rng.choice(len(GENERIC_TAGS), len(owner), p=generic_p / generic_p.sum())
    related = _concepts_of_subcategory(posts["concept"].to_numpy()[owner], taxonomy, rng.random(len(owner)))
    kind = rng.random(len(owner))
    tag = np.where(kind < 0.65, generic, related)
    is_first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    tag = np.where(is_first & (kind < 0.9), posts["concept"].to_numpy()[owner], tag)
    # A tag occurs once in a post; the fixed shuffle mixes generic and special ones.
    words, code = np.unique(taxonomy["concept"].tolist() + list(GENERIC_TAGS), return_inverse=True)
    order = rng.permutation(len(words))
    owner, place = np.divmod(np.unique(owner * len(words) + order[code[tag]]), len(words))
    tag = np.argsort(order)[place]
    weights = np.zeros(len(words))
    weights[code[n_concepts:]] = rng.standard_normal(len(GENERIC_TAGS))
    n_tags = np.bincount(owner, minlength=n)
    tag_words = np.bincount(owner, weights[tag], minlength=n) / np.sqrt(np.maximum(n_tags, 1))
    with_name = (rng.random(n) < 0.6) & (n_tags > 0)
    lead = np.where(with_name, taxonomy["prompt_name"].str.replace(" ", "").to_numpy()[posts["concept"]], "")
    flat, ends = words.astype(object)[tag].tolist(), np.cumsum(n_tags).tolist()
    texts = [_join_tags(name, flat[a:b]) for name, a, b in zip(lead.tolist(), [0, *ends], ends, strict=False)]
    length = np.array([text.count(" ") + bool(text) for text in texts])
    return {"Alltags": np.array(texts, dtype=object), "tag_words": tag_words, "n_tags": length}


def _join_tags(lead: str, tags: list[str]) -> str:
    return " ".join([lead, *(tag for tag in tags if tag != lead)] if lead else tags)


def _concepts_of_subcategory(concept: np.ndarray, taxonomy: pd.DataFrame, draw: np.ndarray) -> np.ndarray:
    """A concept of the same subcategory for each, picked by a draw in [0, 1)."""
    subcategory = pd.factorize(taxonomy["category"] + "/" + taxonomy["subcategory"])[0]
    size = np.bincount(subcategory)
    first = np.cumsum(size) - size
    return first[subcategory[concept]] + (draw * size[subcategory[concept]]).astype(int)
