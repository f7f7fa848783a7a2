"""Six feature families as people write them first: groupby, apply, and a look back over the author's posts for each post.

Each function gives a frame whose rows are the posts, with the columns of the family of the same name in ``kit.features``, and
says no more about them than that. All posts have a date.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

HOUR_S, DAY_S = 3_600, 86_400
STATISTICS = ["mean", "std", "min", "max", "skew"]


def counts(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``counts``."""
    table = posts.assign(day=posts["Postdate"].dt.floor("D"))
    keys = {"author": ["Uid"], "author_subcategory": ["Uid", "Subcategory"], "author_title": ["Uid", "Title"],
            "category": ["Category"], "subcategory": ["Subcategory"], "concept": ["Concept"], "day": ["day"],
            "author_day": ["Uid", "day"]}  # fmt: skip
    frame = pd.DataFrame(index=posts.index)
    for name, columns in keys.items():
        frame[f"log_n_{name}"] = np.log(table.groupby(columns, observed=True)["Pid"].transform("size"))
    for column in ("Category", "Subcategory", "Concept"):
        frame[f"author_distinct_{column}"] = table.groupby("Uid")[column].transform("nunique")
    return frame


def tag_frequency(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``tag_frequency``."""
    dates = posts["Postdate"].dt.tz_localize(None)
    table = posts.assign(tag=posts["Alltags"].str.lower().str.split(), row=range(len(posts)))
    table = table.assign(week=dates.dt.to_period("W"), month=dates.dt.to_period("M"))
    uses = table.explode("tag").dropna(subset="tag").drop_duplicates(["row", "tag"])
    n_posts = uses.groupby("tag")["row"].transform("size")
    uses["posts"], uses["alone"], uses["rare"] = np.log1p(n_posts), n_posts == 1, n_posts <= 5
    uses["authors"] = np.log1p(uses.groupby("tag")["Uid"].transform("nunique"))
    by_post = uses.groupby("row")
    frames = [
        by_post[name].agg(["mean", "max", "min", "std"]).add_prefix(f"tag_{name}_") for name in ("posts", "authors")
    ]
    frames.append(by_post[["alone", "rare"]].mean().add_prefix("tag_share_"))
    frames += [_tag_trend(table, uses, name) for name in ("week", "month")]
    return pd.concat(frames, axis=1).reindex(range(len(posts)))


def _tag_trend(table: pd.DataFrame, uses: pd.DataFrame, name: str) -> pd.DataFrame:
    n_posts = table.groupby(name).size()
    n_uses = uses.groupby([name, "tag"]).size().rename("n").reset_index()
    before = n_uses.assign(**{name: n_uses[name] + 1})[[name, "tag", "n"]]
    n_uses = n_uses.merge(before, on=[name, "tag"], how="left", suffixes=("", "_before")).fillna({"n_before": 0})
    n_uses["share"] = np.log((n_uses["n"] + 1) / (n_uses[name].map(n_posts) + 1))
    n_uses["trend"] = n_uses["share"] - np.log((n_uses["n_before"] + 1) / ((n_uses[name] - 1).map(n_posts) + 1))
    place = n_uses.groupby(name)["n"].rank(method="min", ascending=False)
    n_uses["rank"], n_uses["top"] = np.log(place), place <= 100
    by_post = uses[["row", name, "tag"]].merge(n_uses, on=[name, "tag"]).groupby("row")
    stats = by_post[["share", "rank", "trend"]].agg(["mean", "max"])
    stats.columns = [f"tag_{name}_{what}_{statistic}" for what, statistic in stats.columns]
    return stats.assign(**{f"tag_{name}_top": by_post["top"].mean()})


def posting_rhythm(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``posting_rhythm``."""

    def of_author(group: pd.DataFrame) -> pd.DataFrame:
        date = group["Postdate"].dt.tz_localize(None).sort_values()
        gap = date.diff().dt.total_seconds()
        logs = np.log1p(gap.dropna() / HOUR_S)
        columns = {f"author_log_gap_{name}": logs.agg(name) for name in STATISTICS}
        for name, period in {"day": "D", "week": "W", "month": "M"}.items():
            columns[f"author_posts_per_{name}"] = len(date) / date.dt.to_period(period).nunique()
        angle = 2 * np.pi * (date - date.dt.floor("D")).dt.total_seconds() / DAY_S
        columns["author_hour_focus"] = np.hypot(np.cos(angle).mean(), np.sin(angle).mean())
        columns["author_log_days"] = np.log1p((date.max() - date.min()).total_seconds() / DAY_S)
        burst = date.groupby((gap > HOUR_S).cumsum())
        columns["log_burst_size"] = np.log(burst.transform("size"))
        columns["log_burst_place"] = np.log(burst.rank(method="min"))
        return pd.DataFrame(columns, index=group.index)

    return posts.groupby("Uid", group_keys=False)[["Postdate"]].apply(of_author).sort_index()


def author_history(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``author_history``."""

    def of_author(group: pd.DataFrame) -> pd.DataFrame:
        seconds = group["seconds"].to_numpy()
        rows = []
        for now in seconds:
            past = seconds[seconds < now]
            row = {"log_author_earlier_posts": np.log1p(len(past))}
            row["log_author_days_since_last"] = np.log1p((now - past.max()) / DAY_S) if len(past) else np.nan
            row["log_author_days_since_first"] = np.log1p((now - past.min()) / DAY_S) if len(past) else np.nan
            for days in (1, 7, 30):
                row[f"log_author_posts_in_{days}_days"] = np.log1p((past >= now - days * DAY_S).sum())
            rows.append(row)
        return pd.DataFrame(rows, index=group.index)

    table = posts.assign(seconds=posts["Postdate"].dt.as_unit("s").astype("int64"))
    return table.groupby("Uid", group_keys=False)[["seconds"]].apply(of_author).sort_index()


def albums(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``albums``."""
    title = posts["Title"].str.strip()
    titled = posts.assign(title=title.where(title != ""))
    n_albums = titled.groupby("Uid")["title"].transform("nunique")
    n_posts = titled.groupby("Uid")["Pid"].transform("size")
    return pd.DataFrame(
        {
            "author_log_albums": np.log1p(n_albums),
            "author_posts_per_album": (n_posts / n_albums).where(n_albums > 0),
            "log_album_size": np.log(titled.groupby(["Uid", "title"])["Pid"].transform("size")),
        }
    )


def windows(posts: pd.DataFrame) -> pd.DataFrame:
    """Family ``windows``."""
    date = posts["Postdate"].dt
    own = pd.DataFrame(
        {
            "title_chars": posts["Title"].str.len(),
            "title_words": posts["Title"].str.split().str.len(),
            "tag_chars": posts["Alltags"].str.len(),
            "n_tags": [len(set(tags.split())) for tags in posts["Alltags"].str.lower()],
            "minute": date.hour * 60 + date.minute,
            "weekday": date.weekday,
            "has_geo": (posts["Geoaccuracy"].fillna(0) > 0).astype(int),
        }
    )

    def of_author(group: pd.DataFrame) -> pd.DataFrame:
        seconds, values = group["seconds"].to_numpy(), group[list(own)].to_numpy(float)
        rows = []
        for now, value in zip(seconds, values, strict=True):
            instants, row = np.unique(seconds[seconds < now]), []
            for length in (3, 5, len(seconds) + 1):
                past = values[np.isin(seconds, instants[-(length - 1) :])]
                off = value - past.mean(axis=0) if len(past) else np.full(len(value), np.nan)
                row += [*(past.sum(axis=0) + value) / (len(past) + 1), *off]
            rows.append(row)
        return pd.DataFrame(rows, index=group.index)

    table = own.assign(Uid=posts["Uid"], seconds=date.as_unit("s").astype("int64"))
    frame = table.groupby("Uid", group_keys=False)[["seconds", *own]].apply(of_author).sort_index()
    kinds = [(window, what) for window in ("3", "5", "all") for what in ("mean", "off")]
    return frame.set_axis([f"{name}_last_{window}_{what}" for window, what in kinds for name in own], axis=1)
