"""Synthetic posts with a known recipe: who posts what and when, in which words, with which picture, seen how often.

The label of a post is the rank of its latent popularity among the train posts, mapped to SMPD's published distribution
of train labels. The latent is a sum of independent parts of unit variance, weighted so that their shares of its
variance are those of `SHARES`:

    part              share  what a model can read it from
    author_profile    0.20   photo_count, ispro, account age (user_data)
    posting_hour      0.04   hour of the day (UTC)
    weekday           0.015  weekend against working days
    drift             0.005  views fall slowly over the 16 months, as in SMPD
    category          0.03   Category, Subcategory and Concept, each class with an effect of its own
    subcategory       0.06
    concept           0.02
    tag_count         0.06   number of tags (logarithm)
    tag_words         0.04   which of the popular generic tags are there
    title_words       0.03   mood words of the title, each with a weight of its own
    title_length      0.02   words of the title, saturating at six
    image_quality     0.11   contrast, clutter, sharpness, subject size: in the pixels only, a quarter each
    motif_agreement   0.08   the picture shows the motif of the post's subcategory, or that of another one
    colour_agreement  0.03   the ground of the picture has the colour that the title names
    author_hidden     0.10   one draw per user: no field shows it
    noise             0.16   one draw per post

The last two cannot be predicted for a new user. What is left, 0.74 of the variance, is the best any model can do: about
SRC 0.84; 0.52 needs no pixels.
"""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd

from kit.demo.texts import COLOURS, draw_texts
from kit.release.taxonomy import read_taxonomy

SHARES = {
    "author_profile": 0.2, "posting_hour": 0.04, "weekday": 0.015, "drift": 0.005,
    "category": 0.03, "subcategory": 0.06, "concept": 0.02,
    "tag_count": 0.06, "tag_words": 0.04, "title_words": 0.03, "title_length": 0.02,
    "image_quality": 0.11, "motif_agreement": 0.08, "colour_agreement": 0.03,
    "author_hidden": 0.1, "noise": 0.16,
}  # fmt: skip
UNSEEABLE = ("author_hidden", "noise")
QUALITIES = ("contrast", "clutter", "sharpness", "subject_size")


# SMPD's train labels in bins of 0.5 from 1.0 to the largest, 16.56. Source: the challenge site's dataset page.
LABEL_COUNTS = (
    4099, 3539, 6416, 7007, 12664, 13160, 19869, 22349, 27355, 25252, 24333, 23234, 21424, 19330, 16596, 13829,
    10568, 8909, 7622, 5560, 4104, 2962, 1735, 1020, 811, 629, 483, 310, 255, 118, 66, 5,
)  # fmt: skip
LABEL_MIN, LABEL_STEP, LABEL_MAX = 1.0, 0.5, 16.56
FIRST_DAY = 1425168000  # 2015-03-01 00:00 UTC; the release spans 16 months from here
N_DAYS = 488
DAY_S = 86400
POSTS_PER_USER = 7  # SMPD: 486 thousand posts by 70 thousand users
SEEN_SHARE = 0.12  # test posts whose user also posts in train
HOUR_WEIGHTS = (3, 2, 1, 1, 1, 1, 2, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6, 7, 8, 9, 10, 9, 7, 5)


