"""kit.release.json_table: rows and columns give the same table, and whatever is no table is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.release.json_table import read_json_table

WANTED = {"a", "b", "c d"}
VALUE = st.one_of(
    st.sampled_from(["}", '"', "\\", "é\u2028", "", "\ud800"]), st.text(max_size=4), st.none(), st.booleans(),
    st.integers(0, 9), st.floats(), st.lists(st.dictionaries(st.just("a"), st.integers(0, 3)), max_size=3),
)  # fmt: skip
NAME = st.sampled_from(["a", "b", "c d", "other", '"', "5"])


def values_of(columns) -> dict[str, list[str]]:
    return {name: [repr(value) for value in column.distinct[column.codes]] for name, column in columns.items()}


@given(st.lists(st.dictionaries(NAME, VALUE, max_size=4), min_size=1, max_size=6))
def test_rows(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.json"
    path.write_text(json.dumps(rows))
    names = dict.fromkeys(name for row in rows for name in row)
    found = read_json_table(path, WANTED)
    assert list(found) == list(names)
    for name, values in values_of(found).items():
        assert values == [repr(row.get(name)) if name in WANTED else "None" for row in rows]


@given(st.lists(NAME, unique=True, min_size=1, max_size=3), st.permutations(range(4)), st.data())
def test_columns_in_the_order_of_their_rows(tmp_path_factory, names, order, data):
    path = tmp_path_factory.getbasetemp() / "columns.json"
    table = {name: {str(row): data.draw(VALUE) for row in order} for name in names}
    path.write_text(json.dumps(table))
    found = values_of(read_json_table(path, WANTED))
    assert list(found) == names
    for name, values in found.items():
        assert values == [repr(table[name][str(row)]) if name in WANTED else "None" for row in range(4)]


READ = {
    "[{}]": {}, '{"a": {"0": 1}, "a": {"0": 2}}': {"a": ["2"]}, '{"a": {"0": 1}, "b": [1]}': {"a": ["1"], "b": ["1"]},
    '{"a": {"x": 1, "5": 2}}': {"a": ["1", "2"]}, '{"a": {"0": NaN, "1": 1e999}}': {"a": ["nan", "inf"]},
    '\ufeff[{"a": 1}]': {"a": ["1"]}, '[{"a": "\\ud800"}, {"a": "x"}]': {"a": [r"'\ud800'", "'x'"]},
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_odd_but_a_table(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    assert values_of(read_json_table(path, WANTED)) == READ[text]


EMPTY, ENDS, BROKEN = "is empty", "ends too early", "is not valid JSON"
REFUSED = {
    "": EMPTY, " ": EMPTY, "[]": EMPTY, "{}": EMPTY, "null": EMPTY, "7": "holds a JSON int", '{"a": 7}': "column 'a' is a int",
    '[{"a": 1},]': ENDS, '[{"a": 1},{"a": 2}': ENDS, '{"a": {"0": 1}': ENDS, '{"a": {"0": 1},}': ENDS,
    '[{"a": 1}{"a": 2}]': BROKEN, '[,{"a": 1}]': BROKEN, '[{"a": 1},\x0b{"a": 2}]': BROKEN, '{"a": {"0": 1, }}': BROKEN,
    '{"a": {"0": 1} "b": {"0": 1}}': BROKEN, '[{"a": 1}]]': BROKEN, '[{"a": 1}, 5, {"a": 2}]': "row 1: expected one post",
    '[[1], {"a": 1}]': "row 0: expected one post", '{"a": {"0": 1}, "b": {"1": 1}}': "column 'b' has other rows",
    '{"a": {}, "b": {"0": 1}}': r"column 'b' has other rows \(1\) than the first \(0\)",
    "[" + '{"a": ' * 5000: "cannot be read as JSON", '[{"a": ' + "9" * 5000 + "}]": "cannot be read as JSON",
    '[{"a": ' + "[" * 990 + "]" * 990 + "}]": "cannot be read as JSON",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(InputError, match=REFUSED[text]):
        read_json_table(path, WANTED)
