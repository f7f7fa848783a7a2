"""Files written whole, readable by whom the umask lets, flushed through a handle that may be written."""

import os

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from kit.base.files import atomic_path, read_npz, write_npy, write_npz, write_table


@pytest.mark.skipif(os.name != "posix", reason="file modes of Unix")
def test_the_umask_alone_decides_who_may_read(tmp_path):
    with atomic_path(tmp_path / "model.safetensors") as temporary:
        save_file({"values": np.zeros(3)}, temporary)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="access modes of Unix")
def test_what_is_flushed_may_be_written(tmp_path, monkeypatch):
    """Windows flushes no handle that was opened to read."""
    import fcntl

    modes = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert modes == [os.O_RDWR] and (tmp_path / "a").read_text() == "whole"


def test_kept_arrays_are_read_back_by_their_key_alone(tmp_path):
    path = tmp_path / "made" / "kept.npz"
    assert read_npz(path, "a") is None
    write_npz(path, key="a", values=np.arange(3))
    assert read_npz(path, "a")["values"].tolist() == [0, 1, 2] and read_npz(path, "b") is None
    write_npy(path.with_suffix(".npy"), np.arange(4))
    assert np.load(path.with_suffix(".npy")).tolist() == [0, 1, 2, 3]
    assert sorted(one.name for one in path.parent.iterdir()) == ["kept.npy", "kept.npz"]


@pytest.mark.parametrize(("name", "read"), [("one.csv", pd.read_csv), ("one.parquet", pd.read_parquet)])
def test_a_table_is_written_as_its_name_ends(tmp_path, name, read):
    table = pd.DataFrame({"post": ["a", "b"], "n": [1, 2]})
    write_table(tmp_path / name, table)
    pd.testing.assert_frame_equal(read(tmp_path / name), table)
