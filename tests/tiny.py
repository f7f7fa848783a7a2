"""A posts table of a few hundred made-up posts, for the tests of folds, features, boosting and blend."""

import numpy as np
import pandas as pd

from kit.run.block import Block

DAY = 86_400


def tiny_posts(n_train: int = 200, n_test: int = 60, seed: int = 0, n_authors: int = 40) -> pd.DataFrame:
    """The posts table of the kit, train then test; labels follow the author's talent, the tags and the hour."""
    rng = np.random.default_rng(seed)
    n = n_train + n_test
    author = rng.integers(n_authors, size=n)
    tags = [list(rng.choice(30, size=rng.integers(0, 6), replace=False)) for _ in range(n)]
    days = np.sort(rng.integers(0, 300, size=n))
    hour = rng.integers(0, 24, size=n)
    label = 6 + 0.15 * (author % 10) + np.array([sum(t < 8 for t in row) for row in tags]) + 0.05 * hour
    label = np.round(label + rng.normal(0, 0.3, size=n), 2)
    category = rng.integers(5, size=n)
    posts = pd.DataFrame({
        "Uid": [f"{a}@N{a % 7}" for a in author], "Pid": [str(1000 + i) for i in range(n)],
        "Category": pd.Categorical([f"c{c // 2}" for c in category]), "Subcategory": pd.Categorical([f"s{c}" for c in category]),
        "Concept": pd.Categorical([f"k{c}" for c in rng.integers(9, size=n)]),
        "Title": [" ".join(rng.choice(["Sunny", "dog", "2", "street", "night!"], size=rng.integers(0, 4))) for _ in range(n)],
        "Alltags": [" ".join(f"t{t}" for t in row) for row in tags],
        "Mediatype": pd.Categorical(["photo"] * n), "Mediastatus": pd.Categorical(["ready"] * n),
        "Postdate": pd.to_datetime(1_430_000_000 // DAY * DAY + days * DAY + hour * 3600, unit="s", utc=True).astype(
            "datetime64[s, UTC]"),
        "Latitude": np.nan, "Longitude": np.nan, "Geoaccuracy": 0.0, "Ispublic": 1.0,
        "photo_firstdate": pd.to_datetime(np.full(n, 1_300_000_000), unit="s", utc=True).astype("datetime64[s, UTC]"),
        "photo_firstdatetaken": pd.Series(pd.NaT, index=range(n), dtype="datetime64[s, UTC]"),
        "photo_count": (author * 7 % 11).astype(float), "ispro": 1.0, "canbuypro": np.nan, "timezone_offset": 60.0,
        "timezone_id": pd.Categorical([f"z{a % 3}" for a in author]),
        "user_description": pd.Categorical([f"I am {a % 5}, a maker of things" for a in author]),
        "location_description": pd.Categorical([""] * n), "Pathalias": "None", "image_path": "",
        "label": np.where(np.arange(n) < n_train, label, np.nan),
        "split": pd.Categorical(np.where(np.arange(n) < n_train, "train", "test"), ["train", "test"]),
    })  # fmt: skip
    return posts


def tiny_block(posts: pd.DataFrame, n_noise: int = 3) -> Block:
    """Two columns that tell about the label, one of codes, some of noise and one constant."""
    rng = np.random.default_rng(9)
    known = posts["Alltags"].str.count(r"\bt[0-7]\b").to_numpy()
    columns = {
        "known_tags": known,
        "hour": posts["Postdate"].dt.hour,
        "category_code": posts["Category"].cat.codes,
        "constant": np.ones(len(posts)),
    }
    columns |= {f"noise_{i}": rng.normal(size=len(posts)) for i in range(n_noise)}
    frame = pd.DataFrame(columns).astype(np.float32)
    return Block("tiny", frame.to_numpy(), list(frame), ["category_code"], "made up")
