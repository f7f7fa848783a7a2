"""Block ``external``: statistics of authors that were crawled beyond the release."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.features.families import varies
from kit.release.external import EXTERNAL
from kit.run.block import Block

CRAWLED = "user statistics crawled from public profiles (user_additional.csv)"


def external_block(posts: pd.DataFrame) -> Block | None:
    """Block "external": collected author statistics, their logarithms and ratios; None without user_additional columns.

    A row that is all zero means "author not found" and becomes NaN.

    Source: columns of HyFea's `user_additional.csv`; ratios of Alonso's 2026 code.
    """
    if not set(EXTERNAL) <= set(posts.columns):
        return None
    raw = posts[list(EXTERNAL)].astype(np.float64)
    raw = raw.where((raw.fillna(0) != 0).any(axis=1))
    frame = np.log1p(raw.clip(lower=0)).add_prefix("log_")
    per_photo = raw.div(raw["photoCount"] + 1, axis=0)
    frame = frame.join(np.log1p(per_photo.drop(columns="photoCount").clip(lower=0)).add_suffix("_per_photo"))
    frame = frame.join(_cross_ratios(raw))
    frame["external_found"] = raw.notna().any(axis=1)
    columns = [name for name, column in frame.items() if varies(column.to_numpy(np.float32))]
    values = frame[columns].to_numpy(np.float32)
    return Block("external", values, columns, [], "user_additional.csv", CRAWLED) if columns else None


def _cross_ratios(raw: pd.DataFrame) -> pd.DataFrame:
    """Ratios across author statistics, as in Alonso's 2026 code; each denominator is one more than its count."""
    faves_per_view = raw["totalFaves"] / (raw["totalViews"] + 1)
    follow_ratio = raw["followerCount"] / (raw["followingCount"] + 1)
    engagement = raw["totalFaves"] / (raw["followerCount"] + 1)
    ratios = {
        "faves_per_view": faves_per_view,
        "follower_following_ratio": follow_ratio,
        "social_engagement": engagement,
        "content_popularity": raw["totalViews"] * faves_per_view,
        "social_influence": raw["followerCount"] * faves_per_view,
        "interaction_density": (raw["totalTags"] + raw["totalInGroup"]) / (raw["photoCount"] + 1),
        "growth_potential": follow_ratio * engagement,
    }
    return pd.DataFrame({name: np.log1p(values.clip(lower=0)) for name, values in ratios.items()})
