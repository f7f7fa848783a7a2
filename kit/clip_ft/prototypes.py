"""Multimodal prototypes: which posts stand for a class (three-stage sampling), and the mean directions of these.

The paper (section 3.1) describes every subcategory by the mean image and the mean text of up to 256 of its posts,
chosen to spread over time, over third-level concepts and over users. Labels of popularity play no part here, and only
training posts are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import write_npy, write_table
from kit.base.shares import largest_remainder

NO_MONTH = "unknown"  # the interval of posts without a date


@dataclass(frozen=True)
class Prototypes:
    """What notebook 02 hands to 03.

    Attributes:
        classes: K subcategories, sorted; row i of every array below is class i.
        names: K class names as they stand in a prompt.
        visual: (K, d) float32, rows of norm 1.
        textual: (K, d) float32, rows of norm 1.
        shots: the posts behind them, as ``sample_shots`` returns them.
    """

    classes: list[str]
    names: list[str]
    visual: np.ndarray
    textual: np.ndarray
    shots: pd.DataFrame

    def save(self, folder: Path) -> list[Path]:
        """Write the prototypes into ``folder`` and say which files they are."""
        counts = self.shots["Subcategory"].value_counts().reindex(self.classes).to_numpy()
        classes = pd.DataFrame({"subcategory": self.classes, "prompt_name": self.names, "shots": counts})
        tables = {"classes.csv": classes, "shots.csv": self.shots}
        for name, values in {"visual.npy": self.visual, "textual.npy": self.textual}.items():
            write_npy(folder / name, values.astype(np.float32))
        for name, table in tables.items():
            write_table(folder / name, table)
        return [folder / name for name in ("visual.npy", "textual.npy", *tables)]


def load_prototypes(folder: Path) -> Prototypes:
    """The prototypes that ``Prototypes.save`` wrote.

    Raises:
        InputError: a file is missing, or the arrays do not fit the class list.
    """
    for name in ("classes.csv", "shots.csv", "visual.npy", "textual.npy"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: run 02_prototypes first")
    texts = {"dtype": str, "keep_default_na": False}
    classes = pd.read_csv(folder / "classes.csv", **texts)
    shots = pd.read_csv(folder / "shots.csv", **texts).astype({"row": np.int64})
    visual, textual = np.load(folder / "visual.npy"), np.load(folder / "textual.npy")
    if not len(classes) == len(visual) == len(textual):
        raise InputError(
            f"{folder}: {len(classes)} classes, but {len(visual)} visual and {len(textual)} textual prototypes; "
            "run 02_prototypes again"
        )
    return Prototypes(list(classes["subcategory"]), list(classes["prompt_name"]), visual, textual, shots)


# --- texts and names --------------------------------------------------------------------------------------------------


def class_codes(posts: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """(n_posts,) int64 class of each post; -1 where its subcategory is missing or has no prototype."""
    return pd.Index(classes).get_indexer(posts["Subcategory"].astype(str)).astype(np.int64)


# --- three-stage sampling ---------------------------------------------------------------------------------------------


def sample_shots(
    posts: pd.DataFrame, shots: int = 256, seed: int = 0, *, rows: np.ndarray | None = None, user_cap: int = 8
) -> pd.DataFrame:
    """The posts that represent each subcategory: n_i = min(shots, N_i), spread over months, concepts and users.

    1. time: every calendar month gets its share of the class's posts (largest remainder);
    2. concept: within a month the concepts take turns;
    3. user: within a concept the user with the fewest shots so far comes first, and nobody passes ``user_cap`` while a
       user below it is left in that month.

    Args:
        posts: the posts table.
        shots: largest number of posts per class.
        seed: decides between equals; the same seed gives the same shots.
        rows: (m,) positions that may be drawn, e.g. readable images of the fitting part; all training rows by default.
        user_cap: shots one user may give to one class before others are preferred.
    Returns:
        DataFrame row, Pid, Subcategory, month, concept, Uid; classes sorted, within a class in the order drawn.
    Source: paper section 3.1; method values in the issue on CLIP_FT.
    """
    if shots < 1:
        raise InputError(f"shots = {shots}: at least one post per class is needed")
    pool = _candidates(posts, rows)
    rng = np.random.default_rng(seed)
    drawn = [
        group.iloc[_draw_class(group, shots, user_cap, rng)] for _, group in pool.groupby("Subcategory", sort=True)
    ]
    return pd.concat(drawn, ignore_index=True)


def shot_coverage(
    posts: pd.DataFrame, shots: pd.DataFrame, seed: int = 0, *, rows: np.ndarray | None = None, n_draws: int = 5
) -> pd.DataFrame:
    """Months, concepts and users each class has, its shots reach, and as many random posts would reach.

    Returns:
        DataFrame indexed by subcategory: posts, shots, then for each of month, concept and user ``<what>s`` (in all
            posts), ``<what>s_shots`` and ``<what>s_random`` (mean of ``n_draws`` random draws of the same size), and
            ``top_user`` / ``top_user_random``, the largest share of a class's shots that one user gives.
    """
    pool = _candidates(posts, rows)
    n_shots = shots["Subcategory"].value_counts()
    rng = np.random.default_rng(seed)
    draws = [_random_shots(pool, n_shots, rng) for _ in range(n_draws)]
    table = pd.DataFrame({"posts": pool.groupby("Subcategory").size()})
    table["shots"] = n_shots.reindex(table.index, fill_value=0)
    for name, column in {"months": "month", "concepts": "concept", "users": "Uid"}.items():
        table[name] = pool.groupby("Subcategory")[column].nunique()
        table[f"{name}_shots"] = shots.groupby("Subcategory")[column].nunique()
        table[f"{name}_random"] = sum(draw.groupby("Subcategory")[column].nunique() for draw in draws) / n_draws
    table["top_user"] = _top_user_share(shots)
    table["top_user_random"] = sum(map(_top_user_share, draws)) / n_draws
    return table


# --- prototypes -------------------------------------------------------------------------------------------------------


def build_prototypes(embeddings: np.ndarray, shots: pd.DataFrame, usable: np.ndarray | None = None) -> np.ndarray:
    """The mean direction of each class's shots: every feature brought to norm 1, averaged, brought to norm 1 again.

    Args:
        embeddings: (n_posts, d) features; row ``shots.row`` belongs to the shot.
        shots: as ``sample_shots`` returns them.
        usable: (n_posts,) bool, false where a feature stands for nothing (unreadable image). A class without a usable
            shot gets the mean direction of all usable shots, which says nothing about it.
    Returns:
        (K, d) float32, rows of norm 1, classes sorted by name.
    """
    codes, classes = pd.factorize(shots["Subcategory"].astype(str), sort=True)
    return mean_directions(embeddings, shots["row"].to_numpy(), codes, len(classes), usable)


def mean_directions(
    embeddings: np.ndarray, rows: np.ndarray, codes: np.ndarray, n_classes: int, usable: np.ndarray | None = None
) -> np.ndarray:
    """(n_classes, d) float32 rows of norm 1: the mean direction of ``embeddings[rows]`` per class code."""
    if usable is not None:
        keep = np.asarray(usable)[rows]
        rows, codes = rows[keep], codes[keep]
    if len(rows) == 0:
        raise InputError("no usable post is left to build a prototype from: check tables/bad_images.csv")
    features = _unit_rows(np.asarray(embeddings[rows], dtype=np.float32))
    sums = np.zeros((n_classes, features.shape[1]), np.float32)
    np.add.at(sums, codes, features)
    sums[np.bincount(codes, minlength=n_classes) == 0] = features.sum(axis=0)
    return _unit_rows(sums)


def similar_classes(prototypes: Prototypes) -> pd.DataFrame:
    """Per class the class that looks most like it and the one that reads most like it; the most alike first.

    Returns:
        DataFrame subcategory, looks_like, image_cosine, reads_like, text_cosine.
    """
    classes = np.array(prototypes.classes)
    table = pd.DataFrame({"subcategory": classes})
    for name, kind, values in (("looks", "image", prototypes.visual), ("reads", "text", prototypes.textual)):
        cosine = values @ values.T - 2 * np.eye(len(classes), dtype=np.float32)  # a class is not its own neighbour
        table[f"{name}_like"], table[f"{kind}_cosine"] = classes[cosine.argmax(axis=1)], cosine.max(axis=1)
    return table.sort_values("image_cosine", ascending=False, ignore_index=True)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _candidates(posts: pd.DataFrame, rows: np.ndarray | None) -> pd.DataFrame:
    """One line per post that may be drawn: row, Pid, Subcategory, month, concept, Uid as plain strings."""
    is_train = (posts["split"] == "train").to_numpy()
    rows = np.flatnonzero(is_train) if rows is None else np.asarray(rows, dtype=np.int64)
    if not is_train[rows].all():
        raise InputError("prototypes are built from training posts only, but some of the given rows are test posts")
    part = posts.iloc[rows]
    dates = part["Postdate"].dt.tz_localize(None).dt.strftime("%Y-%m").fillna(NO_MONTH)
    pool = pd.DataFrame({"row": rows, "Pid": part["Pid"].astype(str).to_numpy()})
    pool["Subcategory"] = part["Subcategory"].astype(str).to_numpy()
    pool["month"] = dates.to_numpy()
    pool["concept"] = part["Concept"].astype(str).to_numpy()
    pool["Uid"] = part["Uid"].astype(str).to_numpy()
    pool = pool[pool["Subcategory"] != ""].reset_index(drop=True)
    if pool.empty:
        raise InputError("no training post has a subcategory: prototypes need that field of the category file")
    return pool


def _draw_class(group: pd.DataFrame, shots: int, user_cap: int, rng: np.random.Generator) -> np.ndarray:
    """Positions drawn from one class, month by month."""
    shuffled = rng.permutation(len(group))
    if len(group) <= shots:
        return np.sort(shuffled)
    month = pd.factorize(group["month"], sort=True)[0][shuffled]
    concept = pd.factorize(group["concept"])[0][shuffled]
    user = pd.factorize(group["Uid"])[0][shuffled]
    taken_by_user = np.zeros(user.max() + 1, dtype=np.int64)
    drawn = []
    for interval, quota in enumerate(largest_remainder(np.bincount(month), shots)):
        here = np.flatnonzero(month == interval)
        drawn.append(here[_draw_month(concept[here], user[here], quota, user_cap, taken_by_user)])
    return shuffled[np.concatenate(drawn)]


def _draw_month(
    concept: np.ndarray, user: np.ndarray, quota: int, user_cap: int, taken_by_user: np.ndarray
) -> np.ndarray:
    """``quota`` positions: users below the cap first, then the concept with the fewest shots, then the rarest user."""
    taken_by_concept = np.zeros(concept.max() + 1, dtype=np.int64)
    free = np.ones(len(concept), dtype=bool)
    scale = len(taken_by_user) + quota + user_cap + int(taken_by_user.max()) + 1  # above any count of a user's shots
    picks = np.empty(quota, dtype=np.int64)
    for i in range(quota):
        by_user = taken_by_user[user]
        key = ((by_user >= user_cap) * scale + taken_by_concept[concept]) * scale + by_user
        picks[i] = np.where(free, key, np.iinfo(np.int64).max).argmin()  # the posts are shuffled: ties fall at random
        free[picks[i]] = False
        taken_by_concept[concept[picks[i]]] += 1
        taken_by_user[user[picks[i]]] += 1
    return picks


def _random_shots(pool: pd.DataFrame, n_shots: pd.Series, rng: np.random.Generator) -> pd.DataFrame:
    """As many random posts of each class as it has shots."""
    shuffled = pool.iloc[rng.permutation(len(pool))]
    place = shuffled.groupby("Subcategory").cumcount()
    return shuffled[place < shuffled["Subcategory"].map(n_shots).fillna(0)]


def _top_user_share(shots: pd.DataFrame) -> pd.Series:
    per_user = shots.groupby(["Subcategory", "Uid"]).size()
    return per_user.groupby("Subcategory").max() / per_user.groupby("Subcategory").sum()


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def class_order(posts: pd.DataFrame, classes: list[str]) -> list[int]:
    """Positions of the classes such that those of one category stand together."""
    category = posts.drop_duplicates("Subcategory").set_index("Subcategory")["Category"].astype(str)
    return sorted(range(len(classes)), key=lambda i: (category[classes[i]], classes[i]))
