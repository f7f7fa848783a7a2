"""Read an SMPD-Image release of any year into one typed table of posts.

A release is a folder of row-aligned files: five JSON files per part (category, text, time and place, user, additional),
a list of image paths, and the labels of the train part. The years differ in file names, nesting, types and spelling;
they agree in one thing: row i of every file is the same post. That is verified by (Uid, Pid) wherever a file carries
them, and never assumed or repaired.

Nothing about the data is built in: no number of posts, no list of categories, no range of labels.

A structure that does not fit is refused. A single value that cannot be used is replaced (by "missing", where no better is
possible), and column ``faults`` of the post says so; ``kit.release.quality`` counts these. No file outside the release is read,
whatever its lists and links say.
"""

from __future__ import annotations

import os
import re
from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.release.columns import Column, join_columns, missing_column, object_array
from kit.release.external import external_files, join_external
from kit.release.json_table import read_bytes, read_json_table
from kit.release.links import leads_out
from kit.release.values import DESCRIPTIONS, LARGEST_COUNT, MISSING, add_faults, id_text, to_floats, type_columns

FILES = {  # role -> names since 2022, names of 2020
    "category": ("{part}_category.json",),
    "text": ("{part}_text.json", "{part}_tags.json"),
    "time": ("{part}_temporalspatial_information.json", "{part}_temporalspatial.json"),
    "user": ("{part}_user_data.json", "{part}_userdata.json"),
    "additional": ("{part}_additional_information.json", "{part}_additional.json"),
    "images": ("{part}_img_filepath.txt", "{part}_img.txt"),
    "label": ("{part}_label.txt",),
}
JSON_ROLES = ("text", "category", "time", "user", "additional")  # the first one sets the order of the posts
FOLDERS = ("", "{part}_allmetadata_json")
SPELLINGS = {"Tile": "Title", "timezone_timezone_id": "timezone_id"}  # as met in some files -> what is meant
NEEDED = {
    "text": ("Title", "Alltags"),
    "category": ("Category", "Subcategory", "Concept"),
    "time": ("Postdate", "Latitude", "Longitude", "Geoaccuracy"),
    "user": (),
    "additional": (),
}
COLUMNS = (
    "Uid", "Pid", "Category", "Subcategory", "Concept", "Title", "Alltags", "Mediatype", "Postdate", "Latitude",
    "Longitude", "Geoaccuracy", "photo_firstdate", "photo_firstdatetaken", "photo_count", "ispro", "canbuypro",
    "timezone_offset", "timezone_id", "user_description", "location_description", "Pathalias", "Ispublic",
    "Mediastatus", "image_path", "label", "split", "faults",
)  # fmt: skip
MADE = ("Uid", "Pid", "image_path", "label", "split", "faults")  # not taken as they stand in a JSON file
GIVEN = tuple(name for name in COLUMNS if name not in MADE)
NO_ID = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
NO_PID = re.compile(NO_ID.pattern + r"|[/\\]")
NO_FILE_NAME = re.compile(r"[\x00-\x1f\x7f]")


def read_release(path: str | Path) -> pd.DataFrame:
    """One row per post: the train part, then the test part, each in the official order.

    Args:
        path: folder of the release, its files flat or under ``train_allmetadata_json/`` and ``test_allmetadata_json/``.
    Returns:
        The posts table. Uid, Pid, Title, Alltags, Pathalias, image_path: str, "" where missing. Category, Subcategory,
        Concept, Mediatype, Mediastatus, timezone_id, user_description, location_description, split: category.
        Postdate, photo_firstdate, photo_firstdatetaken: UTC to the second, NaT where missing or impossible. Latitude,
        Longitude (degrees), Geoaccuracy, Ispublic, photo_count, ispro, canbuypro, timezone_offset (minutes where the
        file says "+01:00"): float, NaN where missing. label: float, NaN in the test part. Old releases give
        descriptions as number lists; these become ``user_description_vector`` and ``location_description_vector``
        (float32 arrays of one length or None). faults: category, what was replaced in the post, joined by "; ". With a
        ``user_additional.csv`` in the release folder or beside it, also its eight
        columns, joined by Pathalias.
    Raises:
        InputError: a file is missing, damaged, a link out of the release, of another length or in another order than
            the rest; a post appears twice; a label is no number; the release holds no posts.
    Source:
        The release's quirks were collected from the public loaders of USTC, HyFea, SKAPP and the challenge's samples.
    """
    root = _open_folder(Path(path))
    parts = [_read_part(root, "train")]
    if _has_part(root, "test"):
        parts.append(_read_part(root, "test"))
    return _posts_table(parts, root)


