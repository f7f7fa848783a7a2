"""The pins of requirements.txt can be installed on every Python that is promised, and it is promised in the same words."""

import re
import subprocess
import sys
import tomllib

import pytest

from kit.base.paths import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
PROMISED = PROJECT["requires-python"]
FIRST, END = (int(minor) for minor in re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROMISED).groups())
OTHERS = [f"3.{minor}" for minor in range(FIRST, END) if minor != sys.version_info.minor]  # this one has them installed


@pytest.mark.parametrize("version", OTHERS)
def test_every_pin_has_a_wheel(version, tmp_path):
    """pip looks every pin up and downloads none."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--only-binary=:all:", "--retries=0", "--timeout=20",
        f"--python-version={version}", f"--target={tmp_path}", "-r", str(PROJECT_ROOT / "requirements.txt"),
        *(pin for pins in PROJECT["optional-dependencies"].values() for pin in pins),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if "(from versions: none)" in done.stderr:
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_same_versions_are_promised_everywhere():
    every = [f"3.{minor}" for minor in range(FIRST, END)]
    words = f"{', '.join(every[:-1])} or {every[-1]}"
    assert f"Python {words}" in (PROJECT_ROOT / "README.md").read_text()
    script = (PROJECT_ROOT / "run_all.sh").read_text()
    assert f"Python {words} is needed" in script and f"(3, {FIRST}) <= sys.version_info[:2] <= (3, {END - 1})" in script
    assert f"Python {every[0]} to {every[-1]}" in (PROJECT_ROOT / "requirements.txt").read_text().splitlines()[0]
