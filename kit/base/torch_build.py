"""Which build of torch is installed: ``python -m kit.base.torch_build``, with the standard library alone.

The default one carries CUDA, more than half of what the kit takes on disk. Where there is no NVIDIA driver, the pinned versions
are installed in their build for the CPU, if an index offers it; TORCH=cpu and TORCH=cuda in the environment ask for either, and
TORCH_INDEX names another index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata

from kit.base.paths import PROJECT_ROOT

INDEX = "https://download.pytorch.org/whl/cpu"
PIP = (sys.executable, "-m", "pip")
QUICK = ("--quiet", "--retries=0", "--timeout=15")  # an index that is not there must not hold the installation up


def main() -> int:
    """Install the build for the CPU or leave torch to requirements.txt, and say which in one line; 2 for a wish not granted."""
    asked = os.environ.get("TORCH", "")
    if asked not in ("", "cpu", "cuda"):
        print(f"error: TORCH={asked}: expected cpu or cuda", file=sys.stderr)
        return 2
    if asked == "cuda" or (not asked and shutil.which("nvidia-smi")):
        if _held().endswith("+cpu"):  # it satisfies the pin, too
            subprocess.call([*PIP, "uninstall", "--quiet", "--yes", "torch", "torchvision"])
        print("torch: the default build, with CUDA")
        return 0
    index = os.environ.get("TORCH_INDEX", INDEX)
    command = [*PIP, "install", *QUICK, "--no-deps", f"--extra-index-url={index}", *_pins()]
    if subprocess.run(command, capture_output=True).returncode == 0:
        print("torch: the build for the CPU alone (TORCH=cuda ./run_all.sh installs the other)")
        return 0
    if asked == "cpu":
        print(f"error: TORCH=cpu: neither {index} nor pip's own index offers {' and '.join(_pins())}; call ./run_all.sh "
              "without TORCH for the default build, or name an index with TORCH_INDEX", file=sys.stderr)  # fmt: skip
        return 2
    print(f"torch: the default build, with CUDA, because {index} could not be reached or lacks the pinned versions")
    return 0


def _pins() -> list[str]:
    """torch and torchvision as requirements.txt pins them, in the build for the CPU."""
    pins = re.findall(r"^((?:torch|torchvision)==\S+)", (PROJECT_ROOT / "requirements.txt").read_text("utf-8"), re.M)
    return [f"{pin}+cpu" for pin in pins]


def _held() -> str:
    """The version of torch that is installed, "" for none."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
