"""The steps of the chain: notebooks, profiles and the parameters a run gives them."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base.errors import InputError
from kit.base.files import read_json
from kit.base.paths import PROJECT_ROOT, shown
from kit.run.marks import done_path

NOTEBOOKS = PROJECT_ROOT / "notebooks"
DEMO = PROJECT_ROOT / "inputs" / "demo"
QUICK = {"rounds": 300, "patience": 30, "learning_rate": 0.1}  # boosting of the demo
PROFILES: dict[str, dict[str, dict[str, Any]]] = {  # notebook number -> parameter -> value; nothing else
    "full": {},
    "paper": {  # its protocol, as far as it is known: the table in 03 has the reasons against
        "02": {"valid_share": 0.0},
        "03": {"share_projection": True, "mask_sot": False, "cross_folds": 0, "full": True, "batch_size": 128},
        "05": {"factors": [2, 3, 5], "ratios": [1.0, 0.9, 0.8, 0.77, 0.6, 0.5], "selection_seeds": [0, 1, 2]},
        "06": {"sets": ["paper"]},
    },
    "quick": {"04": {"baselines": [], "tuned": []}, "06": {"sets": ["all"]}, "07": {"near_images": False}},
    "demo": {
        "01": {"n_folds": 3},
        "02": {"clip_model": "smp-tiny", "shots": 24, "tiny_effort": 0.2},
        "03": {"cross_folds": 2},
        "04": {"baselines": ["resnet_bert", "vit_bert", "blip"]},  # others would learn nothing from drawn pictures
        "05": QUICK
        | {
            "features": "statistic+clip+clip_ft",
            "factors": [5],
            "tail_seeds": [0],
            "ratios": [1.0, 0.77],
            "selection_seeds": [0, 1],
        },
        "06": QUICK
        | {
            "sets": [
                "statistic",
                "statistic+behaviour",
                "statistic+clip",
                "statistic+clip_ft",
                "statistic+behaviour+clip+clip_ft+taught",
            ]
        },
    },
}
FIRST = {"full": "quick"}  # profile -> the one whose steps make its first submission
WITHOUT = {"quick": ("02", "03", "05")}  # profile -> notebooks that it leaves out: networks and studies
AFTER = {"05": "07"}  # a study -> the notebook after which it runs: it holds no submission up
KEPT = {  # notebook number -> folders in which it keeps what it has finished, so that it can go on; --force clears them
    "02": ("tiny", "dual", "shards/images", "shards/texts", "shards/encoders", "prototypes"),
    "03": ("clip_ft",),
    "04": ("shards/encoders", "tuned"),
    "05": ("studies",),
    "06": ("gbdt",),
}
SUBMISSION = "07_blend"  # the step that writes it; those after it hold nothing up
CALLED_FROM = "KIT_CALLED_FROM"  # environment variable: the folder run_all.sh was called in


@dataclass(frozen=True)
class Step:
    """One notebook of the chain with the parameters it runs with."""

    name: str
    notebook: Path
    parameters: dict[str, Any]

    @property
    def number(self) -> str:
        return self.name.split("_")[0]


def plan(data_dir: Path, run_dir: Path, profile: str, settings: list[str]) -> list[Step]:
    """Every step of the chain as it runs, parameters resolved: notebook default, then profile, then ``--set``.

    Args:
        settings: ``NN.name=value`` as given on the command line.
    Raises:
        InputError: unknown notebook or parameter, or a value of the wrong type; the message lists the right ones.
    """
    overrides = {number: dict(values) for number, values in PROFILES[profile].items()}
    for setting in settings:
        target, equals, value = setting.partition("=")
        number, dot, name = target.partition(".")
        if not (equals and dot and number and name):
            raise InputError(f"--set {setting}: expected NN.name=value, e.g. --set 01.n_folds=10")
        overrides.setdefault(step_number(number), {})[name] = value
    folders = {"data_dir": shown(data_dir), "run_dir": shown(run_dir)}
    chain = [path for path in notebooks() if path.stem[:2] not in WITHOUT.get(profile, ())]
    steps = [_plan_step(path, overrides.pop(path.stem[:2], {}), folders) for path in chain]
    steps.sort(key=lambda step: (AFTER.get(step.number, step.number), step.number in AFTER))
    for number in overrides:
        _unknown_step(number, chain)
    return steps


def plan_first(data_dir: Path, run_dir: Path, profile: str, settings: list[str]) -> list[Step]:
    """The steps that make a profile's first submission; none where it has no such steps, or where a submission stands.

    Settings count where the first profile says nothing else.
    """
    first = FIRST.get(profile)
    if not first or done_path(run_dir, SUBMISSION).is_file() or SUBMISSION not in [path.stem for path in notebooks()]:
        return []
    own = {f"{number}.{name}" for number, values in PROFILES[first].items() for name in values}
    targets = {setting: setting.partition("=")[0].partition(".") for setting in settings}
    kept = [
        setting for setting, (number, _, name) in targets.items()
        if f"{step_number(number)}.{name}" not in own and step_number(number) not in WITHOUT[first]
    ]  # fmt: skip
    return [step for step in plan(data_dir, run_dir, first, kept) if step.name <= SUBMISSION]


def notebooks() -> list[Path]:
    """The notebooks of the chain in the order of their numbers."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def _plan_step(path: Path, overrides: dict[str, Any], folders: dict[str, str]) -> Step:
    known = read_parameters(path)
    values = {name: parameter.default for name, parameter in known.items()}
    values.update({name: value for name, value in folders.items() if name in known})
    for name, value in overrides.items():
        if name not in known or name in folders:
            names = ", ".join(f"{n}: {p.type_name}" for n, p in known.items() if n not in folders)
            hint = f" (use --{'data' if name == 'data_dir' else 'out'})" if name in folders else ""
            raise InputError(f"{path.stem} has no parameter {name!r} to set{hint}; its parameters are {names}")
        values[name] = parse_value(value, known[name].type_name, f"{path.stem[:2]}.{name}")
    return Step(path.stem, path, values)


