"""JupyterLab on working copies of the notebooks: each with the parameters of its run, in a scratch copy of that run.

"Run All" of a working copy goes to its end with what the run has kept, and changes neither the run nor a committed notebook.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from kit.base.files import check_writable, digest, write_atomic
from kit.base.paths import PROJECT_ROOT, shown
from kit.pipeline.notebook import ENVIRONMENT
from kit.pipeline.steps import Step
from kit.run.marks import read_mark
from kit.run.scratch import LAB, make_scratch

MADE = "kit"  # in the metadata of a working copy: a digest of its cells as they were made
ROOT = (
    "JupyterLab runs as root (--allow-root): whoever has the token in the address below can do anything on this machine"
)


def prepare(run_dir: Path, steps: Sequence[Step]) -> list[Path]:
    """Paths of the working copies ``<run>/lab/NN_name.ipynb``; one that was edited since it was made is kept as it is."""
    check_writable(run_dir)
    scratch = make_scratch(run_dir)
    paths = []
    for step in steps:
        path = run_dir / LAB / step.notebook.name
        made, old = _working_copy(step, run_dir, scratch), nbformat.read(path, 4) if path.is_file() else None
        if old is not None and _cells(old) != old.metadata.get(MADE):
            print(f"{shown(path)} was edited and is kept; remove it to get a new one")
        elif old is None or _cells(old) != _cells(made):  # else it keeps its outputs
            write_atomic(path, nbformat.writes(made))
        paths.append(path)
    return paths


def open_lab(run_dir: Path, steps: Sequence[Step], options: Sequence[str]) -> None:
    """Become JupyterLab, with the run's working copies at hand.

    Args:
        options: of JupyterLab, as ``["--port=8890", "--ip=0.0.0.0"]``.
    """
    prepare(run_dir, steps)
    print(f"working copies in {shown(run_dir / LAB)}: what they write goes to {shown(make_scratch(run_dir))}")
    own = jupyter_options(run_dir, options)
    if "--allow-root" in own:
        print(ROOT)
    sys.stdout.flush()
    environment = {**ENVIRONMENT, **os.environ}
    if "MPLBACKEND" not in os.environ:
        del environment["MPLBACKEND"]  # figures are shown in the notebook
    os.chdir(PROJECT_ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *options], environment)


def jupyter_options(run_dir: Path, options: Sequence[str]) -> list[str]:
    """What Jupyter is started with beside the user's options: folder, first page, and what this machine needs.

    The folder is the project, or the run where it lies elsewhere.
    """
    root = PROJECT_ROOT if run_dir.is_relative_to(PROJECT_ROOT) else run_dir
    own = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{(run_dir / LAB).relative_to(root)}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        own.append("--allow-root")
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        own.append("--no-browser")
    given = {option.partition("=")[0] for option in options}
    return [option for option in own if option.partition("=")[0] not in given]


def _working_copy(step: Step, run_dir: Path, scratch: Path) -> NotebookNode:
    """The notebook with the parameters its step was made with, or else would be made with."""
    mark = read_mark(run_dir, step.name) or {"parameters": {}}
    made = mark.get("made_with", {}).get("parameters") or mark["parameters"]
    parameters = step.parameters | {name: value for name, value in made.items() if name in step.parameters}
    copy = parameterize_notebook(load_notebook_node(str(step.notebook)), parameters | {"run_dir": shown(scratch)})
    note = f"> Working copy of `notebooks/{step.notebook.name}` with the parameters of `{shown(run_dir)}`. It reads what the run has kept, writes to `{shown(scratch)}` and changes nothing else."  # noqa: E501
    copy.cells.insert(0, nbformat.v4.new_markdown_cell(note))
    copy.cells[0].id, copy.metadata = "working-copy", {**copy.metadata, MADE: None}
    copy.metadata.pop("papermill", None)
    copy.metadata[MADE] = _cells(copy)
    return copy


def _cells(notebook: NotebookNode) -> str:
    """A digest of what the cells say, their outputs left out."""
    return digest([[cell.cell_type, cell.source] for cell in notebook.cells])
