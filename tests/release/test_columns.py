"""kit.release.columns: whatever stands in a column comes out again, value for value and type for type."""

from hypothesis import given
from hypothesis import strategies as st

from kit.release.columns import column_of, join_columns, missing_column, object_array

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers(10**18, 10**25) | st.floats()
    | st.sampled_from(["", " ", "1", "1.0", "none", "\ud800", "a\x00b", "x" * 50, "('1',)", "1e400", "-0", "\u2028"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=3,
)  # fmt: skip


def as_given(values: list) -> list[str]:
    return [repr(value) for value in object_array(values)]


@given(st.lists(ANYTHING, max_size=12))
def test_values_come_out_as_they_went_in(values):
    column = column_of(values)
    assert as_given(column.distinct[column.codes]) == as_given(values)
    joined = join_columns([column, missing_column(2), column])
    assert as_given(joined.distinct[joined.codes]) == as_given([*values, None, None, *values])


def test_equal_values_of_other_types_are_kept_apart():
    column = column_of([1, True, 1.0, "1", [1], None, float("nan"), 1, 0.0, -0.0])
    assert len(column.distinct) == 9 and column.codes[0] == column.codes[7]


@given(st.lists(st.sampled_from([None, float("nan"), "a", "b", 0, [], False])))
def test_missing_values_are_completed(values):
    others = [f"other {row}" for row in range(len(values))]
    column = column_of(values).completed_by(column_of(others))
    for value, other, found in zip(values, others, column.distinct[column.codes], strict=True):
        assert found == (other if value is None or value != value else value)


def test_equal_columns_of_texts_are_seen_as_such():
    known = column_of(["a", "b", None, "a"])
    assert known.is_text_of(column_of(["a", "b", None, "a"]))
    for values in (["a", "b", None, "b"], ["a", "b", None], ["b", "a", None, "b"], ["a", "b", "a", "a"]):
        assert not known.is_text_of(column_of(values))
    assert not column_of([1, 2]).is_text_of(column_of([True, 2]))  # equal numbers may be other ids
