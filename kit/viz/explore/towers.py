"""What needs torch, done in a process of its own: torch and the boosters never share one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from kit.release.images import decode_image


def encode_texts(run_dir: Path, texts: Sequence[str]) -> np.ndarray:
    """(n, d) float16, rows of norm 1: texts by the CLIP of a run."""
    return run_there(_texts, run_dir, list(texts))


def encode_images(run_dir: Path, paths: Sequence[str]) -> np.ndarray:
    """(n, d) float16, rows of norm 1: image files by the CLIP of a run; an unreadable one is grey."""
    return run_there(_images, run_dir, list(paths))


def unreadable(path: str) -> str:
    """Why a picture cannot be read; "" where it can."""
    return decode_image(path, 64)[1]


def close() -> None:
    """End the other process; the next question starts another one."""
    if _process.cache_info().currsize:
        _process().shutdown()
        _process.cache_clear()


def run_there(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns, called in the other process."""
    return _process().submit(function, *arguments).result()


@functools.cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


# --- in the other process ---------------------------------------------------------------------------------------------


once = functools.cache  # what the other process loads, it keeps


@once
def clip_of(run_dir: Path) -> Any:
    """The CLIP of a run."""
    from kit.encoders.clip import load_clip

    return load_clip(f"local-dir:{run_dir / 'clip'}")


def _texts(run_dir: Path, texts: list[str]) -> np.ndarray:
    from kit.encoders.bulk import encode_strings

    encoder = clip_of(run_dir).text_encoder()
    return encode_strings(encoder, encoder.module, texts, 64, "cpu")[0].astype(np.float16)


def _images(run_dir: Path, paths: list[str]) -> np.ndarray:
    from kit.encoders.bulk import encode_files

    encoder = clip_of(run_dir).image_encoder()
    return encode_files(encoder, encoder.module, paths, 16, "cpu")[0].astype(np.float16)
