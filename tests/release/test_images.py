"""kit.release.images: every kind of file becomes RGB of the right colours, or grey with a reason."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kit.base.errors import InputError
from kit.release import images
from kit.release.images import (
    EMPTY,
    MAX_BYTES,
    MISSING,
    NO_FILE,
    NO_PATH,
    TOO_LARGE,
    ImageDataset,
    bad_images,
    check_bad_share,
    decode_image,
    file_state,
    group_by_content,
)
from kit.release.links import leads_out

RED = (200, 30, 40)


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


def mean_colour(image):
    return np.asarray(image).reshape(-1, 3).mean(0)


@pytest.mark.parametrize("mode, suffix", [("RGB", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("P", "gif"), ("RGBA", "png"),
                                          ("RGB", "webp"), ("RGB", "bmp"), ("CMYK", "tif"), ("LAB", "tif")])  # fmt: skip
def test_every_mode_keeps_its_colour(tmp_path, mode, suffix):
    image = Image.new("RGB", (40, 30), RED)
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = image.convert(mode)
    found, reason = decode_image(save(tmp_path / f"a.{suffix}", image))
    assert (found.mode, found.size, reason) == ("RGB", (40, 30), "")
    if mode != "LAB":  # its conversion back is Pillow's business
        assert np.abs(mean_colour(found) - RED).max() < 6


def test_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 5, 10))
    for name in ("a.png", "a.webp"):
        found = np.asarray(
            decode_image(save(tmp_path / name, image, **({"lossless": True} if "webp" in name else {})))[0]
        )
        assert found[0, 0].tolist() == [255, 0, 0] and found[0, 9].tolist() == [255, 255, 255]


def test_16_bit_greys_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = np.asarray(decode_image(save(tmp_path / "a.png", Image.fromarray(ramp)))[0])[..., 0]
    assert np.abs(found.astype(float) - ramp / 257).max() <= 1
    floats = Image.fromarray((ramp / 65535).astype(np.float32))
    found = np.asarray(decode_image(save(tmp_path / "a.tif", floats))[0])[..., 0]
    assert np.abs(found.astype(float) - ramp / 257).max() <= 1


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste(RED, (0, 0, 10, 20))  # the left edge; stored so that "rotate 90 clockwise" makes it the top
    exif = Image.Exif()
    exif[0x0112] = 6
    found, _ = decode_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    assert found.size == (20, 40)
    assert np.asarray(found)[2].mean(0)[0] > 150 > 20 > np.asarray(found)[-3].mean(0)[0]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert mean_colour(decode_image(path)[0]).tolist() == [255, 0, 0]


def test_draft_decodes_smaller_but_never_below_the_asked_size(tmp_path):
    x = np.linspace(0, 255, 1600)
    image = Image.fromarray(np.stack([np.tile(x, (1200, 1))] * 3, axis=-1).astype(np.uint8))
    path = save(tmp_path / "a.jpg", image)
    full, draft = decode_image(path)[0], decode_image(path, draft_px=448)[0]
    assert full.size == (1600, 1200) and draft.size == (800, 600)
    small = [np.asarray(img.resize((224, 224), Image.Resampling.BICUBIC)).astype(float) for img in (full, draft)]
    assert np.abs(small[0] - small[1]).mean() < 1


def test_a_thin_strip_keeps_its_middle(tmp_path):
    image = Image.new("RGB", (4000, 10), "black")
    image.paste(RED, (1950, 0, 2050, 10))
    found, reason = decode_image(save(tmp_path / "a.png", image))
    assert found.size == (200, 10) and reason == ""
    assert np.asarray(found)[5, 100].tolist() == list(RED)


def broken_files(folder):
    """Path and expected reason of every kind of unusable file."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(buffer, "jpeg")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<!DOCTYPE html>")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    Image.new("RGB", (9, 9)).save(folder / "drawing.jpg", "eps")  # would be drawn by another program
    with open(folder / "huge.png", "wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    (folder / "bomb.png").write_bytes(bomb.getvalue())
    reasons = {"empty.jpg": EMPTY, "none.jpg": MISSING, "page.jpg": "not an image", "cut.jpg": "truncated or broken",
               "bomb.png": "too many pixels", "folder.jpg": NO_FILE, "pipe.jpg": NO_FILE, "a\0b.jpg": MISSING,
               "huge.png": TOO_LARGE, "drawing.jpg": "not an image"}  # fmt: skip
    return {"": NO_PATH, **{str(folder / name): reason for name, reason in reasons.items()}}


def test_unusable_files_become_grey_with_a_reason(tmp_path):
    for path, expected in broken_files(tmp_path).items():
        image, reason = decode_image(path)
        assert reason == expected, path
        assert np.unique(np.asarray(image)).tolist() == [128]


def test_first_bytes_tell_what_is_no_picture(tmp_path, monkeypatch):
    states = {path: file_state(path) for path in broken_files(tmp_path)}
    found = {Path(path).name: state for path, state in states.items()}
    assert found.pop("cut.jpg") == found.pop("bomb.png") == ""  # these start as pictures do
    expected = {Path(path).name: reason for path, reason in broken_files(tmp_path / "again").items()}
    assert found == {name: expected[name] for name in found}
    for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff"):
        assert file_state(save(tmp_path / f"a.{kind}", Image.new("RGB", (5, 5)))) == "", kind

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert (
        file_state(str(tmp_path / "a.png")) == decode_image(tmp_path / "a.png")[1] == "unreadable (Permission denied)"
    )


def test_links_are_followed_before_they_are_trusted(tmp_path, monkeypatch):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "u", inside / "v", outside / "u", tmp_path / "in too"):
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
    links = {"u/out.jpg": outside / "u" / "a.jpg", "u/in.jpg": inside / "v" / "a.jpg", "w": outside / "u", "x": inside / "u",
             "u/near.jpg": tmp_path / "in too" / "a.jpg", "u/gone.jpg": outside / "gone.jpg"}  # fmt: skip
    for name, target in links.items():
        (inside / name).symlink_to(target)
    expected = {"u/a.jpg": False, "u/out.jpg": True, "u/in.jpg": False, "w/a.jpg": True, "x/a.jpg": False, "u/near.jpg": True,
                "u/gone.jpg": True, "none/a.jpg": False, "x/out.jpg": True}  # fmt: skip
    paths = ["", *(str(inside / name) for name in expected)]
    assert leads_out(paths, [inside]).tolist() == [False, *expected.values()]
    assert not leads_out(paths, [inside, outside, tmp_path / "in too"]).any()
    (tmp_path / "link").symlink_to(inside)
    assert leads_out([path.replace("/in/", "/link/") for path in paths], [tmp_path / "link"]).tolist() == [
        False,
        *expected.values(),
    ]
    monkeypatch.setattr(images.os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError()))
    assert leads_out(paths, [inside]).tolist() == [False, *expected.values()]