def read_test_part(path: str | Path) -> pd.DataFrame:
    """The test part of a release as ``read_release`` gives it; a train part may be missing, and is not read."""
    root = _open_folder(Path(path))
    return _posts_table([_read_part(root, "test")], root)


def _posts_table(parts: list[tuple[pd.DataFrame, dict[str, Column]]], root: Path) -> pd.DataFrame:
    """The posts of all parts, their columns typed."""
    posts = pd.concat([checked for checked, _ in parts], ignore_index=True)
    _refuse_duplicates(posts, root)
    columns, faults = type_columns({name: join_columns([given.pop(name) for _, given in parts]) for name in GIVEN})
    faults = {"image is a link out of the release (not read)": posts["lies_outside"].to_numpy(), **faults}
    columns["faults"] = add_faults(pd.Series("", posts.index, dtype=object), faults).astype("category")
    columns["split"] = posts["split"].astype("category")
    columns = {**posts, **columns}
    columns["Pathalias"] = _fill_alias(columns["Pathalias"], columns["Uid"])
    names = [*COLUMNS, *(f"{name}_vector" for name in DESCRIPTIONS if f"{name}_vector" in columns)]
    posts = pd.DataFrame({name: columns[name] for name in names}, copy=False)
    return join_external(posts, root)


def release_files(path: str | Path) -> list[Path]:
    """Every metadata file ``read_release`` reads or would read if it were there: a change in any of them matters."""
    root = Path(path)
    names = [root / folder.format(part=part) / name.format(part=part)
             for part in ("train", "test") for role in FILES for name in FILES[role] for folder in FOLDERS
             if (part, role) != ("test", "label")]  # fmt: skip
    return [*names, *external_files(root)]


# --- finding files ----------------------------------------------------------------------------------------------------


def _open_folder(root: Path) -> Path:
    if not root.exists():
        raise InputError(f"no folder {root}: unpack the SMPD release there, or name its folder with --data")
    if not root.is_dir():
        hint = "unpack it and give the folder" if root.suffix in (".zip", ".gz", ".tar") else "give the folder instead"
        raise InputError(f"{root} is a file, not the folder of a release: {hint}")
    try:
        os.listdir(root)
    except OSError as error:
        raise InputError(f"cannot read the folder {root} ({error.strerror}): check its permissions") from error
    return root


def _candidates(root: Path, part: str, role: str) -> list[Path]:
    paths = [root / folder.format(part=part) / name.format(part=part) for folder in FOLDERS for name in FILES[role]]
    return [path for path in paths if path.is_file()]


def _has_part(root: Path, part: str) -> bool:
    return any(_candidates(root, part, role) for role in FILES if role != "label")


def _find_file(root: Path, part: str, role: str) -> Path:
    found = _candidates(root, part, role)
    names = " or ".join(name.format(part=part) for name in FILES[role])
    if not found:
        raise InputError(
            f"{names} is missing in {root} (looked there and under {FOLDERS[1].format(part=part)}/): "
            "put the file of the release there"
        )
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found)
        raise InputError(f"{len(found)} files for the same thing: {listed}; keep the one that belongs to this release")
    if leads_out([str(found[0])], [root, found[0].parent])[0]:
        raise InputError(
            f"{found[0]} is a link to {found[0].resolve()}, which lies outside the release: copy the file itself there (the "
            "folder of the release may be a link as a whole)"
        )
    return found[0]


