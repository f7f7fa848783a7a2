"""What posts share with train posts: against a slow re-writing."""

import numpy as np
import pytest

from kit.base.metrics import mae, src
from kit.evaluation import shared_posts
from kit.evaluation.shared_posts import shared_table
from tests.tiny import tiny_posts

POSTS = tiny_posts(120, 50, n_authors=20)
PICTURES = np.random.default_rng(0).integers(-1, 40, size=len(POSTS))
LABEL, UID, TRAIN = POSTS["label"].to_numpy(), POSTS["Uid"].to_numpy(), (POSTS["split"] == "train").to_numpy()
TITLE = POSTS["Title"].str.strip().str.lower().to_numpy()


@pytest.mark.parametrize(("row", "alike", "others"), [
    ("author", lambda i, j: UID[i] == UID[j], False),
    ("title", lambda i, j: TITLE[i] == TITLE[j] != "", False),
    ("title, other author", lambda i, j: TITLE[i] == TITLE[j] != "", True),
    ("picture that looks the same", lambda i, j: PICTURES[i] == PICTURES[j] >= 0, False),
    ("picture that looks the same, other author", lambda i, j: PICTURES[i] == PICTURES[j] >= 0, True),
])  # fmt: skip
def test_partners_by_hand(row, alike, others, monkeypatch):
    monkeypatch.setattr(shared_posts, "picture_groups", lambda paths: PICTURES)
    found = shared_table(POSTS).set_index("shared").loc[row]
    partners = [
        [j for j in np.flatnonzero(TRAIN) if j != i and alike(i, j) and not (others and UID[i] == UID[j])]
        for i in range(len(POSTS))
    ]
    has = np.array([len(one) > 0 for one in partners])
    assert 0 < (has & TRAIN).sum() and found["train"] == (has & TRAIN).sum() and found["test"] == (has & ~TRAIN).sum()
    assert found["test (%)"] == pytest.approx(100 * has[~TRAIN].mean())
    said = np.array([LABEL[partners[i]].mean().round(9) for i in np.flatnonzero(has & TRAIN)])  # so that ties are ties
    own = LABEL[has & TRAIN]
    assert found["mae"] == pytest.approx(mae(own, said)) and found["src"] == pytest.approx(src(own, said))
    assert found["mae_median"] == pytest.approx(np.abs(own - np.median(LABEL[TRAIN])).mean())


def test_labels_of_test_posts_are_never_read_and_nothing_shared_is_no_error():
    alone = POSTS.assign(Uid=POSTS["Pid"], Title="")
    table = shared_table(alone)  # which have no pictures
    assert (table[["test", "train"]] == 0).all(axis=None) and table["mae"].isna().all()
    known = POSTS.assign(label=np.where(TRAIN, LABEL, 99.0))
    assert shared_table(known).equals(shared_table(POSTS)) and len(shared_table(POSTS, pictures=False)) == 3
