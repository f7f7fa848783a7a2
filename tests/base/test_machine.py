"""What the machine computes with, as the driver tells it."""

import os

import pytest

from kit.base import machine

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
