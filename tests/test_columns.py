"""kit.columns: whatever stands in a column comes out again, value for value and type for type."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import columns
from kit.columns import Coder, Column, Follower, join_columns, missing_column, object_array

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers(10**18, 10**25) | st.floats()
    | st.sampled_from(["", " ", "1", "1.0", "none", "\ud800", "a\x00b", "x" * 50, "('1',)", "1e400", "-0", "\u2028"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=3,
)  # fmt: skip


def encode(*pieces: list) -> Column:
    coder = Coder()
    codes = [coder.encode(values) for values in pieces]
    return Column(np.concatenate(codes), coder.distinct())


def as_given(values: list) -> list[str]:
    return [repr(value) for value in object_array(values)]


@given(st.lists(st.lists(ANYTHING, max_size=6), min_size=1, max_size=4))
def test_values_come_out_as_they_went_in(pieces):
    column = encode(*pieces)
    assert as_given(column.distinct[column.codes]) == as_given(sum(pieces, []))
    joined = join_columns([column, missing_column(2), column])
    assert as_given(joined.distinct[joined.codes]) == as_given([*sum(pieces, []), None, None, *sum(pieces, [])])


def test_equal_values_of_other_types_are_kept_apart():
    column = encode([1, True, 1.0, "1", [1], None, float("nan"), 1, 0.0, -0.0])
    assert len(column.distinct) == 9 and column.codes[0] == column.codes[7]


def test_a_column_of_different_values_is_not_searched(monkeypatch):
    monkeypatch.setattr(columns, "ENOUGH", 3)
    values = [f"{i}" for i in range(20)] + ["3", None, 1.5]
    column = encode(values[:4], values[4:15], values[15:])
    assert column.distinct[column.codes].tolist() == values


@given(st.lists(st.sampled_from([None, float("nan"), "a", "b", 0, [], False])))
def test_missing_values_are_completed(values):
    others = [f"other {row}" for row in range(len(values))]
    column = encode(values).completed_by(encode(others))
    for value, other, found in zip(values, others, column.distinct[column.codes], strict=True):
        assert found == (other if value is None or value != value else value)


def test_a_follower_accepts_nothing_but_the_same_texts():
    known = encode(["a", "b", "a", "c"])
    follower = Follower(known)
    assert [*follower.encode(["a", "b"]), *follower.encode(["a", "c"])] == known.codes.tolist()
    assert follower.distinct() is known.distinct
    for values in (["a", "c"], ["a", None], ["a", "b", "a", "c", "d"]):
        with pytest.raises(ValueError, match="another column"):
            Follower(known).encode(values)
    for text in ("[1, 2]", "[true, 2]", "[1.0, 2]"):  # equal numbers may be other ids
        with pytest.raises(ValueError, match="another column"):
            Follower(encode([1, 2])).encode(json.loads(text))
