"""The learners by name, and where each is fitted."""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Iterable
from typing import Any

from catboost.utils import get_gpu_device_count

from kit.base.errors import InputError
from kit.base.tasks import machine_shape, on_cluster
from kit.boosting.author_ridge import AuthorRidge
from kit.boosting.catboost import CatBoost
from kit.boosting.lightgbm import LightGBM
from kit.boosting.scikit import PREFIX, Scikit, scikit_learner

LEARNERS = {"lightgbm": LightGBM, "catboost": CatBoost, "author_ridge": AuthorRidge}
ROWS_FOR_GPU = 100_000  # fewer, and a GPU mostly waits for the next tree
DEVICES = ("auto", "cpu", "gpu")


def device_for(model: str, asked: str, n_posts: int) -> str:
    """Where a model is fitted: "gpu" for CatBoost if asked for, or if "auto" finds one and enough posts; else "cpu".

    LightGBM stays on the CPU: its packages are not built for CUDA.

    Raises:
        InputError: `asked` is another word, or a GPU where CatBoost finds none.
    """
    if asked not in DEVICES:
        raise InputError(f"device {asked!r}: expected one of {', '.join(DEVICES)}")
    if model != "catboost" or asked == "cpu" or (asked == "auto" and n_posts < ROWS_FOR_GPU):
        return "cpu"
    found = machine_shape()[1] > 0 and (on_cluster() or get_gpu_device_count() > 0)
    if asked == "gpu" and not found:
        raise InputError(
            "device 'gpu': CatBoost finds none; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or take 'auto'"
        )
    return "gpu" if found else "cpu"


def learner_of(model: str) -> type:
    """The learner of that name: one of LEARNERS, or a regressor of scikit-learn.

    Raises:
        InputError: there is none.
    """
    if model.startswith(PREFIX):
        return scikit_learner(model)
    if model not in LEARNERS:
        raise InputError(
            f"model {model!r} is unknown; choose one of {', '.join(LEARNERS)}, or a regressor of scikit-learn "
            "by its full name, as sklearn.ensemble.ExtraTreesRegressor"
        )
    return LEARNERS[model]


def known(asked: Iterable[str]) -> list[str]:
    """The names of LEARNERS, and those of the names asked for that are regressors of scikit-learn."""
    return [*LEARNERS, *(name for name in asked if name not in LEARNERS and _is_known(name))]


def kinds() -> tuple[type, ...]:
    """A learner for every format in which models are kept."""
    return (*LEARNERS.values(), Scikit)


def usable(models: Iterable[str], taught: bool) -> list[str]:
    """Those of the models that can learn from a feature set with, or without, columns taught by labels."""
    return [model for model in models if taught or not learner_of(model).needs_taught]


def params_of(model: str, pairs: Iterable[str], learning_rate: float = 0.0) -> dict[str, Any]:
    """Parameters of a learner as in `parse_params`, and a common learning rate where it is not 0 and the learner has one."""
    common = {"learning_rate": learning_rate} if learning_rate and "learning_rate" in learner_of(model).names() else {}
    return common | parse_params(model, pairs)


def parse_params(model: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Parameters of a learner from ``name=value`` pairs, e.g. num_leaves=31; values are numbers, true, false or words.

    Raises:
        InputError: an unknown model, no pair, a name the library does not know, or one that the kit sets itself.
    """
    learner = learner_of(model)
    known = learner.names() - learner.fixed
    params = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not (name and equals and text):
            raise InputError(f"{model}: {pair!r} is no parameter; expected name=value, as learning_rate=0.05")
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 5, 0.5)) or ", ".join(sorted(known))
            why = "set by this kit" if name in learner.fixed else "unknown to the library"
            raise InputError(
                f"{model}: parameter {name!r} is {why}; those that can be set and are most like it: {near}"
            )
        params[name] = {"true": True, "false": False}.get(text.lower(), text)
        with contextlib.suppress(ValueError, SyntaxError):
            params[name] = ast.literal_eval(text)
    return params


def _is_known(model: str) -> bool:
    with contextlib.suppress(InputError):
        return bool(learner_of(model))
    return False
