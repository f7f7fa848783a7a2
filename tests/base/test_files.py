"""Files written whole, readable by whom the umask lets, flushed through a handle that may be written."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from kit.base.files import atomic_path


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