def parse_value(value: Any, type_name: str, target: str) -> Any:
    """``value`` as the type that the parameters cell declares: int, float, bool, str, list[int|float|str].

    Raises:
        InputError: the text is no such value.
    """
    if not isinstance(value, str) or type_name == "str":
        return value
    try:
        if type_name.startswith("list["):
            text = value.strip()
            items = ast.literal_eval(text) if text.startswith(("[", "(")) else text.split(",")
            items = [item for item in (str(item).strip() for item in items) if item]
            return [parse_value(item, type_name[5:-1], target) for item in items]
        if type_name == "bool":
            return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[value.lower()]
        if type_name == "int":
            return int(value)
        if type_name == "float" and abs(number := float(value)) < float("inf"):
            return number
    except (ValueError, KeyError, SyntaxError, TypeError):
        pass
    raise InputError(f"--set {target}={value}: expected a value of type {type_name}")


def choose(steps: list[Step], options: argparse.Namespace) -> list[Step]:
    for number in (*options.force, *options.accept, *options.without, *filter(None, (options.start, options.only))):
        if number not in {step.number for step in steps}:
            _unknown_step(number, [step.notebook for step in steps])
    if options.only:
        return [step for step in steps if step.number == options.only]
    kept = [step for step in steps if step.number not in options.without]
    return [step for step in kept if not options.start or step.number >= options.start]


def _unknown_step(number: str, chain: list[Path]) -> None:
    raise InputError(f"no notebook {number}; the chain is {', '.join(path.stem for path in chain)}")


def clear_kept(run_dir: Path, number: str) -> None:
    """Remove what a step has kept of its work, so that it computes all of it again."""
    for name in KEPT.get(number, ()):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def forget_force(arguments: list[str], number: str) -> None:
    """Take ``--force number`` out of a command line, so that the same command goes on with what the step keeps from now on."""
    for index in reversed(range(len(arguments))):
        name, equals, value = arguments[index].partition("=")
        if name == "--force" and step_number(value if equals else arguments[index + 1]) == number:
            del arguments[index : index + (1 if equals else 2)]


def step_number(text: str) -> str:
    """ "6", "06" or "06_gbdt_folds" -> "06"."""
    return text.split("_")[0].zfill(2)


def command_line(arguments: list[str]) -> str:
    start = "./run_all.sh" if CALLED_FROM in os.environ else "python -m kit.pipeline"
    return shlex.join([*shlex.split(start), *arguments])


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: type_name = default  # help``."""

    default: Any
    type_name: str
    help: str


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters a notebook declares, in order.

    Raises:
        InputError: the file is no notebook.
        ValueError: it declares none, or one without type or literal default.
    """
    try:
        cells = [cell for cell in read_json(notebook)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{notebook} cannot be read as a notebook ({error}): restore it from the project") from error
    source = "".join(cells[0]["source"]) if cells else ""
    lines, parameters = source.splitlines(), {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or node.value is None:
            raise ValueError(f"{notebook.name}: {ast.unparse(node)} is no parameter; write name: type = value  # help")
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().partition("#")[2].strip()
        parameters[node.target.id] = Parameter(ast.literal_eval(node.value), ast.unparse(node.annotation), comment)
    if not parameters:
        raise ValueError(f"{notebook.name} has no cell tagged 'parameters'")
    return parameters