# --- reading one part -------------------------------------------------------------------------------------------------


def _read_part(root: Path, part: str) -> tuple[pd.DataFrame, dict[str, Column]]:
    """Ids, image, label and split of each post of the train or the test part, and the other columns as they stand in the
    files; the rows are verified to be aligned."""
    paths = {role: _find_file(root, part, role) for role in (*JSON_ROLES, "images")}
    if part == "train":
        paths["label"] = _find_file(root, part, "label")
    tables = {role: _read_table(paths[role], NEEDED[role]) for role in JSON_ROLES}
    lines = {role: _read_lines(path) for role, path in paths.items() if path.suffix == ".txt"}
    n_posts = _n_rows(tables[JSON_ROLES[0]])
    _drop_blank_end(lines, n_posts)
    n_rows = {role: _n_rows(table) for role, table in tables.items()} | {
        role: len(rows) for role, rows in lines.items()
    }
    _check_lengths({paths[role]: n for role, n in n_rows.items()})
    posts = _check_ids(tables, paths)
    posts["image_path"], posts["lies_outside"] = _image_paths(lines["images"], posts, root, part, paths["images"])
    posts["label"] = _read_labels(lines["label"], posts, paths["label"]) if part == "train" else np.nan
    posts["split"] = part
    columns = ChainMap(*tables.values())  # of a name in several files, the first one counts
    return posts, {name: columns.get(name, missing_column(n_posts)) for name in GIVEN}


def _n_rows(table: dict[str, Column]) -> int:
    return len(next(iter(table.values()), ()))


def _read_table(path: Path, needed: Iterable[str]) -> dict[str, Column]:
    table = _correct_names(read_json_table(path, {*COLUMNS, *SPELLINGS}))
    if absent := [name for name in needed if name not in table]:
        held = ", ".join(table).encode("utf-8", "replace").decode()[:500]
        raise InputError(
            f"{path} has no {', '.join(absent)}; it holds: {held or 'nothing'}. Copy it from the release again; in data of your "
            "own, what you have nothing for may be empty"
        )
    return table


def _correct_names(table: dict[str, Column]) -> dict[str, Column]:
    """The table with misspelt names corrected; where rows differ in spelling, the two columns complete each other."""
    for old, new in SPELLINGS.items():
        if old in table:
            misspelt = table.pop(old)
            table[new] = table[new].completed_by(misspelt) if new in table else misspelt
    return table


def _read_lines(path: Path) -> list[str]:
    try:
        lines = re.split("\r\n|\r|\n", read_bytes(path).decode("utf-8-sig"))
        return lines if lines[-1] else lines[:-1]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start:,}): copy it from the release again") from error


# --- rows that belong together ----------------------------------------------------------------------------------------


def _drop_blank_end(lines: dict[str, list[str]], n_posts: int) -> None:
    """Take away blank lines after the last post, as editors leave them."""
    for rows in lines.values():
        while len(rows) > n_posts and not rows[-1].strip():
            rows.pop()


def _check_lengths(n_rows: dict[Path, int]) -> None:
    if len(set(n_rows.values())) > 1:
        listed = ", ".join(f"{path.name} {n:,}" for path, n in n_rows.items())
        raise InputError(
            f"the files under {next(iter(n_rows)).parent} differ in length: {listed}. Every file must hold the same posts, "
            "one row each: copy the odd one from the release again"
        )