def make_posts(n_posts: int, seed: int, test_share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Posts and users of a synthetic release.

    Args:
        n_posts: train and test posts together.
        seed: everything random follows from it.
        test_share: part of the posts, the latest ones, that are test posts.

    Returns:
        posts: one row per post, train rows by ascending integer Pid, then test rows in no order of Pid. Columns:
            is_test, user (row of users), Pid (int), time (s), concept, subcategory and category (codes in taxonomy
            order), Title, Alltags, the four qualities in [0, 1], motif (a subcategory code), ground (a code of
            COLOURS), one column part_<name> per part of SHARES (unit variance), score (expected label given all that
            can be seen), label.
        users: see `_draw_users`.
    """
    taxonomy = read_taxonomy()
    n_test = min(max(round(n_posts * test_share), 1), n_posts - 1)
    posts = _draw_albums(n_posts, n_test, _rng(seed, "albums"))
    posts["time"] = _draw_times(posts, n_posts - n_test, _rng(seed, "times"))
    posts["concept"] = _draw_concepts(posts, taxonomy, _rng(seed, "concepts"))
    posts["subcategory"] = pd.factorize(taxonomy["category"] + "/" + taxonomy["subcategory"])[0][posts["concept"]]
    posts["category"] = pd.factorize(taxonomy["category"])[0][posts["concept"]]
    users = _draw_users(posts, _rng(seed, "users"))
    texts = draw_texts(posts, taxonomy, _rng(seed, "texts"))
    posts["Title"], posts["Alltags"] = texts.pop("Title"), texts.pop("Alltags")
    pictures = _draw_pictures(posts, texts["named_colour"], _rng(seed, "pictures"))
    posts = pd.concat([posts, pictures], axis=1)
    parts = _popularity_parts(posts, users, texts, _rng(seed, "popularity"))
    posts = pd.concat([posts, parts.add_prefix("part_")], axis=1)
    posts["score"], posts["label"] = _labels_from_parts(parts, posts["is_test"].to_numpy())
    return _number_posts(posts, _rng(seed, "pids")), users


def quantile_label(share: np.ndarray) -> np.ndarray:
    """Labels at the given shares of SMPD's label distribution, on its lattice round(log2(views + 1), 2).

    Args:
        share: any shape, in [0, 1).
    """
    edges = np.append(LABEL_MIN + LABEL_STEP * np.arange(len(LABEL_COUNTS)), LABEL_MAX + 0.005)
    cumulative = np.append(0, np.cumsum(LABEL_COUNTS)) / sum(LABEL_COUNTS)
    bin_idx = np.clip(np.searchsorted(cumulative, share, side="right") - 1, 0, len(LABEL_COUNTS) - 1)
    inside = (share - cumulative[bin_idx]) / (cumulative[bin_idx + 1] - cumulative[bin_idx])
    wanted = edges[bin_idx] + inside * (edges[bin_idx + 1] - edges[bin_idx])
    # Rounding to a whole number of views must not leave the bin, or the rare low labels would trade places.
    lowest = np.ceil(np.exp2(edges - 0.005) - 1e-9)
    views_plus_1 = np.clip(np.round(np.exp2(wanted)), lowest[bin_idx], lowest[bin_idx + 1] - 1)
    return np.round(np.log2(np.maximum(views_plus_1, 2)), 2)


# --------------------------------------------------------------------------------------------- who posts, what and when


def _rng(seed: int, stream: str) -> np.random.Generator:
    """A generator of its own for each step, so that a change in one step leaves the others as they were."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode())])


def _draw_albums(n_posts: int, n_test: int, rng: np.random.Generator) -> pd.DataFrame:
    """is_test, user and album of every post: heavy-tailed users, most of them in one split only."""
    n_train = n_posts - n_test
    n_seen = min(round(n_test * SEEN_SHARE), n_train // 3)
    cap = max(8, n_posts // 80)
    faithful = _user_sizes(n_seen, cap, rng)  # these post as much again in train
    groups = [_user_sizes(n_train - n_seen, cap, rng), faithful, faithful, _user_sizes(n_test - n_seen, cap, rng)]
    n_old, n_faithful, n_new = len(groups[0]), len(faithful), len(groups[3])
    old, both, new = np.split(rng.permutation(n_old + n_faithful + n_new), [n_old, n_old + n_faithful])
    user = np.concatenate([np.repeat(u, s) for u, s in zip((old, both, both, new), groups, strict=True)])
    is_test = np.arange(n_posts) >= n_train
    stay = np.append(False, (user[1:] == user[:-1]) & (is_test[1:] == is_test[:-1]))
    album = np.cumsum(~stay | (rng.random(n_posts) < 1 / 3)) - 1  # three posts each on average
    return pd.DataFrame({"is_test": is_test, "user": user, "album": album, "tenure": np.cumsum(~stay) - 1})


def _user_sizes(total: int, cap: int, rng: np.random.Generator) -> np.ndarray:
    """Posts per user, log-normal with mean about POSTS_PER_USER, summing to total."""
    sigma = 1.15
    sizes = np.ceil(rng.lognormal(np.log(POSTS_PER_USER - 0.5) - sigma**2 / 2, sigma, total)).clip(1, cap)
    ends = np.minimum(np.cumsum(sizes), total)
    sizes = np.diff(ends, prepend=0)
    return sizes[sizes > 0].astype(int)


def _draw_times(posts: pd.DataFrame, n_train: int, rng: np.random.Generator) -> np.ndarray:
    """Posting times in s: bursts per user, busier evenings and weekends, every train time before every test time."""
    split_day = round(N_DAYS * n_train / len(posts))
    starts = posts.drop_duplicates("album")  # one row per album
    begin = np.where(starts["is_test"], split_day, 0)
    length = np.where(starts["is_test"], N_DAYS - split_day, split_day)
    n_tenures = starts["tenure"].iloc[-1] + 1
    pace_days = rng.lognormal(np.log(1.5), 1.2, n_tenures)[starts["tenure"]]
    elapsed = pd.Series(rng.exponential(pace_days)).groupby(starts["tenure"].to_numpy()).cumsum().to_numpy()
    walk = (rng.random(n_tenures)[starts["tenure"]] * length + elapsed) % (2 * length)
    day = np.minimum(walk, 2 * length - walk).astype(int)  # turns back at the ends of the split's time
    weekday = (day + begin + 6) % 7  # 2015-03-01 is a Sunday; Monday is 0
    waits = (weekday < 5) & (rng.random(len(day)) < 0.15) & (day + 5 - weekday < length)
    day += np.where(waits, 5 - weekday, 0)  # to Saturday
    hour = rng.choice(24, len(day), p=np.array(HOUR_WEIGHTS) / sum(HOUR_WEIGHTS))
    second = (begin + day) * DAY_S + hour * 3600 + rng.integers(0, 3600, len(day))
    within = pd.Series(rng.exponential(60, len(posts))).groupby(posts["album"]).cumsum()
    times = second[posts["album"]] + within.to_numpy().astype(int)
    last = np.where(posts["is_test"], N_DAYS, split_day) * DAY_S - 1
    return FIRST_DAY + np.minimum(times, last)


def _draw_concepts(posts: pd.DataFrame, taxonomy: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Concept codes in SMPD's own proportions, of its train and its test; users and albums stay with few of them.

    Posts are put on a line, near to others of their album and often of their user, and the line is cut into the
    concepts' quotas. So the proportions hold exactly and yet a user's posts resemble each other.
    """
    user_place = rng.random(posts["user"].max() + 1)
    n_albums = posts["album"].iloc[-1] + 1
    first = posts.drop_duplicates("album")["user"].to_numpy()
    wanders = rng.random(n_albums) < 0.4
    place = np.where(wanders, rng.random(n_albums), user_place[first] + 0.01 * rng.random(n_albums))
    train_count = taxonomy["train_count"].to_numpy(float)
    category_count = taxonomy.groupby("category")["train_count"].transform("sum").to_numpy()
    test_count = train_count * taxonomy["category_test_count"].to_numpy() / category_count
    concept = np.empty(len(posts), int)
    for is_test, weights in ((False, train_count), (True, test_count)):
        rows = np.flatnonzero(posts["is_test"] == is_test)
        line = rows[np.argsort(place[posts["album"].to_numpy()[rows]], kind="stable")]
        concept[line] = np.repeat(np.arange(len(taxonomy)), _quotas(weights, taxonomy, len(rows)))
    return concept


def _quotas(weights: np.ndarray, taxonomy: pd.DataFrame, total: int) -> np.ndarray:
    """Whole posts per concept summing to total; from about 800 posts on, every subcategory gets some."""
    names = taxonomy["category"] + "/" + taxonomy["subcategory"]
    of_subcategory = pd.Series(weights).groupby(names).transform("sum").to_numpy()
    least = min(4, total // 800) * weights.sum() / total
    raised = weights * np.maximum(of_subcategory, least) / of_subcategory
    return np.diff(np.round(np.cumsum(raised) / raised.sum() * total), prepend=0).astype(int)


def _draw_users(posts: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Users with what their profile shows: photo_count, is_pro, can_buy_pro, joined (s), has_profile and two draws.

    `profile_effect` is what the visible profile adds to popularity (0 where nothing is shown), `hidden_effect` what
    nothing shows.
    """
    n_users = posts["user"].max() + 1
    n_own = np.bincount(posts["user"], minlength=n_users)
    photo_count = n_own + np.round(rng.lognormal(5.8, 1.4, n_users)).astype(int)
    age_days = rng.lognormal(np.log(900), 0.8, n_users).clip(1, 4000)
    is_pro = rng.random(n_users) < 0.35
    has_profile = rng.random(n_users) < 0.95
    joined = FIRST_DAY - (age_days * DAY_S).astype(int)
    effect = 0.6 * _unit(np.log(photo_count)) + 0.6 * _unit(is_pro) + 0.4 * _unit(np.log(age_days))
    return pd.DataFrame({
        "photo_count": photo_count, "is_pro": is_pro, "can_buy_pro": ~is_pro & (rng.random(n_users) < 0.9),
        "joined": joined, "has_profile": has_profile, "profile_effect": effect * has_profile,
        "hidden_effect": rng.standard_normal(n_users),
    })  # fmt: skip


# ---------------------------------------------------------------------------------------------- pictures and popularity


def _draw_pictures(posts: pd.DataFrame, named_colour: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The four qualities (uniform in [0, 1]), the motif shown and the ground colour; kit.demo.pictures draws them."""
    n, n_motifs = len(posts), posts["subcategory"].max() + 1
    columns = {name: rng.random(n) for name in QUALITIES}
    other = (posts["subcategory"].to_numpy() + rng.integers(1, max(n_motifs, 2), n)) % n_motifs
    columns["motif"] = np.where(rng.random(n) < 0.75, posts["subcategory"], other)
    anything = rng.integers(0, len(COLOURS), n)
    columns["ground"] = np.where((named_colour >= 0) & (rng.random(n) < 0.6), named_colour, anything)
    return pd.DataFrame(columns)


def _popularity_parts(posts: pd.DataFrame, users: pd.DataFrame, texts: dict, rng: np.random.Generator) -> pd.DataFrame:
    """One column of unit variance per part of SHARES."""
    user, hour, weekday = posts["user"].to_numpy(), posts["time"] % DAY_S / 3600, (posts["time"] // DAY_S + 3) % 7
    named = texts["named_colour"]
    quality = sum(_unit(posts[name]) * (-1 if name == "clutter" else 1) for name in QUALITIES)
    raw = {
        "author_profile": users["profile_effect"].to_numpy()[user],
        "posting_hour": np.cos((hour - 20) * np.pi / 12),
        "weekday": weekday >= 5,
        "drift": -posts["time"],
        "category": rng.standard_normal(posts["category"].max() + 1)[posts["category"]],
        "subcategory": rng.standard_normal(posts["subcategory"].max() + 1)[posts["subcategory"]],
        "concept": rng.standard_normal(posts["concept"].max() + 1)[posts["concept"]],
        "tag_count": np.log1p(texts["n_tags"]),
        "tag_words": texts["tag_words"],
        "title_words": texts["title_words"],
        "title_length": np.minimum(texts["n_title"], 6),
        "image_quality": quality,
        "motif_agreement": posts["motif"] == posts["subcategory"],
        "colour_agreement": np.where(named < 0, 0, np.where(posts["ground"] == named, 1, -1)),
        "author_hidden": users["hidden_effect"].to_numpy()[user],
        "noise": rng.standard_normal(len(posts)),
    }
    return pd.DataFrame({name: _unit(values) for name, values in raw.items()})


def _labels_from_parts(parts: pd.DataFrame, is_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """score (the label expected from what can be seen) and label of each post."""
    weight = np.sqrt(pd.Series(SHARES))
    latent = (parts * weight).sum(axis=1).to_numpy()
    seen = (parts * weight).drop(columns=list(UNSEEABLE)).sum(axis=1).to_numpy()
    rank = np.searchsorted(np.sort(latent[~is_test]), latent)  # among the train posts, whose labels are published
    n_train = np.sum(~is_test)
    label = quantile_label(np.minimum(rank + 0.5, n_train - 0.5) / n_train)
    # The mean label over 32 equally likely amounts of the unseeable, read off this release's latent-to-label curve.
    unseeable = np.quantile((latent - seen), (np.arange(32) + 0.5) / 32)
    latent_sorted, label_sorted = np.sort(latent), np.sort(label)
    score = np.mean([np.interp(seen + amount, latent_sorted, label_sorted) for amount in unseeable], axis=0)
    return score, label


def _number_posts(posts: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Posts with their Pid, in official order: train by ascending Pid, test in the order of a shuffle of its albums.

    As in SMPD a Pid tells the album, three quarters of neighbours differ by one, but it does not tell the time.
    """
    place = rng.random(posts["album"].iloc[-1] + 1)[posts["album"]]
    line = np.argsort(place, kind="stable")
    pid = np.empty(len(posts), int)
    pid[line] = 1000 + np.cumsum(np.where(rng.random(len(posts)) < 0.88, 1, rng.integers(2, 9, len(posts))))
    posts["Pid"] = pid
    shuffle = rng.random(posts["album"].iloc[-1] + 1)[posts["album"]]
    key = np.where(posts["is_test"], len(posts) * 20 + shuffle, pid)
    return posts.iloc[np.argsort(key, kind="stable")].reset_index(drop=True)


def _unit(values) -> np.ndarray:
    """Values shifted and scaled to mean 0 and variance 1 (all 0 where they do not vary)."""
    values = np.asarray(values, float)
    values = values - values.mean()
    return values / (values.std() or 1.0)
