"""A wheel holds the package with its data files; the chain, which needs the notebooks, says so in one line."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from kit.base.paths import PROJECT_ROOT

USES = """
import kit.boosting.result, kit.evaluation.blend, kit.features.statistic, kit.submission.files, kit.viz.report
from kit.base.files import read_json
from kit.base.machine import package_versions
from kit.base.paths import PROJECT_ROOT
from kit.demo.make import make_release
from kit.encoders.registry import ENCODERS
from kit.evaluation.table_one import parse_sets
from kit.release.smpd import read_release
from kit.release.taxonomy import read_taxonomy
from kit.viz.report import TEMPLATE
assert len(parse_sets(["paper"])) == 12 and len(read_taxonomy()) and "<h1>" in TEMPLATE.read_text()
assert (PROJECT_ROOT / "kit" / "encoders" / "tiny_clip.json").is_file() and package_versions() == {}
assert len(read_release(make_release("demo", 60, images=False))) == 60
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel."""
    pytest.importorskip("setuptools", reason="builds the wheel")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(PROJECT_ROOT / "kit", source / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(source),
        str(source),
    ]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(source.glob("*.whl"))) as archive:
        archive.extractall(target)
    return target


def _run(installed, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_package_works_with_its_data(installed, tmp_path):
    done = _run(installed, tmp_path, "-c", USES)
    assert done.returncode == 0, done.stderr


def test_the_chain_says_that_it_needs_a_checkout(installed, tmp_path):
    done = _run(installed, tmp_path, "-m", "kit.pipeline", "--list")
    assert done.returncode == 2 and "a wheel holds the package alone" in done.stderr and "Traceback" not in done.stderr
