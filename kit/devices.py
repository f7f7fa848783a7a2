"""What this machine computes with, asked without loading a library that takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess

ASK_GPUS = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
ASK_S = 20  # a driver that needs longer is not there
MB_PER_GB = 1024


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_names() -> list[str]:
    """Each NVIDIA GPU the driver knows, as "NAME (40 GB)"; those hidden by CUDA_VISIBLE_DEVICES included."""
    if not shutil.which(ASK_GPUS[0]):
        return []
    try:
        told = subprocess.run(ASK_GPUS, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in told.splitlines() if "," in line]
    return [f"{name.strip()} ({float(mb) / MB_PER_GB:.0f} GB)" if mb.strip().isdigit() else name for name, mb in rows]


def describe() -> str:
    """Cores and GPUs in one line, e.g. "16 cores, GPU 0: NVIDIA H100 (80 GB)"."""
    names = [f"GPU {index}: {name}" for index, name in enumerate(gpu_names())]
    if names and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names.append(f"CUDA_VISIBLE_DEVICES={visible!r}")
    return ", ".join([f"{usable_cores()} cores", *(names or ["no GPU"])])
