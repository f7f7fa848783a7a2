"""What the machine computes with, as the driver tells it."""

import os
import subprocess
import sys

import pytest

from kit.base import machine
from kit.base.paths import PROJECT_ROOT

TELLS = "NVIDIA H100 80GB HBM3, 81559\nTesla T4, 15360\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A program in the driver's place; call it with what it says and its exit status."""

    def put(says: str, status: int = 0) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}END\nexit {status}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


def test_gpus_are_named(driver, monkeypatch):
    driver(TELLS)
    assert machine.gpu_names() == ["NVIDIA H100 80GB HBM3 (80 GB)", "Tesla T4 (15 GB)"]
    assert (
        machine.describe()
        == f"{machine.usable_cores()} cores, GPU 0: NVIDIA H100 80GB HBM3 (80 GB), GPU 1: Tesla T4 (15 GB)"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.describe().endswith("CUDA_VISIBLE_DEVICES='1'")


@pytest.mark.parametrize(("says", "status"), [("No devices were found\n", 6), ("No devices were found\n", 0), ("", 0)])
def test_a_driver_without_gpus(driver, says, status):
    driver(says, status)
    assert machine.gpu_names() == [] and machine.describe().endswith("no GPU")


def test_no_driver(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.gpu_names() == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_this_process_may_use(monkeypatch):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" \
           "from kit.base.machine import usable_cores; print(usable_cores())"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)  # as in a container with a quota of 4
    assert machine.usable_cores() == 4
