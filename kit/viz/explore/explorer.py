"""All questions about a run, as the methods of one object; every answer is a figure, a table or HTML cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kit.run.directory import Run
from kit.viz import residuals
from kit.viz.explore import alike, cards, errors, page, seen, towers
from kit.viz.explore import curves as curves_of
from kit.viz.explore.opened import Opened
from kit.viz.explore.what_if import WhatIf, what_if
from kit.viz.explore.why import Why, why


class Explorer:
    """A finished run to ask. Nothing in it changes; what an answer needs is read once and kept in memory.

    Args:
        run: a run that is open, or its directory.

    Raises:
        InputError: there is no such run, or 07 has not finished in it. So do all methods for a Pid that the run does not
            have, or a question it cannot answer, with the reason.
    """

    def __init__(self, run: Run | str | Path):
        self.opened = Opened(run if isinstance(run, Run) else Run.open(run))

    @property
    def pids(self) -> dict[str, str]:
        """Dated posts to begin with: "worst", "over", "under", "median" of the scored ones, and "test", the first test post."""
        dated = self.opened.posts["Postdate"].notna().to_numpy()
        rows = errors.scored(self.opened)
        rows = rows[dated[rows]] if dated[rows].any() else rows
        target, prediction = self.opened.target[rows], self.opened.prediction[rows]
        found = {which: rows[residuals.extremes(target, prediction, which, 1)[0]] for which in residuals.EXTREMES}
        test = np.flatnonzero((self.opened.posts["split"] == "test").to_numpy() & dated)
        found |= dict(zip(["test"], test, strict=False))
        return {which: self.opened.posts["Pid"].iloc[row] for which, row in found.items()}

    # --- one post ---------------------------------------------------------------------------------------------------

    def post(self, pid: str) -> page.Shown:
        """What is known of a post, what is predicted, and by whom."""
        return cards.post(self.opened, pid)

    def why(self, pid: str) -> Why:
        """What makes a post's prediction, by block, family and column."""
        return why(self.opened, pid)

    def neighbours(self, pid: str, by: str = "image", n: int = 12) -> page.Shown:
        """The posts most like a post by "image", "text", "clip_ft" or "tags", with their labels."""
        return alike.neighbours(self.opened, pid, by, n)

    def words(self, pid: str) -> seen.Words:
        """What CLIP_FT sees in a post: words, classes, prototypes, temperatures; only where 03 has run."""
        return seen.words(self.opened, pid)

    def what_if(self, pid: str, **change: Any) -> WhatIf:
        """What would be predicted at another hour (UTC), weekday (0 Monday), with other tags, title or image file."""
        return what_if(self.opened, pid, [change])

    def best_hour(self, pid: str, step: int = 2) -> tuple[Figure, WhatIf]:
        """The prediction over the hours of the day and the days of the week."""
        return curves_of.best_hour(self.opened, pid, step)

    def which_tags(self, pid: str, more: Sequence[str] = (), n: int = 6) -> page.Shown:
        """The prediction without each of the post's first n tags, and with each of some others (n that its like have)."""
        return curves_of.which_tags(self.opened, pid, more, n)

    # --- many posts -------------------------------------------------------------------------------------------------

    def search(self, text: str, n: int = 12) -> page.Shown:
        """The posts whose picture is most like a text; only where 02 has run."""
        return alike.search(self.opened, text, n)

    def gallery(self, which: str = "worst", category: str = "", n: int = 12) -> page.Shown:
        """The posts that are predicted "worst", "over" (too high), "under" (too low) or "median" (typically)."""
        return errors.gallery(self.opened, which, category, n)

    def explain(self, pids: Iterable[str]) -> str:
        """Cards of some posts with what makes their predictions, as a fragment of HTML."""
        return cards.explained(self.opened, list(pids))

    def residuals(self) -> Figure:
        """Where the fusion is off: by class, hour, age of the account, author."""
        rows = errors.scored(self.opened)
        return residuals.residuals(self.opened.posts.iloc[rows], self.opened.prediction[rows])

    def calibration(self) -> Figure:
        """Mean labels by what was predicted."""
        rows = errors.scored(self.opened)
        return residuals.calibration(self.opened.target[rows], self.opened.prediction[rows])

    def disagreement(self, n: int = 12) -> tuple[Figure, page.Shown]:
        """Whether posts on which the fused models differ are predicted worse, and those on which they differ most."""
        return errors.disagreement(self.opened, n)

    def compare(self, first: str, second: str, n: int = 12) -> page.Shown:
        """The posts that another feature set moves most."""
        return errors.compare(self.opened, first, second, n)

    def similar_pairs(self, least: float = alike.SAME, by: str = "image") -> pd.DataFrame:
        """How far labels of nearly equal pictures of one author lie apart, by category: a claim of the paper."""
        return alike.similar_pairs(self.opened, least, by)

    def close(self) -> None:
        """End the process that holds the text and image towers, where one was started."""
        towers.close()
