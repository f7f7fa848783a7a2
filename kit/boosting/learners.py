"""The learners by name, and where each is fitted."""

from __future__ import annotations

from catboost.utils import get_gpu_device_count

from kit.base.errors import InputError
from kit.base.machine import gpu_names
from kit.boosting.catboost import CatBoost
from kit.boosting.lightgbm import LightGBM

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
    found = bool(gpu_names()) and get_gpu_device_count() > 0
    if asked == "gpu" and not found:
        raise InputError(
            "device 'gpu': CatBoost finds none; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or take 'auto'"
        )
    return "gpu" if found else "cpu"


LEARNERS = {"lightgbm": LightGBM, "catboost": CatBoost}
