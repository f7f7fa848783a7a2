"""Every layout of a release reads to the same table; every fault is named and nothing is guessed."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.release import external, smpd, values
from kit.release.columns import column_of, missing_column
from kit.release.quality import quality_table
from kit.release.smpd import read_release
from kit.run.directory import Run
from tests.conftest import Release


def test_rows_keep_the_official_order_and_types(release):
    posts = read_release(release.write())
    expected = [row["Pid"] for part in ("train", "test") for row in release.parts[part]["text"]]
    assert posts["Pid"].tolist() == expected
    assert posts["split"].tolist() == ["train"] * 40 + ["test"] * 12
    assert posts["label"][:40].tolist() == release.parts["train"]["label"]
    assert posts["label"][40:].isna().all()
    assert str(posts["Postdate"].dtype) == "datetime64[s, UTC]"
    assert posts["Postdate"][0] == pd.Timestamp("2015-04-25 22:13:20", tz="UTC")
    assert posts["photo_firstdatetaken"][0] == pd.Timestamp("2010-05-04 03:02:01", tz="UTC")
    assert posts["timezone_offset"].eq(60).all()
    assert posts["Longitude"].isna().all() and posts["Latitude"].eq(0).all()
    assert posts["Pathalias"].eq("").all()
    assert posts["image_path"][3] == str(release.root / "train" / posts["Uid"][3] / f"{posts['Pid'][3]}.jpg")


def test_all_layouts_give_the_same_table(release):
    flat = read_release(release.write())
    for part in ("train", "test"):  # the nested layout
        folder = release.root / f"{part}_allmetadata_json"
        folder.mkdir()
        for path in release.root.glob(f"{part}_*.*"):
            path.rename(folder / path.name)
    pd.testing.assert_frame_equal(read_release(release.root), flat)
    old_names = {"text": "tags", "temporalspatial_information": "temporalspatial", "user_data": "userdata",
                 "additional_information": "additional", "img_filepath": "img"}  # fmt: skip
    for path in list(release.root.glob("*/*.*")):  # the names of 2020
        part, _, stem = path.stem.partition("_")
        path.rename(path.with_name(f"{part}_{old_names.get(stem, stem)}{path.suffix}"))
    assert (release.root / "train_allmetadata_json" / "train_tags.json").is_file()
    pd.testing.assert_frame_equal(read_release(release.root), flat)


def test_columnar_user_file_and_numeric_ids_read_the_same(release):
    flat = read_release(release.write())
    for part in ("train", "test"):
        rows = pd.DataFrame(release.parts[part]["user"])
        rows["Pid"] = rows["Pid"].astype(int)
        columns = {name: {str(i): value for i, value in enumerate(rows[name].tolist())} for name in rows}
        release.path(part, "user").write_text(json.dumps(columns))
    pd.testing.assert_frame_equal(read_release(release.root), flat)


def test_user_file_without_ids_is_taken_by_position(release):
    for part in ("train", "test"):
        for row in release.parts[part]["user"]:
            del row["Uid"], row["Pid"]
            row["timezone_timezone_id"] = row.pop("timezone_id")
    posts = read_release(release.write())
    assert posts["photo_count"][39] == 90
    assert posts["timezone_id"].eq("5").all()


def test_spellings_and_missing_values(release):
    rows = release.parts["train"]
    for row in rows["text"]:
        row["Tile"] = row.pop("Title")
    rows["text"][0]["Tile"] = None
    rows["text"][1]["Tile"] = "None"
    rows["text"][2].update(Tile="  two\n words ", Alltags=["a", "b"])
    rows["user"][0].update(photo_firstdate="None", photo_count=None, timezone_offset="-03:30")
    rows["user"][0]["photo_firstdatetaken"] = "0000-00-00 00:00:00"
    rows["time"][1]["Postdate"] = "no date"
    posts = read_release(release.write())
    assert posts["Title"][:3].tolist() == ["", "", "two words"] and posts["Alltags"][2] == "a b"
    assert posts[["photo_firstdate", "photo_firstdatetaken", "photo_count"]].iloc[0].isna().all()
    assert posts["timezone_offset"][0] == -210
    assert posts["Postdate"].isna().tolist() == [False, True] + [False] * 50


@pytest.mark.parametrize("written", [
    lambda s: 1000 * s, lambda s: f"{1000 * s}", lambda s: pd.Timestamp(s, unit="s").isoformat() + "Z",
    lambda s: pd.Timestamp(s, unit="s", tz="Asia/Shanghai").isoformat(), lambda s: str(pd.Timestamp(s, unit="s")),
])  # fmt: skip
def test_dates_in_milliseconds_and_in_words_are_those_in_seconds(release, written):
    given = read_release(release.write())["Postdate"]
    for part in release.parts.values():
        for row in part["time"]:
            row["Postdate"] = written(int(row["Postdate"]))
    release.parts["train"]["time"][3]["Postdate"] = 0  # as some write a missing date
    posts = read_release(release.write())
    assert posts["Postdate"][3].year == 1970
    assert posts["Postdate"].drop(3).equals(given.drop(3))
    assert not posts["faults"].drop(3).astype(bool).any()


@pytest.mark.parametrize("numbers, minutes", [([1, -8, "5.5"], [60, -480, 330]), ([60, -480, 330], [60, -480, 330])])
def test_offsets_without_a_colon_are_hours_where_all_can_be(release, numbers, minutes):
    for part in release.parts.values():
        for i, row in enumerate(part["user"]):
            row["timezone_offset"] = numbers[i % 3]
    assert read_release(release.write())["timezone_offset"][:3].tolist() == minutes


def test_number_list_descriptions_become_vectors(release):
    for part in release.parts.values():
        for i, row in enumerate(part["user"]):
            row["user_description"] = ",".join(str(i + j / 2) for j in range(399))
            row["location_description"] = "\n" if i % 2 else ",".join(["0.5"] * 400) + ",\n"
    posts = read_release(release.write())
    assert posts["user_description"].eq("").all()
    np.testing.assert_array_equal(posts["user_description_vector"][2], np.float32(2 + np.arange(399) / 2))
    assert posts["location_description_vector"][0].shape == (400,)
    assert posts["location_description_vector"][1] is None


def test_vectors_of_another_length_count_as_missing(release):
    for i, row in enumerate(release.parts["train"]["user"] + release.parts["test"]["user"]):
        row["user_description"] = ",".join(["0.5"] * (9 if i == 3 else 12))
    posts = read_release(release.write())
    given = posts["user_description_vector"].notna()
    assert np.flatnonzero(~given).tolist() == [3] and np.flatnonzero(posts["faults"] != "").tolist() == [3]


def test_rows_by_columns_follow_their_numbers(release):
    """Some writers sort row names as words: 0, 1, 10, 11, ..., 2."""
    flat = read_release(release.write())
    for part, roles in release.parts.items():
        order = sorted(range(len(roles["user"])), key=str)
        assert order != sorted(order)
        names = [name for name in roles["user"][0] if name not in ("Uid", "Pid")]
        columns = {name: {str(i): roles["user"][i][name] for i in order} for name in names}
        release.path(part, "user").write_text(json.dumps(columns))
    pd.testing.assert_frame_equal(read_release(release.root), flat)


def test_a_spelling_that_changes_inside_a_file_loses_nothing(release):
    flat = read_release(release.write())
    for row in release.parts["train"]["text"][::3]:
        row["Tile"] = row.pop("Title")
    pd.testing.assert_frame_equal(read_release(release.write()), flat)


def test_long_texts_are_cut_between_words(release):
    release.parts["train"]["text"][0]["Title"] = "ab " * values.LONGEST_TEXT
    release.parts["train"]["text"][1]["Title"] = "x" * (values.LONGEST_TEXT + 1)
    posts = read_release(release.write())
    assert (
        set(posts["Title"][0].split(" ")) == {"ab"}
        and values.LONGEST_TEXT - 3 <= len(posts["Title"][0]) <= values.LONGEST_TEXT
    )
    assert posts["Title"][1] == "x" * values.LONGEST_TEXT


def test_links_out_of_the_release_are_not_read(release):
    release.images = True
    root = release.write()
    first = read_release(root)["image_path"][0]
    outside = root.parent / "secret.jpg"
    shutil.move(first, outside)
    Path(first).symlink_to(outside)
    posts = read_release(root)
    assert posts["image_path"][0] == "" and posts["image_path"][1:].ne("").all()
    assert posts["faults"].ne("").tolist() == [True] + [False] * 51
    shutil.move(root / "train", root.parent / "disk")  # the folder as a whole may lie elsewhere
    (root / "train").symlink_to(root.parent / "disk")
    pd.testing.assert_frame_equal(read_release(root), posts)


def test_metadata_folders_may_be_links_and_their_files_not(release):
    flat = read_release(release.write())
    for part in ("train", "test"):
        elsewhere = release.root.parent / f"{part}_elsewhere"
        elsewhere.mkdir()
        for path in release.root.glob(f"{part}_*.*"):
            path.rename(elsewhere / path.name)
        (release.root / f"{part}_allmetadata_json").symlink_to(elsewhere)
    pd.testing.assert_frame_equal(read_release(release.root), flat)
    target = release.root.parent / "train_elsewhere" / "train_text.json"
    target.rename(release.root.parent / "text.json")
    target.symlink_to(release.root.parent / "text.json")
    with pytest.raises(
        InputError, match="train_text.json is a link to .*text.json, which lies outside the release: copy"
    ):
        read_release(release.root)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.integers(10**18, 10**40),
    st.sampled_from(["\ud800", "a\x00b", "1e400", "-0", "12:30", "2015-02-30 00:00:00", "1," * 9, "nan", "\u2028", 10**400]),
)  # fmt: skip
FIELDS = {
    "text": ("Title", "Alltags", "Mediatype", "Uid", "Pid"), "category": ("Category", "Subcategory", "Concept"),
    "time": ("Postdate", "Latitude", "Longitude", "Geoaccuracy"), "additional": ("Pathalias", "Ispublic", "Mediastatus"),
    "user": ("photo_firstdate", "photo_firstdatetaken", "photo_count", "ispro", "timezone_offset", "timezone_id",
             "user_description", "location_description"),
}  # fmt: skip
FIELD = st.sampled_from([(role, name) for role, names in FIELDS.items() for name in names])


@settings(max_examples=15)
@given(st.lists(st.tuples(FIELD, st.integers(0, 3), ODD), min_size=1, max_size=12))
def test_odd_values_are_read_and_written_or_refused(changes):
    with tempfile.TemporaryDirectory() as folder:
        release = Release(Path(folder) / "release", 4, 2)
        for (role, name), row, value in changes:
            release.parts["train"][role][row][name] = value
        try:
            posts = read_release(release.write())
        except InputError as error:
            assert "train_text.json" in str(error) or "appears 2 times" in str(error)
            return
        assert quality_table(posts)["train"].max() <= 4
        Run(Path(folder), write=True).write_posts(posts)
        pd.testing.assert_frame_equal(Run(Path(folder)).posts(), posts, check_categorical=False)
        for name in ("Title", "Alltags"):  # what was cleaned is clean
            for row, text in enumerate(posts[name][:4]):
                release.parts["train"]["text"][row][name] = text
        again = read_release(release.write())
        assert again[["Title", "Alltags"]].equals(posts[["Title", "Alltags"]])
        assert not again["faults"].astype(str).str.contains("Title|Alltags").any()


@given(st.lists(st.tuples(
    st.sampled_from(["train", "SMP_train_images", ".", "C:", ""]), st.sampled_from(["u", "a/b", "a\\b", "..", ".", " ", "none"]),
    st.sampled_from(["1", "1.2", "..", ".jpg", " 1", "none"]), st.sampled_from(["", " ", "none", "\\", "/"]),
), max_size=4))  # fmt: skip
def test_usual_image_lines_are_read_as_all_others(rows):
    """Against taking each line apart."""
    ids = pd.DataFrame([(uid, pid) for _, uid, pid, _ in rows], columns=["Uid", "Pid"])
    lines = [
        odd if odd.strip() != odd or odd == "none" else f"{folder}{odd or '/'}{uid}/{pid}.jpg"
        for folder, uid, pid, odd in rows
    ]
    root, source = Path("release"), Path("list.txt")
    try:
        steps = [smpd._image_steps(line, pid, "train", f"list.txt, line {row + 1}")
                 for row, (line, pid) in enumerate(zip(lines, ids["Pid"], strict=True))]  # fmt: skip
    except InputError as error:
        with pytest.raises(InputError) as found:
            smpd._image_paths(lines, ids, root, "train", source)
        assert str(found.value) == str(error)
        return
    expected = [str(root) + "/" + "/".join(path) if path else "" for path in steps]
    paths, outside = smpd._image_paths(lines, ids, root, "train", source)
    assert paths == expected and not outside.any()


PLAIN_NUMBER = st.one_of(ODD, st.sampled_from([" 5 ", "1_0", "٣", "inf", "1e99999999999", True, 7, 2.5, "", "None"]))


@given(st.lists(PLAIN_NUMBER, max_size=8), st.sampled_from(sorted({*values.TEXTS, *values.NUMBERS, *values.DATES})))
def test_a_value_is_typed_alike_wherever_it_stands(given_values, name):
    """Different values are typed once: the same as each value in a column of its own."""

    def typed(some):
        column = column_of([*some, *range(20)])  # most numbers of a column say whether its dates are in seconds
        others = dict.fromkeys(smpd.GIVEN, missing_column(len(column)))
        table, faults = values.type_columns({**others, name: column})
        return list(pd.Series(table[name]))[: len(some)], [
            {fault for fault in faults if faults[fault][row]} for row in range(len(some))
        ]

    together, faults = typed(given_values * 2)
    alone = [typed([value]) for value in given_values] * 2
    assert list(map(repr, together)) == [repr(value) for (value,), _ in alone]
    assert faults == [found for _, (found,) in alone]


@given(
    st.lists(
        st.one_of(st.floats().map(str), st.sampled_from(["1_0", " 5 ", "٣", "x", "", "1e400", "-nan", "0x1"]), ODD)
    )
)
def test_numbers_are_read_together_as_one_by_one(given_values):
    expected = [values._to_float(value) for value in given_values]
    np.testing.assert_array_equal(values.to_floats(given_values), np.array(expected, dtype=float))


def test_images_where_the_archive_unpacks_them(release):
    root = release.write()
    (root / "SMP_train_images").mkdir()
    (root / "test").mkdir()
    posts = read_release(root)
    assert posts["image_path"][0].startswith(str(root / "SMP_train_images"))
    assert posts["image_path"][40].startswith(str(root / "test"))


def test_scraped_statistics_join_by_alias_and_spread_over_the_user(release):
    for i, row in enumerate(release.parts["train"]["additional"]):
        row["Pathalias"] = {0: "anna", 5: "bert"}.get(i, "None")
    root = release.write()
    header = ["Pathalias", *external.EXTERNAL]
    rows = [["anna", *range(1, 9)], ["bert", *[0] * 8], ["None", *[5] * 8]]
    pd.DataFrame(rows, columns=header).to_csv(root / "user_additional.csv", index=False)
    posts = read_release(root)
    assert posts["Pathalias"][:4].eq("anna").all() and posts["totalViews"][:4].eq(1).all()
    assert posts["totalViews"][4:].isna().all()  # zeros mean "not found", an alias "None" is nobody
    pd.DataFrame(rows, columns=header).drop(columns="totalFaves").to_csv(root / "user_additional.csv", index=False)
    with pytest.raises(InputError, match="user_additional.csv has no column totalFaves"):
        read_release(root)


def test_release_without_test_part(release):
    del release.parts["test"]
    posts = read_release(release.write())
    assert posts["split"].tolist() == ["train"] * 40


def _drop_file(release):
    release.path("train", "time").unlink()


def _truncate(release):
    path = release.path("test", "category")
    path.write_text(path.read_text()[:-40])


def _shorten(release):
    release.path("train", "additional").write_text(json.dumps(release.parts["train"]["additional"][:-1]))


def _shuffle(release):
    release.path("train", "user").write_text(json.dumps(release.parts["train"]["user"][::-1]))


def _shuffle_images(release):
    lines = release.path("train", "images").read_text().splitlines()
    release.path("train", "images").write_text("\n".join(lines[1:] + lines[:1]))


def _other_posts(release):
    rows = [{**row, "Pid": row["Pid"] + "9"} for row in release.parts["test"]["time"]]
    release.path("test", "time").write_text(json.dumps(rows))


def _word_as_label(release):
    lines = release.path("train", "label").read_text().splitlines()
    release.path("train", "label").write_text("\n".join([*lines[:6], "many", *lines[7:]]))


def _nan_as_label(release):
    lines = release.path("train", "label").read_text().splitlines()
    release.path("train", "label").write_text("\n".join([*lines[:6], "nan", *lines[7:]]))


def _missing_column(release):
    rows = [{k: v for k, v in row.items() if k != "Concept"} for row in release.parts["train"]["category"]]
    release.path("train", "category").write_text(json.dumps(rows))


def _row_is_text(release):
    release.path("train", "text").write_text(json.dumps([*release.parts["train"]["text"][:5], "post 6"]))


def _empty_file(release):
    release.path("train", "text").write_text("")


def _both_names(release):
    shutil.copy(release.path("train", "text"), release.root / "train_tags.json")


def _path_outside(release):
    lines = release.path("train", "images").read_text().splitlines()
    release.path("train", "images").write_text("\n".join(["../../secret/100.jpg", *lines[1:]]))


def _binary(release):
    release.path("train", "label").write_bytes(b"\xff\xfe1.0\n")


def _empty_release(release):
    for role in release.NAMES:
        release.path("train", role).write_text("[]")
    release.path("train", "images").write_text("")
    release.path("train", "label").write_text("")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_drop_file, r"train_temporalspatial_information.json or train_temporalspatial.json is missing in .*release"),
        (_truncate, r"test_category.json is not valid JSON: .* line 1, column \d+ .*probably incomplete"),
        (_shorten, r"differ in length: .*train_additional_information.json 39"),
        (
            _shuffle,
            r"train_user_data.json holds the same posts in another order .*row 0 has .* 40 rows differ|another order",
        ),
        (_shuffle_images, r"train_img_filepath.txt, line 1: image .*another order"),
        (_other_posts, r"test_temporalspatial_information.json holds other posts"),
        (_word_as_label, r"train_label.txt, line 7: 'many' is not a number"),
        (_nan_as_label, r"train_label.txt, line 7: 'nan' is not a number"),
        (_missing_column, r"train_category.json has no Concept; it holds: Uid, Pid, Category, Subcategory"),
        (_row_is_text, r"train_text.json, row 5: expected one post .* found 'post 6'"),
        (_empty_file, r"train_text.json is empty"),
        (_both_names, r"2 files for the same thing: .*train_text.json, .*train_tags.json"),
        (_path_outside, r"train_img_filepath.txt, line 1: '../../secret/100.jpg' leads out of the release"),
        (_binary, r"train_label.txt is not UTF-8 text"),
        (_empty_release, r"holds no posts: this release is empty"),
    ],
)
def test_faults_are_named(release, break_it, message):
    release.write()
    break_it(release)
    with pytest.raises(InputError, match=message):
        read_release(release.root)


def test_a_post_that_appears_twice(release):
    for role in release.parts["train"]:
        release.parts["train"][role][9] = release.parts["train"][role][4]
    with pytest.raises(InputError, match=r"the post Uid 1@N11, Pid 112 appears 2 times \(train row 4, train row 9\)"):
        read_release(release.write())


def test_a_test_post_that_is_also_a_train_post(release):
    for role in release.NAMES:
        release.parts["test"][role][2] = release.parts["train"][role][4]
    release.parts["test"]["images"][2] = release.parts["train"]["images"][4]
    with pytest.raises(InputError, match=r"train row 4, test row 2"):
        read_release(release.write())


def test_folders_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no folder .*nowhere"):
        read_release(tmp_path / "nowhere")
    (tmp_path / "smpd.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is a file, not the folder of a release: unpack it"):
        read_release(tmp_path / "smpd.zip")
    with pytest.raises(InputError, match="train_text.json or train_tags.json is missing"):
        read_release(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(smpd.os, "listdir", refuse)
    with pytest.raises(InputError, match=r"cannot read the folder .*Permission denied"):
        read_release(tmp_path)


def test_release_files_names_what_is_read(release):
    root = release.write()
    files = smpd.release_files(root)
    assert {path for path in files if path.is_file()} == set(root.glob("*.*"))
    assert root / "user_additional.csv" in files
