"""kit.release.json_table: a file read in pieces is the same table as the file read at once, or is left to that."""

import contextlib
import gc
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.release import json_table
from kit.release.json_table import read_json_table

WANTED = {"a", "b", "c d"}
TRICKY = ['},{', '","5":', '}, "b": {"0": 1', '"', "\\", "]", "}}", "}", "é\u2028", "", " ,\n{", '{"a": 1},{"a": 2}']  # fmt: skip
VALUE = st.one_of(
    st.sampled_from(TRICKY), st.text(max_size=4), st.none(), st.booleans(), st.integers(0, 9), st.floats(), st.just(10**30),
    st.lists(st.dictionaries(st.sampled_from(["a", "5"]), st.sampled_from(TRICKY), max_size=2), max_size=3),
)  # fmt: skip
NAME = st.sampled_from(["a", "b", "c d", "other", '"', "5"])
LAYOUT = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,\n", " :\t")}])


def table_of(columns) -> dict:
    return {name: [repr(value) for value in column.distinct[column.codes]] for name, column in columns.items()}


def read_both(text: str, piece: int) -> None:
    """Whatever can be read in pieces is what the whole file holds, at any size of the pieces."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_table, "PIECE", piece)
        path = Path(folder) / "table.json"
        path.write_text(text)
        try:
            whole = json_table._read_whole(path, WANTED)
        except InputError as error:
            with pytest.raises(InputError) as found:
                read_json_table(path, WANTED)
            assert str(found.value) == str(error)
            return
        found = read_json_table(path, WANTED)
        assert table_of(found) == table_of(whole) and list(found) == list(whole)


@given(st.lists(st.dictionaries(NAME, VALUE, max_size=4), max_size=6), st.integers(1, 60), LAYOUT, st.booleans())
def test_rows_in_pieces(rows, piece, layout, alike):
    if alike and rows:
        rows = [{name: row.get(name) for name in rows[0]} for row in rows]
    read_both(json.dumps(rows, **layout), piece)


@given(st.lists(NAME, unique=True, max_size=3), st.permutations(range(4)), st.data(), st.integers(1, 60), LAYOUT)
def test_columns_in_pieces(names, order, data, piece, layout):
    columns = {name: {str(row): data.draw(VALUE) for row in order} for name in names}
    read_both(json.dumps(columns, **layout), piece)


BROKEN = [
    "", " ", "[]", "{}", "[{}]", "[{}, {}]", "7", "null", '[{"a": 1},]', '[{"a": 1},{"a": 2}', '[{"a": 1}{"a": 2}]',
    '[,{"a": 1}]', '[{"a": 1},{"a": 2}]]', '[{"a": 1},\x0b{"a": 2}]', '[{"a": 1}, 5, {"a": 2}]', '[[1], {"a": 1}]',
    '{"a": {"0": 1}, "b": {"1": 1}}', '{"a": {}, "b": {"0": 1}}', '{"a": {"0": 1}, "b": {}}',
    '{"a": {"0": 1, "0": 2}, "b": {"0": 3}}', '{"a": {"0": 1}, "a": {"0": 2}}',
    '{"a": {"0": 1, "1": 2, "0": 3}, "b": {"0": 1, "1": 2, "0": 3}}', '{"a": {"0": 1}, "b": [1]}',
    '{"a": [1, 2], "b": [3, 4]}', '{"a": {"0": 1} "b": {"0": 1}}', '{,"a": {"0": 1}}', '{"a": {"0": 1},}',
    '{"a": {"0": 1}', '{"a": {"0": 1}}}', '{"a": {"0": 1, }}', '{"a": {"x": 1, "5": 2}}',
    '{"a": {"1": 1, "0": 2}, "b": {"1": 3, "0": 4}}', '{"a": 7}', '{"a": {"0": NaN, "1": 1e999}}',
    '[{"a": NaN}, {"a": 1000000000000000000000}]', '[{"a": "\\ud800"},{"a": "x"}]', '[{"a": "' + "9" * 5000 + '"}]',
    "[" + '{"a": ' * 5000, '[{"a": ' + "9" * 5000 + "}]", '\ufeff[{"a": 1}]',
]  # fmt: skip


def test_the_garbage_collector_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    for content in ('[{"a": 1}]', "[]"):
        path.write_text(content)
        for switch in (gc.disable, gc.enable):
            switch()
            with contextlib.suppress(InputError):
                read_json_table(path, WANTED)
            assert gc.isenabled() == (switch is gc.enable)


@pytest.mark.parametrize("text", BROKEN)
def test_odd_files(text):
    for piece in (1, 7, 20, 1000):
        read_both(text, piece)


def test_what_is_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('[{"a": ' + "[" * 990 + "]" * 990 + "}]")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json_table(path, WANTED)


def test_a_large_file_is_never_parsed_at_once(tmp_path, monkeypatch):
    """The guess where pieces end must hold for both forms, else reading is slow and nobody notices."""
    sizes = []

    def loads(raw: bytes):
        sizes.append(len(raw))
        return orjson.loads(raw)

    monkeypatch.setattr(json_table, "PIECE", 5000)
    monkeypatch.setattr(json_table, "orjson", SimpleNamespace(loads=loads, JSONDecodeError=orjson.JSONDecodeError))
    rows = [{"a": f"text {i}", "b": i} for i in range(5000)]
    by_columns = {name: {str(i): row[name] for i, row in enumerate(rows)} for name in ("a", "b")}
    for content in (rows, by_columns):
        for separators in ((",", ":"), (", ", ": ")):
            path = tmp_path / "table.json"
            path.write_text(json.dumps(content, separators=separators))
            columns = read_json_table(path, WANTED)
            assert columns["a"].distinct[columns["a"].codes].tolist() == [row["a"] for row in rows]
    assert len(sizes) > 20 and max(sizes) < 2 * 5000
