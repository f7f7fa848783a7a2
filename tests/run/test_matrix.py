"""Blocks side by side: what is read is what is there, however it is asked for, and memory is given back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.run import matrix
from kit.run.block import Block
from kit.run.matrix import Scratch, SideBySide, columns_of, give_back, join_blocks, pieces, save_values

rng = np.random.default_rng(0)
PARTS = [rng.random((700, 3), dtype=np.float32), rng.random((700, 2)).astype(np.float16), rng.random((700, 4))]
WHOLE = np.hstack([part.astype(np.float32) for part in PARTS])


@pytest.fixture
def on_disk(tmp_path):
    for i, part in enumerate(PARTS):
        np.save(tmp_path / f"{i}.npy", part)
    return SideBySide([np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(len(PARTS))])


def test_it_reads_as_one_array(on_disk):
    assert on_disk.shape == WHOLE.shape and len(on_disk) == 700 and on_disk.dtype == WHOLE.dtype
    assert np.array_equal(np.asarray(on_disk), WHOLE)
    for rows in (
        slice(3, 90, 2),
        slice(None, -3),
        slice(0, 0),
        rng.permutation(700),
        np.array([5, 5, 699]),
        np.arange(0),
    ):
        taken = on_disk[rows]
        assert taken.dtype == np.float32 and np.array_equal(taken, WHOLE[rows])


@given(n=st.integers(0, 5000), d=st.integers(0, 5000), mb=st.integers(1, 20))
def test_pieces_cover_every_row_once_and_stay_small(n, d, mb):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "PIECE_MB", mb)
        found = list(pieces(n, d))
    assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(n))
    assert all((piece.stop - piece.start) * d * 4 <= mb << 20 for piece in found)


def _resident_kb(part) -> int:
    address, kb = f"{part.ctypes.data - part.offset:x}", {}
    with open("/proc/self/smaps") as lines:
        for line in lines:
            fields = line.split()
            if "-" in fields[0] and not fields[0].endswith(":"):
                start = fields[0].split("-")[0]
            elif fields[0] == "Rss:":
                kb[start.lstrip("0")] = int(fields[1])
    return kb[address]


def test_pages_are_given_back(tmp_path):
    values = rng.random((20_000, 50), dtype=np.float32)
    np.save(tmp_path / "large.npy", values)
    mapped = np.load(tmp_path / "large.npy", mmap_mode="r")
    if not open("/proc/self/smaps").readable():
        pytest.skip("this system does not tell")
    assert mapped.sum() > 0 and _resident_kb(mapped) > 3_000
    give_back(mapped)
    assert _resident_kb(mapped) == 0 and np.array_equal(mapped, values)
    side = SideBySide([mapped])
    for rows in (slice(None), np.arange(0, 20_000, 3)):
        assert np.array_equal(side[rows], values[rows]) and _resident_kb(mapped) == 0
    give_back(values)  # an array in memory has nothing to give back


def test_a_block_is_described_by_its_values():
    one, two = (Block("b", values, ["a", "b", "c"]) for values in (PARTS[0], PARTS[0] + 1))
    assert one.digest == Block("c", PARTS[0].copy(), ["x", "y", "z"]).digest != two.digest
    joined = join_blocks([Block("b", PARTS[0], ["a", "b", "c"]), Block("c", PARTS[1], ["d", "e"])])
    assert joined.digest == Block("whole", WHOLE[:, :5].copy(), list("abcde")).digest


def test_a_scratch_file_holds_what_was_appended(tmp_path, monkeypatch):
    scratch = Scratch((700, 3), tmp_path)
    for start in range(0, 700, 90):
        scratch.append(PARTS[0][start : start + 90])
    assert np.array_equal(scratch.array(), PARTS[0]) and not list(tmp_path.iterdir())
    assert Scratch((700, 0), tmp_path).array().shape == (700, 0)

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    scratch = Scratch((700, 3), tmp_path)
    scratch._file.close()
    scratch._file = Full()
    with pytest.raises(InputError, match="make room"):
        scratch.append(PARTS[0])


@pytest.mark.parametrize("part", PARTS)
def test_columns_and_saved_files_are_what_numpy_makes_of_them(part, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "PIECE_MB", 0.001)  # many pieces
    monkeypatch.setattr(matrix, "TOGETHER", 2)
    path = tmp_path / "values.npy"
    save_values(path, part)
    np.save(tmp_path / "numpy.npy", part)
    assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    block = Block("b", np.load(path, mmap_mode="r"), [f"c{i}" for i in range(part.shape[1])])
    found = list(columns_of(block))
    assert [name for name, _ in found] == block.columns
    assert np.array_equal(np.stack([column for _, column in found], axis=1), part.astype(np.float32))
