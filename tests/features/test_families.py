"""How families become a block: one at a time in memory, the values on the disk."""

import weakref

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.features import statistic, words
from kit.features.families import CONSTANT, OUTSIDE, Context, block_of
from kit.run import matrix
from tests.tiny import tiny_posts

POSTS = tiny_posts(150, 40)
CONTEXT = Context(POSTS, svd_dim=4, n_top_tags=10, seed=0)


def test_a_frame_is_gone_before_the_next_one_is_made(tmp_path):
    living = []

    def family(context: Context) -> pd.DataFrame:
        assert not any(frame() is not None for frame in living), "two families at a time"
        frame = pd.DataFrame({f"column_{len(living)}": np.arange(len(context.posts)) % 3.0})
        living.append(weakref.ref(frame))
        return frame

    block = block_of("any", dict.fromkeys("abc", family), None, CONTEXT, folder=tmp_path)
    assert len(living) == 3 and (block.values == np.arange(len(POSTS))[:, None] % 3).all()
    assert isinstance(block.values.base, np.memmap) and not list(tmp_path.iterdir()), "a file without a name"


def test_a_block_holds_what_its_families_make(monkeypatch):
    monkeypatch.setattr(matrix, "PIECE_MB", 0.01)  # many pieces
    block = block_of("statistic", statistic.FAMILIES, None, CONTEXT)
    made = pd.concat([family(CONTEXT) for family in statistic.FAMILIES.values()], axis=1).astype(np.float32)
    assert block.columns == [name for name in made if name in set(block.columns)]
    assert set(made) == {*block.columns, *block.dropped} and set(block.dropped.values()) <= {CONSTANT, OUTSIDE}
    np.testing.assert_array_equal(block.values, made[block.columns])


def test_a_full_disk_is_told(monkeypatch):
    def full(self, rows):
        with self._told():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(matrix.Scratch, "append", full)
    with pytest.raises(InputError, match="make room"):
        block_of("statistic", statistic.FAMILIES, ["geo", "counts"], CONTEXT)


@pytest.mark.parametrize("n_known", [None, 40])
def test_tags_split_in_pieces_get_the_same_codes(monkeypatch, n_known):
    whole = words.long_tags(POSTS["Alltags"], n_known)
    used = POSTS["Alltags"].str.lower().str.split().explode().dropna()
    known = used[used.index < (len(POSTS) if n_known is None else n_known)].value_counts()
    order = sorted(known.index, key=lambda tag: (-known[tag], tag))
    order += list(dict.fromkeys(tag for tag in used if tag not in known.index))
    pairs = list(dict.fromkeys(zip(used.index, used.map(order.index), strict=True)))
    assert list(whole.itertuples(index=False, name=None)) == pairs
    monkeypatch.setattr(words, "SPLIT_POSTS", 7)
    pd.testing.assert_frame_equal(words.long_tags(POSTS["Alltags"], n_known), whole)
