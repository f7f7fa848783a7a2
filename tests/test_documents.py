"""What README and its kin name exists: files, notebooks, parameters, modules, options, words of the registries."""

import ast
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from kit.base.paths import PROJECT_ROOT
from kit.pipeline.steps import notebooks, read_parameters

TEXTS = {
    name: (PROJECT_ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "inputs/README.md")
}
each_text = pytest.mark.parametrize("name", TEXTS)


@each_text
def test_files_exist(name):
    named = set(re.findall(r"\b(?:kit|tests|notebooks)/[\w./]+\.\w+", TEXTS[name])) - {"notebooks/NN_name.ipynb"}
    assert not [path for path in named if not (PROJECT_ROOT / path).exists()]


@each_text
def test_parameters_exist(name):
    known = {f"{path.stem[:2]}.{parameter}" for path in notebooks() for parameter in read_parameters(path)}
    assert set(re.findall(r"(?:`|--set[ =])(\d\d\.[a-z]\w+)", TEXTS[name])) <= known


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_can_be_set(path):
    """A second "=" in its line, as in its comment, hides a parameter from papermill."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    written = [node.target.id for node in ast.parse("".join(cell["source"])).body]
    assert list(read_parameters(path)) == written


@each_text
def test_modules_exist(name):
    modules = set(re.findall(r"python -m ((?:kit|tests)[\w.]*)", TEXTS[name]))
    assert all(importlib.util.find_spec(module) for module in modules)


def test_every_notebook_is_in_readme():
    assert re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", TEXTS["README.md"]) == [path.stem for path in notebooks()]


def test_options_are_those_of_the_command():
    told = subprocess.run(
        [sys.executable, "-m", "kit.pipeline", "--help"], capture_output=True, text=True, cwd=PROJECT_ROOT
    )
    real = set(re.findall(r"--[a-z]+", told.stdout.split("options:")[1])) - {"--help"}
    table = TEXTS["README.md"].split("## Options")[1].split("## ")[0]
    rows = "\n".join(line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"--[a-z]+", rows)) == real


def test_every_floor_is_in_contributing():
    picture = TEXTS["CONTRIBUTING.md"].split("```")[1]
    folders = {path.parent.name for path in (PROJECT_ROOT / "kit").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"\w+", picture))