def _check_ids(tables: dict[str, dict[str, Column]], paths: dict[str, Path]) -> pd.DataFrame:
    """(Uid, Pid) of every row as text, equal in every file that carries them."""
    reference = tables[JSON_ROLES[0]]
    if absent := [name for name in ("Uid", "Pid") if name not in reference]:
        raise InputError(f"{paths[JSON_ROLES[0]]} has no {' and no '.join(absent)}, so its posts cannot be told apart")
    ids = pd.DataFrame({name: _as_id(reference[name]) for name in ("Uid", "Pid")})
    if (empty := ids.eq("").any(axis=1)).any():
        row = int(empty.argmax())
        raise InputError(
            f"{paths[JSON_ROLES[0]]}, row {row}: Uid {ids.Uid[row]!r}, Pid {ids.Pid[row]!r}; an id is missing: copy the file "
            "from the release again, or remove the post from all files"
        )
    _refuse_odd_ids(ids, paths[JSON_ROLES[0]])
    for role in JSON_ROLES[1:]:
        known = [name for name in ("Uid", "Pid") if name in tables[role]]
        if not known and role != "user":  # the user file of 2020 has rows but no ids
            raise InputError(f"{paths[role]} has neither Uid nor Pid, so its rows cannot be matched with the posts")
        for name in known:
            _check_same(ids[name], tables[role][name], reference[name], paths[role], paths[JSON_ROLES[0]])
    return ids


def _refuse_odd_ids(ids: pd.DataFrame, path: Path) -> None:
    """A Pid names a file and a row of the submission, so it can hold no slash; no id can hold what is no character."""
    if not NO_ID.search("".join(ids["Uid"])) and not NO_PID.search("".join(ids["Pid"])):
        return  # as in nearly every release, and looked up ten times faster
    odd = [bool(NO_ID.search(uid) or NO_PID.search(pid)) for uid, pid in ids.itertuples(index=False)]
    row = odd.index(True)
    raise InputError(
        f"{path}, row {row}: Uid {ids.Uid[row]!r}, Pid {ids.Pid[row]!r} ({sum(odd):,} such rows); expected ids without "
        "control characters and a Pid without slashes: copy the file from the release again"
    )


def _check_same(ids: pd.Series, found: Column, reference: Column, path: Path, reference_path: Path) -> None:
    if found.is_text_of(reference):
        return
    texts = _as_id(found)
    wrong = np.flatnonzero(texts != ids.to_numpy())
    if len(wrong):
        row = int(wrong[0])
        what = "holds the same posts in another order" if sorted(texts) == sorted(ids) else "holds other posts"
        raise InputError(
            f"{path} {what} than {reference_path.name}: row {row} has {ids.name} {texts[row]!r} where {ids[row]!r} is expected "
            f"({len(wrong):,} of {len(ids):,} rows differ). All files must list the posts in one order: copy the file from "
            "the release again"
        )


def _as_id(column: Column) -> np.ndarray:
    """(n,) ids as text: 12, 12.0 and "12" are one id; "" for what can be none, as a list."""
    ids = [
        value.strip() if type(value) is str else "" if isinstance(value, (list, dict, bool)) else id_text(value)
        for value in column.distinct
    ]
    return object_array(ids)[column.codes]


def _refuse_duplicates(posts: pd.DataFrame, root: Path) -> None:
    if posts["Pid"].is_unique:
        return
    twice = posts.duplicated(["Uid", "Pid"], keep=False)
    if twice.any():
        first = posts.index[twice][0]
        uid, pid = posts.loc[first, ["Uid", "Pid"]]
        rows = posts.index[posts.Uid.eq(uid) & posts.Pid.eq(pid)]
        n_train = int(posts.split.eq("train").sum())
        where = ", ".join(
            f"{posts.split[row]} row {row - (n_train if posts.split[row] == 'test' else 0)}" for row in rows
        )
        raise InputError(
            f"{root}: the post Uid {uid}, Pid {pid} appears {len(rows)} times ({where}); {int(twice.sum()):,} rows share their "
            "(Uid, Pid) with another. Every post must appear once: remove the copies from all files"
        )
    test = posts[posts.split.eq("test")]
    if (twice := test.duplicated("Pid", keep=False)).any():
        first = test[twice].iloc[0]
        rows = ", ".join(f"row {row}" for row in np.flatnonzero(test["Pid"] == first["Pid"]))
        raise InputError(
            f"{root}: test posts of different users share Pid {first['Pid']} ({rows}; the first of Uid {first['Uid']}). A "
            "submission could not tell them apart: copy the test files from the release again"
        )


