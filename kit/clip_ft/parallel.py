"""CLIP_FT on several GPUs of one machine: the same training function in every process, started with torchrun.

The notebook's process writes a job folder, torchrun starts ``python -m kit.clip_ft.parallel JOB`` once per GPU, and the
checkpoint they leave is what the notebook's own call to ``train`` finds finished. No process is forked from the
notebook's kernel. A training of minutes gains little from it, because every process repeats the class prompts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from kit.base.paths import PROJECT_ROOT
from kit.base.process import end_with_runner
from kit.clip_ft.jobs import Job, open_job, write_job
from kit.clip_ft.train import Trained, is_trained


def fit(job: Job, folder: Path, clip_dir: Path, processes: int = 1) -> Trained:
    """The job trained, in this process or in several.

    Args:
        job: what to train.
        folder: where the checkpoint lies.
        clip_dir: the folder ``job.clip`` was loaded from.
        processes: number of processes, each with a GPU of its own where there are so many; 1 = this process.
    Raises:
        RuntimeError: the processes failed; their own message is in the output above.
    """
    if processes > 1 and not is_trained(folder, job.key(), job.settings):
        write_job(folder / "job", job, clip_dir)
        run_torchrun(folder / "job", processes)
        shutil.rmtree(folder / "job")
    return job.train(folder)


def run_torchrun(job: Path, n_processes: int) -> None:
    """Run the worker ``n_processes`` times on this machine and wait for all of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    result = subprocess.run([*command, "-m", "kit.clip_ft.parallel", str(job)], cwd=PROJECT_ROOT, check=False)
    if result.returncode:
        raise RuntimeError(f"training on {n_processes} processes ended with code {result.returncode}: see above")


def worker(job: Path) -> None:
    """One process of the group: read the job, train together with the others."""
    end_with_runner(job.parent.parent)
    local_rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        open_job(job, device, world).train(job.parent)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
