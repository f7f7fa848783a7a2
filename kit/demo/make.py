"""A synthetic SMPD release in the official layout, to try and test the kit without the real, gated data.

    python -m kit.demo --posts 3000 --out inputs/demo

writes, with the file and field names of the releases since 2022 and with their missing values and broken pictures,

    train_allmetadata_json/train_{category,text,temporalspatial_information,user_data,additional_information}.json
    train_allmetadata_json/{train_label.txt, train_img_filepath.txt}
    test_allmetadata_json/...                 the same without labels
    train/<Uid>/<Pid>.jpg  test/<Uid>/<Pid>.jpg
    answers/truth.csv                         split, Pid, label, score: no loader reads it, see `read_truth`
    DEMO.json                                 marks the folder as synthetic

`posts` says by which recipe the posts come about and how well they can be predicted at best. The same arguments give
the same bytes, wherever they are written.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from kit.base.errors import InputError
from kit.demo.pictures import motif_styles, write_pictures
from kit.demo.posts import DAY_S, FIRST_DAY, make_posts
from kit.release.marker import MARKER, is_demo
from kit.release.taxonomy import TAXONOMY_PATH, read_taxonomy

FORMAT_VERSION = 1
DEMO_POSTS = 3000  # a run of every notebook takes some minutes on two cores
MIN_POSTS = 50
TEST_SHARE = 0.37  # SMPD: 180,581 of 486,194
CHUNK_ROWS = 20_000
REPORT_EVERY_S = 10
CITIES = (  # name, latitude, longitude, timezone_id, timezone_offset
    ("London, UK", 51.507, -0.128, "Europe/London", "+00:00"),
    ("Paris, France", 48.857, 2.352, "Europe/Paris", "+01:00"),
    ("Berlin, Germany", 52.520, 13.405, "Europe/Berlin", "+01:00"),
    ("Madrid, Spain", 40.417, -3.704, "Europe/Madrid", "+01:00"),
    ("Roma, Italia", 41.903, 12.496, "Europe/Rome", "+01:00"),
    ("New York, USA", 40.713, -74.006, "US/Eastern", "-05:00"),
    ("Chicago, USA", 41.878, -87.630, "US/Central", "-06:00"),
    ("Denver, USA", 39.739, -104.990, "US/Mountain", "-07:00"),
    ("Seattle, USA", 47.606, -122.332, "US/Pacific", "-08:00"),
    ("Toronto, Canada", 43.653, -79.383, "US/Eastern", "-05:00"),
    ("S?o Paulo, Brasil", -23.551, -46.633, "America/Sao_Paulo", "-03:00"),
    ("Tokyo, Japan", 35.676, 139.650, "Asia/Tokyo", "+09:00"),
    ("Sydney, Australia", -33.869, 151.209, "Australia/Sydney", "+10:00"),
    ("Mumbai, India", 19.076, 72.878, "Asia/Calcutta", "+05:30"),
)
DESCRIPTIONS = (
    "", None, "I take pictures of what I see.", "Amateur photographer from {city}.",
    "All rights reserved. Please ask before use.",
    'See more at <a href="http://www.example.org/{number}" rel="nofollow">my site</a>',
    "<b>Hello!</b>\n\nCamera: Canon EOS {number}D. Thanks for your visits, favs and comments :)",
    'Born in {city}.\n<img src="http://www.example.org/{number}.gif" alt="" /> Prints on request.', "???? ?? ??????",
    "Just a hobby, since {number}. Follow me if you like what you see, I always have a look at who comes by.",
)  # fmt: skip
ALIAS_WORDS = ("light", "lena", "pixel", "north", "marco", "foto", "river", "sam", "blue", "nomad", "atlas", "ivy")


def make_release(
    out: Path | str, n_posts: int = DEMO_POSTS, seed: int = 0, images: bool = True, test_share: float = TEST_SHARE
) -> Path:
    """Path of a synthetic release, written whole or not at all; an older demo at the same place is replaced.

    Args:
        out: folder to make. A folder with anything but a demo in it is refused.
        n_posts: train and test posts together, at least 50. SMPD has 486,194.
        seed: 0 or more; the same seed gives the same bytes.
        images: False leaves the pictures out (the path lists are still there).
        test_share: part of the posts, the latest ones, that become the test split.

    Raises:
        InputError: impossible arguments, or out holds files that are not a demo's.
    """
    out = Path(out).resolve()
    _check_arguments(out, n_posts, seed, test_share)
    arguments = {"n_posts": n_posts, "seed": seed, "images": images, "test_share": test_share}
    partial = out.parent / f".{out.name}.partial"
    _remove_leftover(partial)
    partial.mkdir(parents=True)
    try:
        _write_json(partial / MARKER, {"kind": "synthetic SMPD release", "version": FORMAT_VERSION, **arguments,
                                       "generator_sha256": generator_hash()})  # fmt: skip
        _write_release(partial, n_posts, seed, images, test_share)
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def read_truth(path: Path | str) -> pd.DataFrame | None:
    """Answers of a demo: split, Pid (str), label, score, in the order of the release; None for any other folder.

    `score` is the label expected from everything that can be seen: its SRC with the test labels is the ceiling.
    """
    if not is_demo(path):
        return None
    return pd.read_csv(Path(path) / "answers" / "truth.csv", dtype={"Pid": str})


def generator_hash() -> str:
    """SHA-256 of what the generator consists of: a demo with another hash may hold other bytes."""
    digest = hashlib.sha256()
    sources = [Path(__file__).with_name(name) for name in ("make.py", "posts.py", "texts.py", "pictures.py")]
    for path in (*sources, TAXONOMY_PATH):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_arguments(out: Path, n_posts: int, seed: int, test_share: float) -> None:
    if n_posts < MIN_POSTS:
        raise InputError(f"--posts is {n_posts}, expected at least {MIN_POSTS}: ask for more posts")
    if seed < 0:
        raise InputError(f"--seed is {seed}, expected 0 or more")
    if not 0.05 <= test_share <= 0.8:
        raise InputError(f"--test-share is {test_share}, expected a number from 0.05 to 0.8")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, expected a folder to make: name another place")
    if out.exists() and any(out.iterdir()) and not is_demo(out):
        raise InputError(
            f"--out {out} holds files that this command did not make and would replace: name another folder"
        )


def _remove_leftover(partial: Path) -> None:
    """Clear what a killed generation left; never anything else."""
    if not partial.exists():
        return
    if any(partial.iterdir()) and not is_demo(partial):
        raise InputError(f"{partial} is in the way and is not a leftover of this command: move it")
    shutil.rmtree(partial)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the finished release to its place; what is there is removed only after it was moved aside."""
    old = out.parent / f".{out.name}.old"
    if is_demo(old):
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------- files


