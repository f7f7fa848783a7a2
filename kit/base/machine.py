"""What this machine computes with, asked without loading a library that takes seconds."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from kit.base.paths import PROJECT_ROOT

ASK_GPUS = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
ASK_S = 20  # a driver that needs longer is not there
MB_PER_GB = 1024


def usable_cores() -> int:
    """Cores this process may use: affinity and a container's quota count."""
    import joblib  # loads numpy, which a worker process must not do before it knows its threads

    return joblib.cpu_count()


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


def loaded_versions() -> str:
    """Versions of Python and of the packages this process has imported so far, in one line."""
    names = ["numpy", "pandas", "sklearn", "torch", "open_clip", "lightgbm", "catboost", "kit"]
    loaded = [f"{name} {sys.modules[name].__version__}" for name in names if name in sys.modules]
    return ", ".join([f"python {platform.python_version()}", *loaded])


def peak_memory_mb(children: bool = False) -> int:
    """Largest resident memory so far of this process, or of any ended child of it, in MB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10))


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that requirements.txt names ("missing" where one is not installed).

    Without that file, which a wheel does not hold, none.
    """
    path, versions = PROJECT_ROOT / "requirements.txt", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if name := re.match(r"[\w.-]+", line):
            try:
                versions[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                versions[name[0]] = "missing"
    return versions


CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
GB = 1e9


def memory_gb() -> tuple[float, float]:
    """Memory this process may use, and how much of it is available now, in GB; a container's limit counts."""
    memory = psutil.virtual_memory()
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    total = min(memory.total, int(limit)) if limit.isdigit() else memory.total
    return total / GB, min(memory.available, total) / GB
