"""One style for package, tests and notebooks."""

import subprocess
import sys

import pytest

from kit.base.paths import PROJECT_ROOT


@pytest.mark.parametrize("command", [["check", "kit", "tests", "notebooks"], ["format", "--check", "kit", "tests"]])
def test_ruff(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_command_stays_short():
    assert len((PROJECT_ROOT / "run_all.sh").read_text().splitlines()) < 40


def test_every_pin_has_its_reason():
    lines = (PROJECT_ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert pins and all("==" in line.split("#")[0] and "#" in line for line in pins)
