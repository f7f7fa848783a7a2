"""One process at a time holds a lock, and a dead one holds nothing."""

import errno
import os
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from kit.base import locks
from kit.base.errors import InputError
from kit.base.locks import exclusive, lock, lock_holder
from kit.base.paths import PROJECT_ROOT

HOLDS = """
import sys, time
from pathlib import Path
from kit.base.locks import lock
with lock(Path(sys.argv[1]), "the other"):
    print("held", flush=True)
    time.sleep(60)
"""
MAKES = """
import sys
from pathlib import Path
from kit.pipeline.command import ensure_demo
sys.stdin.readline()
ensure_demo(Path(sys.argv[1]), 60)
"""


def _start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_another_process_keeps_out_until_it_dies(tmp_path):
    other = _start(HOLDS, tmp_path)
    assert other.stdout.readline() == "held\n"
    assert lock_holder(tmp_path).startswith(f"process {other.pid} on ") and "(the other)" in lock_holder(tmp_path)
    with pytest.raises(InputError, match=rf"process {other.pid} .*\(the other\), is already working in"):
        with lock(tmp_path, "this"):
            pass
    other.kill()
    other.communicate()
    assert lock_holder(tmp_path) is None
    with lock(tmp_path, "this"):
        assert f"process {os.getpid()} on " in lock_holder(tmp_path)


def test_who_holds_it_may_be_unknown(tmp_path):
    with lock(tmp_path, "this"):
        (tmp_path / locks.HOLDER).write_text("{")
        assert lock_holder(tmp_path) == "another process"


def test_a_file_system_without_locks_gives_every_one(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock(tmp_path, "one"), lock(tmp_path, "two"):
        assert lock_holder(tmp_path) is None
    assert "no locks in" in capsys.readouterr().out


def test_a_full_disk_is_no_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with exclusive(tmp_path / "lock"), pytest.raises(Timeout):
        with exclusive(tmp_path / "lock", 0):
            pass
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError, match="No space left"):
        with exclusive(tmp_path / "lock"):
            pass


def test_two_first_calls_make_one_demo(tmp_path):
    """Neither takes away what the other is writing, and the second keeps what the first has made."""
    calls = [_start(MAKES, tmp_path / "demo") for _ in range(2)]
    for call in calls:
        call.stdin.write("go\n")
        call.stdin.flush()
    said = [call.communicate(timeout=120)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0]
    assert sorted(text.count("making the synthetic demo") for text in said) == [0, 1]
    assert (tmp_path / "demo" / "DEMO.json").is_file() and not (tmp_path / ".demo.partial").exists()