def test_folders_without_links_are_trusted_as_if_each_was_followed(tmp_path):
    """Against following every path; a parent folder tells only of what stands in it by that very name."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in ("plain/u", "plain/v/w", "linked/u", "linked/v"):
        (inside / folder).mkdir(parents=True)
        (outside / folder).mkdir(parents=True)
    (inside / "linked" / "w").symlink_to(outside / "plain")
    (inside / "plain" / "u" / "1.jpg").symlink_to(outside / "1.jpg")
    folders = ["", "plain", "plain/u", "plain/v", "plain/v/w", "plain/none", "none/none", "linked/u", "linked/w", "linked/w/u",
               "linked/w/none", "plain/..", "plain/../linked/w", "plain/v/../../..", ".", "./plain/./u"]  # fmt: skip
    paths = [
        os.path.join(root, folder, name)
        for root in (inside, outside)
        for folder in folders
        for name in ("1.jpg", "2.jpg")
    ]
    for homes in ([inside], [outside / "plain"], [inside / "plain", outside], ["/"]):
        real_homes = [os.path.realpath(home).rstrip("/") + "/" for home in homes]
        expected = [not os.path.realpath(path).startswith(tuple(real_homes)) for path in paths]
        assert leads_out(paths, homes).tolist() == expected


def test_dataset_batches_are_the_items_in_order(tmp_path):
    paths = [save(tmp_path / f"{value}.png", Image.new("RGB", (9, 9), (value, value, value))) for value in range(11)]
    paths.insert(4, str(tmp_path / "missing.png"))
    dataset = ImageDataset(paths, lambda image: np.asarray(image.resize((3, 3))))
    for n_threads, ahead in ((1, 0), (4, 0), (4, 2), (2, 50)):
        batches = list(dataset.batches(5, n_threads, ahead))
        assert [len(pixels) for pixels, _ in batches] == [5, 5, 2]
        assert np.concatenate([pixels for pixels, _ in batches])[:, 0, 0, 0].tolist() == [
            0,
            1,
            2,
            3,
            128,
            *range(4, 11),
        ]
        assert [row for row, why in enumerate(sum((why for _, why in batches), [])) if why] == [4]


def test_group_by_content_equals_comparing_all_bytes(tmp_path):
    rng = np.random.default_rng(0)
    tail = bytes(5000)
    contents = [
        rng.bytes(100),
        rng.bytes(100),
        b"A" + tail,
        b"B" + tail,
        b"A" + tail,
        b"",
        b"",
        rng.bytes(7),
        b"A" + tail[:-1],
    ]
    contents.append(contents[0])
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(tmp_path / f"{number}.jpg"))
        (tmp_path / f"{number}.jpg").write_bytes(content)
    paths += ["", str(tmp_path / "no.jpg"), "", str(tmp_path / "also no.jpg")]
    expected = [contents.index(content) for content in contents] + [10, 11, 10, 11]
    assert group_by_content(paths).tolist() == expected


def test_share_of_bad_images_is_judged():
    paths, reasons = [f"{n}.jpg" for n in range(10)], [MISSING] * 2 + [""] * 8
    check_bad_share(paths, reasons, max_share=0.2)
    with pytest.raises(InputError, match=r"2 of 10 images.*2 x missing file \(first: 0.jpg\)"):
        check_bad_share(paths, reasons, max_share=0.19)


def test_bad_images_table():
    posts = pd.DataFrame({"Uid": ["u", "v"], "Pid": ["1", "2"], "image_path": ["a.jpg", ""], "Title": ["x", "y"]})
    table = bad_images(posts, np.array(["", NO_PATH], dtype=object))
    assert table.to_dict("records") == [{"Uid": "v", "Pid": "2", "image_path": "", "reason": NO_PATH}]
