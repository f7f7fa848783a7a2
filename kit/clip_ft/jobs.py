"""A training as files, so that other processes can run it or a fold of it: what they need is written once, and mapped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.base.files import atomic_path, read_json, write_json
from kit.clip_ft.prototypes import Prototypes, load_prototypes
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import Settings, TrainingData, tower_dtype
from kit.encoders.clip import Clip, load_clip


@dataclass(frozen=True)
class Job:
    """What ``train`` takes, and further arrays by name."""

    clip: Clip
    bank: TextBank
    prototypes: Prototypes
    data: TrainingData
    settings: Settings
    more: dict[str, np.ndarray]


def write_job(
    folder: Path, clip_dir: Path, bank: TextBank, prototypes: Prototypes, data: TrainingData, settings: Settings,
    **more: np.ndarray,
) -> None:  # fmt: skip
    """Put everything but the CLIP model, which lies in ``clip_dir``, into ``folder``."""
    prototypes.save(folder / "prototypes")
    arrays = {"image": data.image, "labels": data.labels, "fit_rows": data.fit_rows, "valid_rows": data.valid_rows}
    arrays |= {} if data.image_ok is None else {"image_ok": data.image_ok}
    for name, values in (arrays | more).items():
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, values)
    with atomic_path(folder / "texts.parquet") as temporary:
        pd.DataFrame({"text": bank.texts}).to_parquet(temporary, index=False)
    content = {"clip": clip_dir, "settings": asdict(settings), "bank": bank.options}
    write_json(folder / "job.json", content | {"data": sorted(arrays), "more": sorted(more)})


def open_job(folder: Path, device: torch.device, world: int) -> Job:
    """The job in ``folder`` with its text tower on ``device``, in one of ``world`` processes that share the memory."""
    content = read_json(folder / "job.json")
    settings, options = Settings(**content["settings"]), content["bank"]
    data, more = ({n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in content[kind]} for kind in ("data", "more"))
    clip = load_clip(f"local-dir:{content['clip']}")
    clip.text.to(device)
    options["cache_share"] /= world  # every process holds its own copy
    texts = pd.read_parquet(folder / "texts.parquet")["text"].to_numpy()
    bank = TextBank(clip.text, texts, dtype=tower_dtype(settings.precision, device), **options)
    return Job(clip, bank, load_prototypes(folder / "prototypes"), TrainingData(**data), settings, more)
