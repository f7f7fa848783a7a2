"""New posts: read from a release's test part or from JSON objects, and put beside the posts of a run."""

from __future__ import annotations

import difflib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.release import smpd

IMAGE = "image"  # of a JSON object: the image file, from the folder of the JSON file
ROLES = {  # file of a release -> the fields of a JSON object that go there; all others go to "additional"
    "text": ("Title", "Alltags"), "category": ("Category", "Subcategory", "Concept"),
    "time": ("Postdate", "Latitude", "Longitude", "Geoaccuracy"), "user": (), "additional": (),
}  # fmt: skip
CLASSES = ("Category", "Subcategory", "Concept")
EXPECTED = ("Title", "Alltags", *CLASSES, "Postdate", IMAGE)  # whose absence is worth a word


def read_new(path: Path, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The posts, typed as those of a release, and what is to be said of them.

    Args:
        path: folder of a release, of which the test part is read, or a JSON file with an object or a list of them: fields as
            in the release (``Title``, ``Alltags``, ``Postdate``, ``Uid`` ...) and ``image``, a file.
        folder: empty; where JSON objects are laid out as a release, with copies of their images.
    Raises:
        InputError: no such file, broken JSON, an unknown field, an image that is not there, or what ``read_test_part`` refuses.
    """
    if not path.exists():
        raise InputError(f"--posts: no file or folder {path}")
    if path.is_dir():
        return smpd.read_test_part(path), []
    objects = _read_objects(path)
    said = [f"post {item['Pid']}: {', '.join(lacking)} not given, taken as missing" for item in objects
            if (lacking := [name for name in EXPECTED if name not in item])]  # fmt: skip
    _lay_out(objects, path, folder)
    return smpd.read_test_part(folder), said


def join_posts(known: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """The posts of a run with new ones behind them, the rows of the new ones, and what is to be said of them.

    A post that is a test post of the run takes the place it has there, so that it does not count twice.

    Raises:
        InputError: a train post of the run, whose label taught the models.
    """
    key = pd.MultiIndex.from_frame(known[["Uid", "Pid"]].astype(str))
    place = key.get_indexer(pd.MultiIndex.from_frame(new[["Uid", "Pid"]].astype(str)))
    taught = (place >= 0) & (known["split"] == "train").to_numpy()[place]
    if taught.any():
        raise InputError(
            f"{taught.sum():,} of the posts are train posts of this run, first Pid {new['Pid'][taught].iloc[0]}: their labels "
            "taught its models. Leave them out; what models say of them unseen is in predictions_*.parquet"
        )
    said = [
        f"{name} {', '.join(sorted(unseen)[:5])} not among the posts of the run: {n:,} posts are told apart by all else"
        for name in CLASSES
        if (unseen := set(new[name].astype(str)) - set(known[name].astype(str)) - {""})
        and (n := new[name].astype(str).isin(unseen).sum())
    ]
    rows = np.where(place >= 0, place, len(known) + np.cumsum(place < 0) - 1)
    order = np.arange(len(known) + int((place < 0).sum()))
    order[rows] = len(known) + np.arange(len(new))
    kinds = known.dtypes
    coded = [name for name, kind in kinds.items() if isinstance(kind, pd.CategoricalDtype)]
    both = [table.astype(dict.fromkeys(coded, object)) for table in (known, new.reindex(columns=known.columns))]
    joint = pd.concat(both, ignore_index=True).take(order).reset_index(drop=True)
    for name in coded:
        joint[name] = joint[name].fillna("").astype("category")
    return joint.astype({name: kind for name, kind in kinds.items() if name not in coded}), rows, said


def _read_objects(path: Path) -> list[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): expected one object, or a list of them") from error
    objects = content if isinstance(content, list) else [content]
    known = [*smpd.GIVEN, "Uid", "Pid", IMAGE]
    for number, item in enumerate(objects):
        if not isinstance(item, dict):
            raise InputError(f"{path}: item {number} is no object; expected fields as Title, Alltags, Postdate, image")
        for name in item:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known)
                raise InputError(f"{path}: item {number} has an unknown field {name!r}; most like it: {near}")
        item.setdefault("Pid", f"new_{number}")
        if smpd.NO_PID.search(str(item["Pid"])):
            raise InputError(f"{path}: item {number} has the Pid {item['Pid']!r}; expected one without slashes")
        item.setdefault("Uid", f"nobody_{number}")
    if not objects:
        raise InputError(f"{path} holds no post: expected one object, or a list of them")
    return objects


def _lay_out(objects: list[dict], path: Path, folder: Path) -> None:
    """Write the objects as the files of a release's test part, their images copied."""
    names = {role: files[0].format(part="test") for role, files in smpd.FILES.items()}
    placed = {name for fields in ROLES.values() for name in fields}
    lines = []
    for role, fields in ROLES.items():
        rows = [{"Uid": item["Uid"], "Pid": item["Pid"], **dict.fromkeys(fields, "")}
                | {name: item[name] for name in item if name in fields or role == "additional" and name not in (*placed, IMAGE)}
                for item in objects]  # fmt: skip
        (folder / names[role]).write_text(json.dumps(rows), encoding="utf-8")
    for number, item in enumerate(objects):
        lines.append("")
        if IMAGE in item:
            source = path.parent / str(item[IMAGE])
            if not source.is_file():
                raise InputError(
                    f"{path}: item {number} names the image {source}, which is no file; correct it or leave it out"
                )
            lines[-1] = f"test/{number}/{item['Pid']}.jpg"
            (folder / "test" / str(number)).mkdir(parents=True)
            shutil.copyfile(source, folder / lines[-1])
    (folder / names["images"]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