def _write_release(root: Path, n_posts: int, seed: int, images: bool, test_share: float) -> None:
    report = _Reporter()
    posts, users = make_posts(n_posts, seed, test_share)
    report(f"{n_posts:,} posts drawn")
    rng = np.random.default_rng([seed, FIRST_DAY])
    profiles = _profiles(users, rng)
    uid = np.array([f"{number}@N{rest:02d}" for number, rest in profiles["number"]], dtype=object)
    posts["Uid"], posts["Pid"] = uid[posts["user"]], posts["Pid"].astype(str)
    fields = _post_fields(posts, profiles, rng)
    for split, is_test in (("train", False), ("test", True)):
        rows = np.flatnonzero(posts["is_test"].to_numpy() == is_test)
        _write_split(root, split, fields, rows, profiles, posts)
        report(f"{split} metadata written: {len(rows):,} posts")
    _write_answers(root / "answers" / "truth.csv", posts)
    if images:
        split = np.where(posts["is_test"], "test", "train")
        paths = [root / s / u / f"{p}.jpg" for s, u, p in zip(split, posts["Uid"], posts["Pid"], strict=True)]
        for folder in sorted({path.parent for path in paths}):
            folder.mkdir(parents=True)
        for n_done in write_pictures(posts, paths, motif_styles(read_taxonomy()), seed):
            report(f"pictures {n_done:,} of {n_posts:,}")


