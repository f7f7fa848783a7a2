"""Folds like the test part, and which scheme decides: from authors and dates alone, never from labels of test posts.

A model is chosen well on posts that are as hard as those it is chosen for. Where most test posts are by authors of the train
part, folds by author ask for something else; where few are, folds by date alone know too many authors. `matched` folds run
forward in time like `time`, but in each some whole authors are hidden, their earlier posts withheld from teaching, until
the share of scored posts by known authors, and how many earlier posts those have, are those of the test part; and the
newest posts before a fold are withheld until its posts are as far from what is taught as the test posts are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.paths import resolve
from kit.run.folds import SCHEMES, TRAIN_ONLY, Folds, make_folds, own_folds, usual_folds

FEW_KNOWN = 0.3  # share of test posts by known authors below which, without drift, folds by author decide
DRIFT = 0.2  # standard deviations between the median labels of the newest fifth and the rest that are a drift
AFTER = 0.5  # of the test posts must be later than nearly all train posts for the test part to be the later one
BOUNDS = (1, 2, 3, 5, 9, 17, 33)  # earlier posts of an author: posts are alike within these steps
LEAST_KEPT = 0.5  # of a fold's posts stay scored, and of its training side teaching, whatever would match better


@dataclass(frozen=True)
class Likeness:
    """What makes scored posts easy or hard: how much is known when they appear.

    Attributes:
        known: share of the posts whose author is known.
        earlier: (n,) number of taught posts of the author, for each post with a known author.
        lag_days: median days from the newest taught post to a scored post; NaN without dates.
    """

    known: float
    earlier: np.ndarray
    lag_days: float


def likeness(posts: pd.DataFrame, taught: np.ndarray, scored: np.ndarray) -> Likeness:
    """How much the posts `taught` (row positions) say about the authors and the time of the posts `scored`."""
    n_earlier = posts["Uid"].iloc[scored].map(posts["Uid"].iloc[taught].value_counts()).fillna(0).to_numpy()
    dates = posts["Postdate"].iloc[scored].dropna()
    lag = (dates.median() - posts["Postdate"].iloc[taught].max()) / pd.Timedelta(days=1) if len(dates) else np.nan
    return Likeness(float((n_earlier > 0).sum() / max(1, len(scored))), n_earlier[n_earlier > 0], float(lag))


def cut(posts: pd.DataFrame, scheme: str, n_folds: int = 5, seed: int = 0, purge_days: float = 0.0) -> Folds:
    """Folds of any scheme.

    Args:
        posts: the posts table; `split`, `Uid` and `Postdate` are read.
        scheme: "matched" as in the module's docstring; "user", "time" and "plain" as in `folds.make_folds`.
        n_folds: as for `folds.make_folds`.
        seed: of shuffled authors and posts.
        purge_days: posts so close before the first post of a fold do not teach it; for folds that run forward in time.

    Raises:
        InputError: too few posts, authors or dates, or no test part to match.
    """
    fold = make_folds(posts, n_folds, "time" if scheme == "matched" else scheme, seed)
    folds = Folds(scheme, fold, np.zeros((n_folds, len(posts)), dtype=bool))
    if scheme in ("time", "matched"):
        _withhold_newest(folds, posts, purge_days)
    if scheme == "matched":
        _match(folds, posts, np.random.default_rng(seed))
    if bare := [k for k in range(n_folds) if not len(folds.rows(k)[0])]:
        raise InputError(f"scheme {scheme!r} with purge_days={purge_days:g}: nothing is left to teach fold {bare[0]}")
    return folds


def all_folds(
    posts: pd.DataFrame, n_folds: int = 0, seed: int = 0, purge_days: float = 0.0, wanted: str = "auto"
) -> tuple[dict[str, Folds], pd.DataFrame]:
    """Folds of every scheme that these posts allow, and a table that says which one decides and why.

    Args:
        posts, seed, purge_days: as for `cut`.
        n_folds: 0 for `folds.usual_folds`.
        wanted: the scheme that decides; "auto": see `choose_scheme`; "file:PATH": folds of your own, see `own_folds`.

    Returns:
        table: scheme, decides, why, n (scored posts), known (their share by known authors), earlier (median number of
            taught posts of those), lag_days; a row for the test part, one for each scheme.

    Raises:
        InputError: the wanted scheme is unknown, or its folds cannot be made.
    """
    cuts, why = {}, {}
    n_folds = n_folds or usual_folds((posts["split"] == "train").sum())
    for scheme in (*SCHEMES, "matched"):
        try:
            cuts[scheme] = cut(posts, scheme, n_folds, seed, purge_days)
        except InputError as error:
            why[scheme] = f"not made: {error}"
    if wanted.startswith("file:"):
        cuts["file"] = own_folds(resolve(wanted.removeprefix("file:")), posts)
    scheme, reason = choose_scheme(posts) if wanted == "auto" else (wanted.partition(":")[0], "set by hand")
    if scheme not in cuts and wanted == "auto" and cuts:
        scheme, reason = next(iter(cuts)), f"{scheme} would be the choice, but is {why[scheme]}"
    if scheme not in cuts:
        known = "unknown; choose auto, file:PATH or " + ", ".join(cuts)
        raise InputError(f"folds by {wanted!r}: {why.get(scheme, known)}")
    return cuts, _scheme_table(posts, cuts, why | {scheme: reason}, scheme)


def _scheme_table(posts: pd.DataFrame, cuts: dict[str, Folds], why: dict[str, str], deciding: str) -> pd.DataFrame:
    sides = {name: [cuts[name].rows(k) for k in range(len(cuts[name].withheld))] for name in cuts}
    train, test = (np.flatnonzero(posts["split"] == part) for part in ("train", "test"))
    sides = ({"test part": [(train, test)]} if len(test) else {}) | sides
    rows = []
    for name in dict.fromkeys([*sides, *why]):
        found = [likeness(posts, taught, scored) for taught, scored in sides.get(name, [])]
        n = [len(scored) for _, scored in sides.get(name, [])]
        earlier = np.concatenate([like.earlier for like in found] or [[]])
        rows.append({
            "scheme": name, "decides": name == deciding, "why": why.get(name, ""), "n": sum(n),
            "known": np.average([like.known for like in found], weights=n) if n else np.nan,
            "earlier": np.median(earlier) if len(earlier) else np.nan,
            "lag_days": np.mean([like.lag_days for like in found]) if n else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def choose_scheme(posts: pd.DataFrame) -> tuple[str, str]:
    """The scheme whose folds are most like the test part, and the reason in one sentence.

    Train labels are read for their drift over time alone.
    """
    train, test = (np.flatnonzero(posts["split"] == part) for part in ("train", "test"))
    if not len(test):
        return "user", "there is no test part to match; folds by author are the strict choice for new authors"
    like, date = likeness(posts, train, test), posts["Postdate"]
    told = f"{like.known:.0%} of the test posts are by authors of the train part"
    later = (date.iloc[test] >= date.iloc[train].quantile(0.99)).mean()
    if not later > AFTER:
        scheme = "plain" if like.known >= 0.5 else "user"
        undated = date.iloc[test].isna().all() or date.iloc[train].isna().all()
        when = "there are no dates to compare" if undated else f"only {later:.0%} of them are later than the train part"
        return scheme, f"{told}, and {when}"
    drift = _drift(posts.iloc[train])
    moved = f"the label of the newest fifth lies {drift:+.2f} sd off the rest"
    if like.known < FEW_KNOWN and not abs(drift) > DRIFT:
        return "user", f"{told}, and {moved}"
    return "matched", f"{told}, all of them later, and {moved}"


def _drift(train: pd.DataFrame) -> float:
    """Median label of the newest fifth less that of the rest, in standard deviations; 0 without dates or spread."""
    newest = train["Postdate"] >= train["Postdate"].quantile(0.8)
    spread = train["label"].std()
    if not newest.any() or newest.all() or not spread > 0:
        return 0.0
    return float((train["label"][newest].median() - train["label"][~newest].median()) / spread)


def _withhold_newest(folds: Folds, posts: pd.DataFrame, purge_days: float) -> None:
    """Withhold from each fold the posts of the last days before it, so that its lag is that of the test part."""
    date = posts["Postdate"]
    train = (posts["split"] == "train").to_numpy()
    test_lag = (
        likeness(posts, np.flatnonzero(train), np.flatnonzero(~train)).lag_days if folds.scheme == "matched" else 0
    )
    for k, withheld in enumerate(folds.withheld):
        scored, side = date[folds.fold == k], train & (folds.fold < k)
        until = min(
            scored.min() - pd.Timedelta(days=purge_days),
            scored.median() - pd.Timedelta(days=max(0.0, np.nan_to_num(test_lag))),
        )
        if folds.scheme == "matched":
            until = max(until, min(date[side].quantile(LEAST_KEPT), scored.min() - pd.Timedelta(days=purge_days)))
        withheld |= side & (date >= until).to_numpy()


def _match(folds: Folds, posts: pd.DataFrame, rng: np.random.Generator) -> None:
    """Hide authors from each fold, or leave posts of unknown ones unscored, until it is like the test part."""
    author, names = pd.factorize(posts["Uid"])
    train, test = (np.flatnonzero(posts["split"] == part) for part in ("train", "test"))
    if not len(test):
        raise InputError("scheme 'matched' needs a test part to match; choose user, time or plain")
    like = likeness(posts, train, test)
    block = folds.fold.copy()
    for k, withheld in enumerate(folds.withheld):
        teaches = (block < k) & ~withheld
        teaches[test] = False
        n_taught = np.bincount(author[teaches], minlength=len(names))
        n_scored = np.bincount(author[block == k], minlength=len(names))
        hidden, unscored = _like(like, n_taught, n_scored, rng)
        withheld |= teaches & hidden[author]
        left_out = (block == k) & unscored[author]
        folds.fold[left_out] = TRAIN_ONLY
        folds.withheld[: k + 1, left_out] = True


def _like(like: Likeness, n_taught: np.ndarray, n_scored: np.ndarray, rng: np.random.Generator) -> tuple:
    """(n_authors,) bool each: authors to hide from a fold, and authors whose posts are not scored in it.

    Args:
        like: what the fold should be like.
        n_taught: (n_authors,) taught posts of each author.
        n_scored: (n_authors,) posts of each author in the fold.
    """
    here = rng.permutation(np.flatnonzero(n_scored))
    known, strangers = here[n_taught[here] > 0], here[n_taught[here] == 0]
    n_known, n_all = n_scored[known].sum(), n_scored.sum()
    hidden, unscored = np.zeros((2, len(n_taught)), dtype=bool)
    wanted = like.known * n_all
    if n_known < wanted:  # too few authors are known: leave posts of strangers out
        n_strangers = n_known * (1 - like.known) / like.known
        kept = _draw(strangers, n_scored, max(n_strangers, LEAST_KEPT * n_all - n_known))
        unscored[np.setdiff1d(strangers, kept)] = True
        return hidden, unscored
    hidden[known] = True
    step = np.digitize(n_taught, BOUNDS)
    share = np.bincount(np.digitize(like.earlier, BOUNDS), minlength=len(BOUNDS) + 1) / max(1, len(like.earlier))
    for s in np.flatnonzero(share):
        hidden[_draw(known[step[known] == s], n_scored, share[s] * wanted)] = False
    rest = known[hidden[known]]  # steps with too few authors: those nearest to what is usual
    usual = np.median(np.digitize(like.earlier, BOUNDS)) if len(like.earlier) else 0.0
    rest = rest[np.argsort(np.abs(step[rest] - usual), kind="stable")]
    hidden[_draw(rest, n_scored, wanted - n_scored[known[~hidden[known]]].sum())] = False
    return hidden, unscored


def _draw(authors: np.ndarray, n_posts: np.ndarray, wanted: float) -> np.ndarray:
    """Of the authors, in their order, those that bring the number of their posts nearest to what is wanted."""
    taken, total = [], 0
    for author in authors:
        if total + n_posts[author] / 2 <= wanted:
            taken.append(author)
            total += n_posts[author]
    return np.asarray(taken, dtype=np.intp)
