"""A small release in SMPD's shape, written file by file so that a test can break any of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from kit.base.process import WRITE
from kit.pipeline import plan

SETS = [
    "statistic",
    "statistic+behaviour",
    "statistic+clip_ft",
    "statistic+blip",
    "statistic+behaviour+clip+clip_ft+taught",
]
SMALL = [f"--set={setting}" for setting in (
    "02.clip_model=smp-tiny", "02.tiny_effort=0.01", "02.components=3", "03.epochs=1", "03.cross_folds=2", "04.svd_dim=4",
    "04.baselines=resnet_bert,vit_bert,blip",
    "01.n_folds=2", "06.schemes=user,time,matched", "05.rounds=20", "05.factors=3", "05.tail_seeds=0", "05.ratios=0.77",
    "05.selection_seeds=0", "06.rounds=30", f"06.sets={','.join(SETS)}",
)]  # fmt: skip

ASK_THE_PROBE = ("test_plan.py", "test_check.py")


@pytest.fixture(autouse=True)
def _no_probe(request, monkeypatch):
    """A time plan's probe takes seconds: the tests of the plan and of --check ask it, all others do without."""
    if request.path.name not in ASK_THE_PROBE:
        monkeypatch.setattr(plan, "_asked", lambda steps, run_dir: {})


settings.register_profile("kit", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("kit")
os.environ[WRITE] = "1"  # tests work as notebooks run by hand do; those about reading take it away


class Release:
    """A release of a few posts under ``root``, its rows as plain lists; ``write()`` puts them on disk."""

    def __init__(self, root: Path, n_train: int = 40, n_test: int = 12, seed: int = 0, images: bool = False):
        self.root, self.images = root, images
        rng = np.random.default_rng(seed)
        self.parts = {"train": self._rows(rng, 0, n_train)}
        if n_test:
            self.parts["test"] = self._rows(rng, n_train, n_test)
            order = rng.permutation(n_test)  # the official test order is not sorted by Pid
            self.parts["test"] = {role: [rows[i] for i in order] for role, rows in self.parts["test"].items()}

    @staticmethod
    def _rows(rng: np.random.Generator, start: int, n: int) -> dict[str, list]:
        rows: dict[str, list] = {
            role: [] for role in ("category", "text", "time", "user", "additional", "images", "label")
        }
        for i in range(start, start + n):
            ids = {"Uid": f"{i // 4}@N{10 + i // 4}", "Pid": str(100 + 3 * i)}
            kind = int(rng.integers(4))
            rows["category"].append(
                {**ids, "Category": "AB"[kind // 2], "Subcategory": f"s{kind}", "Concept": f"c{i % 5}"}
            )
            title = " ".join(rng.choice(["sunny", "dog", "street", "blue", "night"], int(rng.integers(0, 4))))
            tags = " ".join(rng.choice(["cat", "dog", "city", "love", "art", "sea"], int(rng.integers(0, 6))))
            rows["text"].append({**ids, "Title": title, "Mediatype": "photo", "Alltags": tags})
            rows["time"].append({**ids, "Postdate": str(1430000000 + 40000 * i), "Latitude": "0", "Longitude": "",
                                 "Geoaccuracy": "0"})  # fmt: skip
            rows["user"].append({**ids, "photo_firstdate": "1300000000", "photo_count": str(10 * (i // 4)), "ispro": "1",
                                 "canbuypro": "0", "timezone_offset": "+01:00", "photo_firstdatetaken": "2010-05-04 03:02:01",
                                 "timezone_id": "5", "user_description": "me <a href=x>x</a>",
                                 "location_description": ""})  # fmt: skip
            rows["additional"].append({**ids, "Pathalias": "None", "Ispublic": "1", "Mediastatus": "ready"})
            rows["images"].append((ids["Uid"], ids["Pid"]))
            rows["label"].append(round(float(np.clip(3 + kind + 0.05 * (i // 4) + rng.normal(), 1, 16)), 2))
        return rows

    NAMES = {
        "category": "category", "text": "text", "time": "temporalspatial_information", "user": "user_data",
        "additional": "additional_information",
    }  # fmt: skip

    def path(self, part: str, role: str) -> Path:
        names = {**{role: f"{part}_{name}.json" for role, name in self.NAMES.items()},
                 "images": f"{part}_img_filepath.txt", "label": f"{part}_label.txt"}  # fmt: skip
        return self.root / names[role]

    def write(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        for part, roles in self.parts.items():
            for role in self.NAMES:
                self.path(part, role).write_text(json.dumps(roles[role]))
            lines = [f"{part}/{uid}/{pid}.jpg" for uid, pid in roles["images"]]
            self.path(part, "images").write_text("\n".join(lines) + "\n")
            if self.images:
                self._write_images(part, roles)
            if part == "train":
                self.path(part, "label").write_text("\n".join(map(str, roles["label"])) + "\n")
        return self.root

    def _write_images(self, part: str, roles: dict[str, list]) -> None:
        """A flat colour per subcategory."""
        for (uid, pid), row in zip(roles["images"], roles["category"], strict=True):
            path = self.root / part / uid / f"{pid}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 20), ["red", "green", "blue", "white"][int(row["Subcategory"][1:])]).save(path)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release not yet written: change its rows, then ``release.write()``."""
    return Release(tmp_path / "release")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The arguments and the run directory of a chain that has run once on 120 posts; to be read, or copied to be changed."""
    from kit.pipeline.command import main

    root = tmp_path_factory.mktemp("chain")
    data = Release(root / "data", n_train=90, n_test=30, images=True).write()
    arguments = ["--data", str(data), "--out", str(root / "run"), *SMALL]
    assert main(arguments) == 0
    return arguments, root / "run"