def _write_split(root: Path, split: str, fields: dict, rows: np.ndarray, profiles: dict, posts: pd.DataFrame) -> None:
    """The five JSON files, the path list and (train) the labels of one split."""
    folder = root / f"{split}_allmetadata_json"
    folder.mkdir()
    ids = {name: fields["ids"][name][rows] for name in ("Pid", "Uid")}
    for name in ("category", "text", "temporalspatial_information", "additional_information"):
        _write_rows(folder / f"{split}_{name}.json", ids | {key: values[rows] for key, values in fields[name].items()})
    user = posts["user"].to_numpy()[rows]
    _write_columns(
        folder / f"{split}_user_data.json", ids, {name: values[user] for name, values in profiles["fields"].items()}
    )
    paths = [f"{split}/{uid}/{pid}.jpg\n" for uid, pid in zip(ids["Uid"], ids["Pid"], strict=True)]
    (folder / f"{split}_img_filepath.txt").write_bytes("".join(paths).encode())
    if split == "train":
        labels = "".join(f"{label:.2f}\n" for label in posts["label"].to_numpy()[rows])
        (folder / "train_label.txt").write_bytes(labels.encode())


def _post_fields(posts: pd.DataFrame, profiles: dict, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Values of the row-wise files, each an object array with one entry per post, missing ones spelled as in SMPD."""
    n, user = len(posts), posts["user"].to_numpy()
    taxonomy = read_taxonomy()
    names = {
        key.capitalize(): taxonomy[key].to_numpy(object)[posts["concept"]]
        for key in ("category", "subcategory", "concept")
    }
    title = posts["Title"].to_numpy(object)
    title[(title == "") & (rng.random(n) < 0.3)] = None
    has_place = (rng.random(len(profiles["city"])) < 0.2)[user] & (rng.random(n) < 0.6)
    latitude, longitude = (np.array([city[i] for city in CITIES])[profiles["city"]][user] for i in (1, 2))
    spread = rng.normal(0, 0.05, (2, n))
    alias = np.where(rng.random(n) < 0.03, "None", profiles["alias"][user])  # some users lack it in some posts
    return {
        "ids": {"Pid": posts["Pid"].to_numpy(object), "Uid": posts["Uid"].to_numpy(object)},
        "category": names,
        "text": {
            "Title": title,
            "Mediatype": np.where(rng.random(n) < 0.015, "video", "photo").astype(object),
            "Alltags": posts["Alltags"].to_numpy(object),
        },
        "temporalspatial_information": {
            "Postdate": posts["time"].astype(str).to_numpy(object),
            "Latitude": _numbers(latitude + spread[0], has_place, "0"),
            "Longitude": _numbers(longitude + spread[1], has_place, ""),
            "Geoaccuracy": np.where(has_place, rng.integers(9, 17, n), 0).astype(str).astype(object),
        },
        "additional_information": {
            "Pathalias": alias.astype(object),
            "Ispublic": np.full(n, "1", dtype=object),
            "Mediastatus": np.full(n, "ready", dtype=object),
        },
    }


def _profiles(users: pd.DataFrame, rng: np.random.Generator) -> dict:
    """What the site shows of each user: number of the Uid, city, alias and, in "fields", the columns of user_data."""
    n = len(users)
    number = list(zip((rng.permutation(n) + 1).tolist(), rng.integers(0, 100, n).tolist(), strict=True))
    city, digits = rng.integers(0, len(CITIES), n), rng.integers(10, 9999, n)
    words = rng.integers(0, len(ALIAS_WORDS), (n, 2))
    alias = [f"{ALIAS_WORDS[a]}{ALIAS_WORDS[b]}{d}" for (a, b), d in zip(words, digits, strict=True)]
    alias = np.where(rng.random(n) < 0.3, "None", np.array(alias, dtype=object))
    taken = users["joined"].to_numpy() - np.round(rng.exponential(200, n) * DAY_S).astype(int)
    taken_text = np.datetime_as_string(taken.astype("datetime64[s]")).astype(object)
    taken_text = np.array([text.replace("T", " ") for text in taken_text], dtype=object)
    odd = rng.random(n)
    taken_text[odd < 0.01], taken_text[(odd >= 0.01) & (odd < 0.02)] = "0000-00-00 00:00:00", "1904-01-01 00:00:00"
    shown = users["has_profile"].to_numpy()
    text = [
        body and body.format(city=CITIES[c][0], number=d)
        for body, c, d in zip(
            np.array(DESCRIPTIONS, dtype=object)[rng.integers(0, len(DESCRIPTIONS), n)], city, digits, strict=True
        )
    ]
    columns = {
        "photo_firstdate": _or(users["joined"].astype(str), shown, "None"),
        "photo_count": _or(users["photo_count"], shown, None),
        "ispro": _or(users["is_pro"].astype(int), shown, None),
        "canbuypro": _or(users["can_buy_pro"].astype(int), shown, None),
        "timezone_offset": _or([CITIES[c][4] for c in city], shown, None),
        "photo_firstdatetaken": _or(taken_text, shown & (odd < 0.95), None),
        "timezone_id": _or([CITIES[c][3] for c in city], shown, None),
        "user_description": _or(text, shown, None),
        "location_description": _or([CITIES[c][0] for c in city], shown & (rng.random(n) < 0.5), None),
    }
    return {"number": number, "city": city, "alias": alias, "fields": columns}


def _or(values, shown: np.ndarray, missing) -> np.ndarray:
    """Values as an object array of plain Python objects, `missing` where not shown."""
    array = np.empty(len(shown), dtype=object)
    array[:] = values.tolist() if hasattr(values, "tolist") else list(values)
    array[~shown] = missing
    return array


def _numbers(values: np.ndarray, present: np.ndarray, missing: str) -> np.ndarray:
    return np.array(
        [f"{v:.6f}" if p else missing for v, p in zip(values.tolist(), present.tolist(), strict=True)], dtype=object
    )


def _write_rows(path: Path, columns: dict[str, np.ndarray]) -> None:
    """A JSON list with one object per post, in chunks so that memory stays small."""
    names, n = list(columns), len(next(iter(columns.values())))
    with path.open("wb") as file:
        for start in range(0, n, CHUNK_ROWS):
            part = [values[start : start + CHUNK_ROWS].tolist() for values in columns.values()]
            chunk = orjson.dumps([dict(zip(names, row, strict=True)) for row in zip(*part, strict=True)])
            file.write((b"[" if start == 0 else b", ") + chunk[1:-1])
        file.write(b"]")


def _write_columns(path: Path, *groups: dict[str, np.ndarray]) -> None:
    """{"column": {"0": ..., "1": ...}, ...}, the shape of user_data.json since 2022."""
    with path.open("wb") as file:
        file.write(b"{")
        for i, (name, values) in enumerate(item for group in groups for item in group.items()):
            file.write((b", " if i else b"") + orjson.dumps(name) + b": ")
            file.write(orjson.dumps(dict(zip(map(str, range(len(values))), values.tolist(), strict=True))))
        file.write(b"}")


def _write_answers(path: Path, posts: pd.DataFrame) -> None:
    path.parent.mkdir()
    truth = pd.DataFrame(
        {
            "split": np.where(posts["is_test"], "test", "train"),
            "Pid": posts["Pid"],
            "label": posts["label"],
            "score": posts["score"],
        }
    )
    truth.to_csv(path, index=False, float_format="%.4f", lineterminator="\n")


def _write_json(path: Path, content: dict) -> None:
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


class _Reporter:
    """Prints a line at most every REPORT_EVERY_S seconds."""

    def __init__(self):
        self.start = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self.last >= REPORT_EVERY_S:
            print(f"demo: {line}, {now - self.start:.0f} s", flush=True)
            self.last = now