def _image_paths(
    lines: list[str], ids: pd.DataFrame, root: Path, part: str, source: Path
) -> tuple[list[str], np.ndarray]:
    """Absolute image paths, "" for a post without one, and which were links; the list's own ids must fit the posts.

    An image that is a link out of the release counts as missing: what lies elsewhere is no part of it. The image folder as
    a whole may be a link, as large folders often are. The list says ``train/<Uid>/<Pid>.jpg`` where the archive unpacks to
    ``SMP_train_images/<Uid>/<Pid>.jpg``.
    """
    unpacked = f"SMP_{part}_images"
    folder = unpacked if not (root / part).is_dir() and (root / unpacked).is_dir() else part
    start = os.path.join(root, folder, "")
    uids, pids = ids["Uid"].tolist(), ids["Pid"].tolist()
    plain = {uid for uid in set(uids) if "/" not in uid and "\\" not in uid and uid != ".."}
    paths = []
    for row, (line, uid, pid) in enumerate(zip(lines, uids, pids, strict=True)):
        if line == f"{part}/{uid}/{pid}.jpg" and uid in plain:
            paths.append(f"{start}{uid}{os.sep}{pid}.jpg")
            continue
        steps = _image_steps(line, pid, part, f"{source}, line {row + 1}")
        if steps and steps[0] == part:
            steps[0] = folder
        paths.append(os.path.join(root, *steps) if steps else "")
    outside = leads_out(paths, [root, root / part, root / unpacked])
    return ["" if out else path for path, out in zip(paths, outside, strict=True)], outside


def _image_steps(line: str, pid: str, part: str, where: str) -> list[str]:
    """Folders and file name of an image inside the release, [] for a post without one."""
    relative = line.strip().replace("\\", "/")
    if relative.lower() in MISSING:
        return []
    steps = relative.split("/")
    if relative.startswith("/") or ".." in steps or ":" in steps[0] or NO_FILE_NAME.search(relative):
        raise InputError(
            f"{where}: {relative[:200]!r} leads out of the release or is no file name; expected {part}/<Uid>/<Pid>.jpg, here "
            f"for Pid {pid}. Copy the list from the release again"
        )
    if steps[-1].rsplit(".", 1)[0] != pid:
        raise InputError(
            f"{where}: image {relative[:200]!r} where the image of Pid {pid!r} is expected: the list is in another order than "
            "the posts, or belongs to another release. Copy it from the release again"
        )
    return steps


def _read_labels(lines: list[str], ids: pd.DataFrame, path: Path) -> np.ndarray:
    labels = to_floats(lines)
    if (wrong := ~(np.abs(labels) <= LARGEST_COUNT)).any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}, line {row + 1}: {lines[row].strip()[:60]!r} is not a number that a label can be ({int(wrong.sum()):,} "
            f"such lines). Every line must hold the popularity of one post, e.g. 6.23 with a decimal point, here that of "
            f"Uid {ids.Uid[row]}, Pid {ids.Pid[row]}: correct it, or copy the file from the release again"
        )
    return labels


def _fill_alias(aliases: np.ndarray, users: pd.Series) -> np.ndarray:
    """Pathalias, missing ones filled from another post of the same user."""
    missing = aliases == ""
    known = dict(zip(users[~missing][::-1], aliases[~missing][::-1], strict=True))  # of several, the user's first
    aliases[missing] = [known.get(user, "") for user in users[missing]]
    return aliases
