"""Everything a release can hold that it should not: handled and counted, or refused in words; never a traceback.

One table of cases. A handled case must be readable, counted under a name that a reader understands, and harmless for
features, folds and a model. A refused case must say what is wrong, where, and what to do, from Python and from the
command line alike.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
from PIL import Image

from kit.base.errors import InputError
from kit.boosting.fit import Machine, Training, fit_folds
from kit.features.statistic import statistic_block
from kit.pipeline import check, command
from kit.release.external import EXTERNAL
from kit.release.images import bad_images, decode_image
from kit.release.quality import quality_table, release_facts
from kit.release.smpd import read_release
from kit.release.values import LONGEST_TEXT
from kit.run.directory import Run
from kit.run.folds import make_folds
from kit.run.matched import all_folds
from kit.submission.__main__ import main as check_submission
from tests.conftest import Release

Spoil = Callable[[Release], object]
LEAVES = {"min_data_in_leaf": 2}  # few posts, small leaves
ROW = 5  # of the train part, which most cases spoil: Uid 1@N11, Pid 115


@dataclass(frozen=True)
class Case:
    """A bad input and what must come of it.

    Attributes:
        name: for the list of tests.
        rows: spoils the rows before they are written.
        files: spoils the files after that.
        refused: what the message must say (a regular expression); None for a case that is handled.
        folds_refused: the same for a release that can be read and cannot be divided by author.
        counted: row of the quality table, and the number of train and test posts there.
        image: why the image of ROW is replaced by grey; None where nothing is said about it.
    """

    name: str
    rows: Spoil = lambda release: None
    files: Spoil = lambda release: None
    refused: str | None = None
    folds_refused: str | None = None
    counted: tuple[str, int, int] | None = None
    image: str | None = None


# --- ways to spoil a release ------------------------------------------------------------------------------------------


def put(role: str, part: str = "train", row: int | slice = ROW, **values: object) -> Spoil:
    """Set values in one row (or a slice of them) of a file."""

    def spoil(release: Release) -> None:
        rows = release.parts[part][role]
        for one in rows[row] if isinstance(row, slice) else [rows[row]]:
            one.update(values)

    return spoil


def put_everywhere(role: str, **values: object) -> Spoil:
    return both(put(role, "train", slice(None), **values), put(role, "test", slice(None), **values))


def both(*spoils: Spoil) -> Spoil:
    return lambda release: [spoil(release) for spoil in spoils]


def put_ids(part: str = "train", row: int = ROW, **ids: str) -> Spoil:
    """Other ids for one post, the same in all files."""

    def spoil(release: Release) -> None:
        for role in release.NAMES:
            release.parts[part][role][row].update(ids)
        uid, pid = release.parts[part]["images"][row]
        release.parts[part]["images"][row] = (ids.get("Uid", uid), ids.get("Pid", pid))

    return spoil


def label(value: object, row: int | slice = ROW) -> Spoil:
    def spoil(release: Release) -> None:
        labels = release.parts["train"]["label"]
        labels[row] = [value] * len(labels[row]) if isinstance(row, slice) else value

    return spoil


def rewrite(role: str, change: Callable[[bytes], bytes], part: str = "train") -> Spoil:
    def spoil(release: Release) -> None:
        path = release.path(part, role)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def rewrite_all(change: Callable[[bytes], bytes], suffix: str) -> Spoil:
    return lambda release: [path.write_bytes(change(path.read_bytes())) for path in release.root.glob(f"*{suffix}")]


def by_columns(release: Release) -> None:
    """The user file of 2020: a table by columns, without ids, its row names sorted as words."""
    for part, roles in release.parts.items():
        order = sorted(range(len(roles["user"])), key=str)
        columns = {name: {str(i): roles["user"][i][name] for i in order} for name in ("photo_count", "ispro")}
        release.path(part, "user").write_text(json.dumps(columns))


def misspell(part: str, rows: slice) -> Spoil:
    def spoil(release: Release) -> None:
        for row in release.parts[part]["text"][rows]:
            row["Tile"] = row.pop("Title")

    return spoil


def drop_key(role: str, key: str, rows: slice = slice(None)) -> Spoil:
    return lambda release: [row.pop(key) for row in release.parts["train"][role][rows]]


def image_path(release: Release, row: int = ROW) -> Path:
    uid, pid = release.parts["train"]["images"][row]
    return release.root / "train" / uid / f"{pid}.jpg"


def picture(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_bytes(make: Callable[[], bytes]) -> Spoil:
    return lambda release: image_path(release).write_bytes(make())


def image_line(text: str) -> Spoil:
    return rewrite(
        "images", lambda raw: b"\n".join([*raw.split(b"\n")[:ROW], text.encode(), *raw.split(b"\n")[ROW + 1 :]])
    )


def image_link(target: Callable[[Release], Path]) -> Spoil:
    def spoil(release: Release) -> None:
        path = image_path(release)
        path.unlink()
        path.symlink_to(target(release))

    return spoil


def secret(release: Release) -> Path:
    """A picture outside the release that nobody may read."""
    path = release.root.parent / "secret.jpg"
    Image.new("RGB", (8, 8), "purple").save(path)
    return path


def move_out_and_link(name: str) -> Spoil:
    def spoil(release: Release) -> None:
        elsewhere = release.root.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        shutil.move(release.root / name, elsewhere / Path(name).name)
        (release.root / name).symlink_to(elsewhere / Path(name).name)

    return spoil


def link_release(release: Release) -> None:
    release.root.rename(release.root.with_name("away"))
    release.root.symlink_to(release.root.with_name("away"))


def one_user(release: Release) -> None:
    for part, roles in release.parts.items():
        for row in range(len(roles["text"])):
            put_ids(part, row, Uid="me")(release)


def replace_image(make: Callable[[Path], object]) -> Spoil:
    def spoil(release: Release) -> None:
        path = image_path(release)
        path.unlink()
        make(path)

    return spoil


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 black pixels in 110 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(100 * 3751)) for _ in range(300)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def noise(kind: str, mode: str = "RGB") -> bytes:
    return picture(Image.effect_noise((64, 64), 80).convert(mode), kind)


def scraped(**values: object) -> Spoil:
    """``user_additional.csv`` with one known user whose statistics are spoilt."""

    def spoil(release: Release) -> None:
        row = {"Pathalias": "anna", **dict.fromkeys(EXTERNAL, 5), **values}
        other = {"Pathalias": "bert", **dict.fromkeys(EXTERNAL, 7)}
        pd.DataFrame([row, other]).to_csv(release.root / "user_additional.csv", index=False)

    return both(spoil)


def name_users(release: Release) -> None:
    for row in release.parts["train"]["additional"]:
        row["Pathalias"] = "anna" if row["Uid"] == "1@N11" else "bert"


def one_class(release: Release) -> None:
    put_everywhere("category", Category="A", Subcategory="s0", Concept="c0")(release)


def vectors(value: str) -> Spoil:
    good = ",".join(["0.5"] * 400)
    return both(put_everywhere("user", user_description=good), put("user", user_description=value))


LOST = "(taken as missing)"
LIES_OUTSIDE = ("image is a link out of the release (not read)", 1, 0)
NO_COUNT = f"photo_count is no number from 0 to 1,000,000,000 {LOST}"
NO_LATITUDE = (f"Latitude is no number from -90 to 90 {LOST}", 1, 0)
NO_LONGITUDE = (f"Longitude is no number from -180 to 180 {LOST}", 1, 0)
NO_POSTDATE = f"Postdate is no date from 1826 to 2099 {LOST}"
CUT = f"has more than {LONGEST_TEXT:,} characters (cut there)"
GONE = ("image file missing", 1, 0)
NO_FILE = ("image file is a folder or no plain file", 1, 0)
NO_PICTURE = "image file is no picture (a web page, or another format)"

STRUCTURE = [
    Case("missing file", files=lambda r: r.path("train", "time").unlink(), refused="temporalspatial.*is missing in .*put"),
    Case("empty file", files=rewrite("text", lambda raw: b""), refused=r"train_text.json is empty: copy"),
    Case("only white space", files=rewrite("user", lambda raw: b" \n\t\n"), refused="train_user_data.json is empty: copy"),
    Case("invalid JSON", files=rewrite("text", lambda raw: raw.replace(b":", b"=", 1)), refused="not valid JSON.*line 1.*Copy"),
    Case("truncated JSON", files=rewrite("time", lambda raw: raw[:-99]), refused="not valid JSON.*probably incomplete"),
    Case("JSON is a number", files=rewrite("text", lambda raw: b"7"), refused="holds a JSON int; expected a list of posts"),
    Case("JSON is a text", files=rewrite("text", lambda raw: b'"posts"'), refused="holds a JSON str; expected"),
    Case("JSON is null", files=rewrite("text", lambda raw: b"null"), refused="train_text.json holds no posts"),
    Case("keys in half characters", files=rewrite("text", lambda raw: b'[{"\\ud800": 1}]'), refused="holds: [?]. Copy"),
    Case("rows wrapped",
         files=rewrite("text", lambda raw: b'{"rows": ' + raw + b"}"), refused="no Title, Alltags; it holds: rows.*Copy"),
    Case("a row is a list", rows=lambda r: r.parts["train"]["text"].__setitem__(ROW, [1]), refused="row 5: expected one post"),
    Case("one post by name", files=rewrite("user", lambda raw: b'{"ispro": "1"}'), refused="column 'ispro' is a str; expected"),
    Case("nested without end", files=rewrite("text", lambda raw: b"[" * 100_000), refused="cannot be read as JSON.*Copy"),
    Case("number of 5,000 digits", files=rewrite("time", lambda raw: raw.replace(b'"0"', b"9" * 5000, 1)), refused="digits"),
    Case("UTF-16 text file", files=rewrite("label", lambda raw: raw.decode().encode("utf-16")), refused="label.txt is not UTF-8"),
    Case("Latin-1 JSON", rows=put("text", Title="caf\xe9"), files=rewrite("text", lambda raw: raw.replace(b"\\u00e9", b"\xe9")),
         refused="train_text.json is not UTF-8 text .byte.*copy"),
    Case("UTF-16 JSON", files=rewrite("text", lambda raw: raw.decode().encode("utf-16"))),
    Case("byte-order marks", files=both(*(rewrite_all(lambda raw: b"\xef\xbb\xbf" + raw, end) for end in (".json", ".txt")))),
    Case("fewer rows", files=rewrite("additional", lambda raw: json.dumps(json.loads(raw)[:-1]).encode()),
         refused="differ in length: .*train_additional_information.json 39.*copy"),
    Case("fewer labels", rows=lambda r: r.parts["train"]["label"].pop(), refused="differ in length: .*train_label.txt 39"),
    Case("more labels", rows=lambda r: r.parts["train"]["label"].append(5.0), refused="differ in length: .*train_label.txt 41"),
    Case("fewer images", rows=lambda r: r.parts["test"]["images"].pop(), refused="differ in length: .*test_img_filepath.txt 11"),
    Case("ids of another post", rows=put("time", Pid="999"), refused="holds other posts than .*row 5 has Pid '999'.*copy"),
    Case("ids of another user", rows=put("user", Uid="x"), refused="holds other posts than .*row 5 has Uid 'x' where '1@N11'"),
    Case("files in another order", rows=lambda r: r.parts["test"]["user"].reverse(), refused="same posts in another order"),
    Case("duplicated post", rows=put_ids(row=6, Pid="115"), refused="Pid 115 appears 2 times .train row 5, train row 6"),
    Case("post in train and test", rows=put_ids("test", 0, Uid="1@N11", Pid="115"), refused="train row 5, test row 0.*remove"),
    Case("Pid shared in train", rows=put_ids(row=20, Pid="115"), counted=("same Pid as a post of another user", 2, 0)),
    Case("Pid shared by test posts", rows=both(put_ids("test", 0, Uid="a", Pid="7"), put_ids("test", 3, Uid="b", Pid="7")),
         refused="test posts of different users share Pid 7 .row 0, row 3.*copy"),
    Case("extra keys", rows=put("text", label=99, split="test", faults="none", image_path="/etc/passwd", more={"a": 1})),
    Case("a key missing everywhere", rows=drop_key("category", "Concept"), refused="category.json has no Concept; it holds: Uid"),
    Case("a key missing once", rows=drop_key("time", "Postdate", slice(ROW, ROW + 1)), counted=("no posting date", 1, 0)),
    Case("Title misspelt", rows=misspell("train", slice(None))),
    Case("Title misspelt in half the rows", rows=misspell("train", slice(0, 20))),
    Case("user file by columns", files=by_columns),
    Case("label with text", rows=label("many"), refused="label.txt, line 6: 'many' is not a number.*Uid 1@N11, Pid 115"),
    Case("blank lines at the end", files=rewrite_all(lambda raw: raw + b"\n \n\n", ".txt")),
    Case("a blank line inside", files=rewrite("label", lambda raw: raw.replace(b"\n", b"\n\n", 1)), refused="differ in length"),
    Case("an empty label", rows=label(""), refused="line 6: '' is not a number.*Pid 115"),
    Case("Windows line ends", files=rewrite_all(lambda raw: raw.replace(b"\n", b"\r\n"), ".txt")),
    Case("numbers as text", rows=put("time", Latitude=" 5.5 ", Longitude="1e1", Geoaccuracy="16")),
    Case("dates as numbers", rows=put("time", Postdate=1430000000.0)),
    Case("file is a folder", files=both(lambda r: r.path("train", "text").unlink(), lambda r: r.path("train", "text").mkdir()),
         refused="train_text.json or train_tags.json is missing"),
    Case("file is a link out", files=move_out_and_link("train_text.json"), refused="is a link to .*outside the release: copy"),
    Case("release is a link", files=link_release),
    Case("no posts", files=rewrite_all(lambda raw: b"[]", ".json"), refused="holds no posts: this release is empty"),
]  # fmt: skip

TEXT = [
    Case("emoji", rows=put("text", Title="\U0001f468\u200d\U0001f469\u200d\U0001f467", Alltags="\U0001f600 \u2764\ufe0f")),
    Case("right-to-left", rows=put("text", Title="\u202e\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd")),
    Case("null bytes", rows=put("text", Title="a\x00b\x07"), counted=("Title has control characters (taken out)", 1, 0)),
    Case("lone surrogates", rows=put("text", "test", 1, Alltags="sea \ud800"),
         counted=('Alltags has broken characters (now "?")', 0, 1)),
    Case("title of 1 MB", rows=put("text", Title="word " * 200_000),
         counted=(f"Title {CUT}", 1, 0)),
    Case("one word of 1 MB", rows=put_everywhere("user", user_description="x" * 1_000_000),
         counted=(f"user_description {CUT}", 40, 12)),
    Case("10,000 tags, twice", rows=put("text", row=slice(5, 7), Alltags=" ".join(f"t{i}" for i in range(10_000))),
         counted=(f"Alltags {CUT}", 2, 0)),
    Case("HTML", rows=put("text", Title="<script>alert(1)</script>", Alltags="&lt;b&gt; </td>")),
    Case("only digits", rows=put_everywhere("text", Title="12345", Alltags="1 22 333")),
    Case("no text anywhere", rows=both(put_everywhere("text", Title="", Alltags=""), put_everywhere("user", user_description="")),
         counted=("neither title nor tags", 40, 12)),
    Case("null texts", rows=put("text", Title=None, Alltags=None)),
    Case("tags as a list", rows=put("text", Alltags=["a", "b c", 7])),
    Case("title as a table", rows=put("text", Title={"text": "a"}), counted=(f"Title is no text {LOST}", 1, 0)),
    Case("title true", rows=put("text", Title=True), counted=(f"Title is no text {LOST}", 1, 0)),
    Case("tags in nested lists", rows=put("text", Alltags=[["a"], {"b": 1}]), counted=(f"Alltags is no text {LOST}", 1, 0)),
    Case("vector of another length", rows=vectors("0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5"),
         counted=(f"user_description is no list of numbers as the others {LOST}", 1, 0)),
    Case("vector with inf", rows=vectors(",".join(["1e999"] * 400)),
         counted=(f"user_description is no list of numbers as the others {LOST}", 1, 0)),
]  # fmt: skip

NUMBERS = [
    Case("NaN and Infinity", rows=put("user", photo_count=float("nan"), ispro=float("inf")),
         counted=(f"ispro is no number from -1,000,000,000 to 1,000,000,000 {LOST}", 1, 0)),
    Case("1e308", rows=put("user", "test", 2, photo_count=1e308), counted=(NO_COUNT, 0, 1)),
    Case("a whole number beyond all floats", rows=put("user", photo_count=10**400),
         counted=(NO_COUNT, 1, 0)),
    Case("exponent of eleven digits", rows=put("time", Latitude="1e99999999999"), counted=NO_LATITUDE),
    Case("digits with a low line", rows=put("time", Latitude="1_0"), counted=NO_LATITUDE),
    Case("negative photo_count", rows=put("user", photo_count="-3"), counted=(NO_COUNT, 1, 0)),
    Case("decimal comma", rows=put("time", Latitude="52,5"), counted=NO_LATITUDE),
    Case("latitude 999", rows=put("time", Latitude="999", Longitude="-181", Geoaccuracy="16"),
         counted=NO_LATITUDE),
    Case("number as a list", rows=put("time", Longitude=[1, 2]), counted=NO_LONGITUDE),
    Case("negative date", rows=put("time", Postdate="-5"), counted=("Postdate lies before 1990 (kept)", 1, 0)),
    Case("date before photography", rows=put("time", Postdate="-9999999999"), counted=(NO_POSTDATE, 1, 0)),
    Case("date beyond 2100", rows=put("time", Postdate="4102444800"), counted=(NO_POSTDATE, 1, 0)),
    Case("one date in milliseconds", rows=put("time", Postdate=1430000000000), counted=(NO_POSTDATE, 1, 0)),
    Case("date of year 9999", rows=put("user", photo_firstdatetaken="9999-12-31 00:00:00"),
         counted=(f"photo_firstdatetaken is no date from 1826 to 2099 {LOST}", 1, 0)),
    Case("date true", rows=put("time", Postdate=True), counted=(NO_POSTDATE, 1, 0)),
    Case("no date anywhere in test", rows=put("time", "test", slice(None), Postdate="soon"),
         counted=(NO_POSTDATE, 0, 12)),
    Case("flags true and false", rows=both(put("user", ispro=True), put("additional", Ispublic=False))),
    Case("latitude true", rows=put("time", Latitude=True), counted=NO_LATITUDE),
    Case("time zone in words", rows=put("user", timezone_offset="Paris"),
         counted=(f'timezone_offset is nothing like "+01:00" {LOST}', 1, 0)),
    Case("scraped inf and words", rows=name_users, files=scraped(totalViews="inf", totalFaves="many"),
         counted=(f"scraped user statistics with a value that is no count {LOST}", 4, 0)),
    Case("scraped columns missing", files=lambda r: (r.root / "user_additional.csv").write_text("a,b\n1,2\n"),
         refused="user_additional.csv has no column Pathalias"),
]  # fmt: skip

USERS_AND_CLASSES = [
    Case("every test user is new", counted=("user not in the train part", 0, 12)),
    Case("Uid with slashes", rows=put_ids(Uid="a/b\\c")),
    Case("Uid ..", rows=put_ids(Uid=".."), refused="img_filepath.txt, line 6: 'train/../115.jpg' leads out of the release"),
    Case("Uid with null byte", rows=put_ids(Uid="a\x00"), refused=r"row 5: Uid 'a\\x00', Pid '115'.*expected ids without"),
    Case("Uid half a surrogate", rows=put_ids(Uid="a"), files=rewrite_all(lambda raw: raw.replace(b'"a"', b'"\\ud800"'), ".json"),
         refused=r"row 5: Uid '\\ud800'.*expected ids"),
    Case("Pid with slash", rows=put_ids(Pid="x/115"), refused="row 5: Uid '1@N11', Pid 'x/115'.*a Pid without slashes"),
    Case("Pid is a list", rows=put_ids(Pid=["115"]), refused="row 5: Uid '1@N11', Pid ''; an id is missing: copy"),
    Case("empty Uid", rows=put_ids(Uid=""), refused="train_text.json, row 5: Uid '', Pid '115'; an id is missing"),
    Case("Uid null", rows=put("text", Uid=None), refused="train_text.json, row 5: Uid '', Pid '115'; an id is missing"),
    Case("one user only", rows=one_user, folds_refused="found 1 authors"),
    Case("one class", rows=one_class),
    Case("class only in test", rows=put("category", "test", 3, Subcategory="new"),
         counted=("subcategory not in the train part", 0, 1)),
    Case("class of one post", rows=put("category", Subcategory="own"), counted=("subcategory with one train post only", 1, 0)),
    Case("missing category", rows=put("category", Category=None, Subcategory="None"), counted=("no category", 1, 0)),
    Case("unknown category", rows=put("category", "test", 3, Category="\U0001f600 new")),
    Case("category as a number", rows=put("category", Category=7)),
    Case("category as a table", rows=put("category", Category={"a": 1}), counted=(f"Category is no text {LOST}", 1, 0)),
    Case("labels all equal", rows=label(5.0, slice(None))),
    Case("negative label", rows=label(-2.5), counted=("label below 0", 1, 0)),
    Case("label nan", rows=label("nan"), refused="line 6: 'nan' is not a number.*Pid 115.*correct it"),
    Case("label inf", rows=label("inf"), refused="line 6: 'inf' is not a number"),
    Case("label with an exponent of eleven digits", rows=label("1e99999999999"), refused="line 6: '1e99999999999' is not a n"),
    Case("label 1e308", rows=label("1e308"), refused="line 6: '1e308' is not a number that a label can be"),
    Case("label with decimal comma", rows=label("1,5"), refused="line 6: '1,5' is not a number.*decimal point"),
]  # fmt: skip

IMAGES = [
    Case("image missing", files=replace_image(lambda path: None), counted=GONE, image="missing file"),
    Case("no image line", files=image_line(""), counted=("no image path in the list", 1, 0), image="no image path"),
    Case("image of 0 bytes", files=image_bytes(lambda: b""), counted=("image file empty", 1, 0), image="empty file"),
    Case("HTML as .jpg", files=image_bytes(lambda: b"<!DOCTYPE html>"), counted=(NO_PICTURE, 1, 0), image="not an image"),
    Case("EPS as .jpg", files=image_bytes(lambda: noise("EPS")), counted=(NO_PICTURE, 1, 0), image="not an image"),
    Case("truncated JPEG", files=image_bytes(lambda: noise("JPEG")[:900]), image="truncated or broken"),
    Case("decompression bomb", files=image_bytes(bomb), image="too many pixels"),
    Case("CMYK", files=image_bytes(lambda: noise("JPEG", "CMYK")), image=""),
    Case("animated GIF", files=image_bytes(lambda: picture(Image.new("P", (9, 9)), "GIF", save_all=True,
                                                           append_images=[Image.new("P", (9, 9), 5)])), image=""),
    Case("PNG with alpha", files=image_bytes(lambda: noise("PNG", "RGBA")), image=""),
    Case("16-bit PNG", files=image_bytes(lambda: noise("PNG", "I;16")), image=""),
    Case("image of 1 x 1", files=image_bytes(lambda: picture(Image.new("RGB", (1, 1)), "PNG")), image=""),
    Case("link out of the release", files=image_link(secret), counted=LIES_OUTSIDE, image="no image path"),
    Case("link to a device", files=image_link(lambda r: Path("/dev/zero")), counted=LIES_OUTSIDE, image="no image path"),
    Case("link inside the release", files=image_link(lambda r: image_path(r, 0)), image=""),
    Case("broken link", files=image_link(lambda r: r.root / "gone.jpg"), counted=GONE, image="missing file"),
    Case("user folder links out", files=move_out_and_link("train/1@N11"), counted=(LIES_OUTSIDE[0], 4, 0), image="no image path"),
    Case("train folder on another disk", files=move_out_and_link("train"), image=""),
    Case("path with ..", files=image_line("train/../../115.jpg"), refused="line 6: .* leads out of the release.*Pid 115.*Copy"),
    Case("absolute path", files=image_line("/etc/115.jpg"), refused="line 6: '/etc/115.jpg' leads out of the release"),
    Case("drive letter", files=image_line("C:\\images\\115.jpg"), refused="line 6: 'C:/images/115.jpg' leads out"),
    Case("path with null byte", files=image_line("train/\x00/115.jpg"), refused="line 6: .* is no file name; expected train/<U"),
    Case("path of 10,000 characters", files=image_line("train/" + "x" * 10_000 + "/115.jpg"), counted=GONE),
    Case("image of another post", files=image_line("train/1@N11/112.jpg"), refused="line 6: .*image of Pid '115' is exp.*Copy"),
    Case("folder x.jpg", files=replace_image(Path.mkdir), counted=NO_FILE, image="not a plain file"),
    Case("pipe x.jpg", files=replace_image(os.mkfifo), counted=NO_FILE, image="not a plain file"),
]  # fmt: skip

CASES = [*STRUCTURE, *TEXT, *NUMBERS, *USERS_AND_CLASSES, *IMAGES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, tmp_path, capsys, monkeypatch):
    release = Release(tmp_path / "release", images=case in IMAGES)
    case.rows(release)
    release.write()
    case.files(release)
    # what needs a process of its own, weights and learners, is the same whatever the release holds
    monkeypatch.setattr(check, "start_children", lambda steps: {"learners": None})
    monkeypatch.setattr(check, "_answer", lambda child: ["lightgbm", "catboost", "author_ridge"])
    status = command.main(["--data", str(release.root), "--out", str(tmp_path / "run"), "--check"])
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    if case.refused:
        with pytest.raises(InputError, match=case.refused) as refusal:
            read_release(release.root)
        message = str(refusal.value)
        assert str(tmp_path) in message and len(message) < 1500
        assert status > 0 and message in said
        assert check_submission([str(tmp_path / "any.csv"), "--data", str(release.root)]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    else:
        assert not re.search(r"^error:|^(data|images) +FAILS", said, re.M)
        use(case, read_release(release.root), release.root, tmp_path / "run")


def use(case: Case, posts: pd.DataFrame, root: Path, run_dir: Path) -> None:
    """All that is done with a release must go well, and what was replaced must be counted."""
    table = quality_table(posts).set_index("what")
    if case.counted:
        assert tuple(table.loc[case.counted[0], ["train", "test"]]) == case.counted[1:]
    else:
        assert not [what for what in table.index if what.endswith((LOST, "(taken out)", "(cut there)", "(not read)"))]
    json.dumps(release_facts(posts, root), allow_nan=False)
    if case.image is not None:
        image, reason = decode_image(posts["image_path"][ROW])
        assert (image.mode, reason) == ("RGB", case.image)
        assert len(bad_images(posts.iloc[[ROW]], [reason])) == bool(reason)
    run_dir.mkdir(exist_ok=True)
    Run(run_dir, write=True).write_posts(posts)
    pd.testing.assert_frame_equal(Run(run_dir).posts(), posts, check_categorical=False)
    predict(case, posts)


def predict(case: Case, posts: pd.DataFrame) -> None:
    """Features without infinities, folds of all schemes, a model with finite predictions."""
    block = statistic_block(posts, svd_dim=4, n_top_tags=10)
    assert not np.isinf(block.values).any()
    cuts, schemes = all_folds(posts, 2)
    assert {"time", "plain", "matched"} <= set(cuts) and schemes["decides"].sum() == 1
    if case.folds_refused:
        with pytest.raises(InputError, match=case.folds_refused):
            make_folds(posts, 2, "user")
        cuts["user"] = cuts["plain"]  # a single author's posts can be learnt from all the same
    folds, training = cuts["user"].fold, Training(params=LEAVES, rounds=3)
    result = fit_folds(block, posts["label"].to_numpy(), folds, posts, training, Machine(threads=1))
    assert np.isfinite(result.oof[folds >= 0]).all() and np.isfinite(result.test).all()


def write_crowd(root: Path, n_posts: int) -> None:
    """A release whose posts are all by one user but for ten, written from arrays."""
    for part, start, n in (("train", 0, n_posts), ("test", n_posts, 10)):
        number = np.arange(start, start + n)
        ids = {
            "Uid": np.where(number % (n_posts // 10), "me", number.astype(str)).tolist(),
            "Pid": number.astype(str).tolist(),
        }
        columns = {
            "category": {"Category": ["A"] * n, "Subcategory": ["s"] * n, "Concept": ["c"] * n},
            "text": {"Title": [f"t{i % 97}" for i in number], "Alltags": [f"a{i % 89} b{i % 11}" for i in number]},
            "time": {"Postdate": (1430000000 + 60 * number).tolist(),
                     **dict.fromkeys(("Latitude", "Longitude", "Geoaccuracy"), [0] * n)},
            "user": {"photo_count": (number % 13).tolist()}, "additional": {"Ispublic": [1] * n},
        }  # fmt: skip
        root.mkdir(exist_ok=True)
        for role, name in Release.NAMES.items():
            (root / f"{part}_{name}.json").write_bytes(orjson.dumps({**ids, **columns[role]}))
        (root / f"{part}_img_filepath.txt").write_text("\n".join(f"{part}/u/{pid}.jpg" for pid in ids["Pid"]))
        if part == "train":
            (root / "train_label.txt").write_text("\n".join((number % 7).astype(str)))


def test_a_user_of_100_000_posts(tmp_path):
    write_crowd(tmp_path / "release", 100_000)
    posts = read_release(tmp_path / "release")
    assert posts["Uid"].value_counts().max() == 99_999
    assert quality_table(posts).set_index("what").loc["user not in the train part", "test"] == 1
    block = statistic_block(posts, ["posting_time", "text_shape", "counts"])
    folds = make_folds(posts, 2, "user")
    assert set(folds) == {-1, 0, 1} and len(block.values) == 100_010


def test_the_table_is_large_and_its_names_differ():
    names = [case.name for case in CASES]
    assert len(names) >= 70 and len(set(names)) == len(names)
