"""Pictures that look the same: saved anew, smaller, cut by a line; and others, which do not."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kit.release import near_same
from kit.release.near_same import near_same as groups_of
from kit.release.near_same import picture_groups


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (12, 15, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 240), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve pictures, five versions of each; a flat one, a broken one, none."""
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for seed in range(12):
        image = picture(seed)
        versions = [
            (image, "png", {}), (image, "png", {}), (image, "jpg", {"quality": 60}), (image.resize((150, 120)), "jpg", {}),
            (image.crop((0, 1, 300, 240)), "jpg", {"quality": 80}),
        ]  # fmt: skip
        for number, (version, kind, options) in enumerate(versions):
            paths.append(folder / f"{seed}_{number}.{kind}")
            version.save(paths[-1], **options)
    Image.new("RGB", (200, 200), (9, 90, 9)).save(folder / "flat.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    return [*map(str, paths), str(folder / "flat.png"), str(folder / "broken.jpg"), ""]


def test_versions_of_a_picture_are_one_group_and_other_pictures_are_not(files):
    group = picture_groups(files)
    versions = group[:-3].reshape(12, 5)
    assert (versions == versions[:, :1]).all() and len(np.unique(versions[:, 0])) == 12
    assert (group[-3:] == -1).all()


def test_pairs_within_reach_are_found_like_by_comparing_all():
    rng = np.random.default_rng(0)
    some = rng.integers(0, 2**64, size=60, dtype=np.uint64)
    flips = [some]
    for n_bits in (1, 2, 3, 4, 5):  # the last two are out of reach
        bits = np.array([rng.choice(64, n_bits, replace=False) for _ in some]).astype(np.uint64)
        flips.append(some ^ (np.uint64(1) << bits).sum(axis=1, dtype=np.uint64))
    hashes = rng.permutation(np.concatenate([*flips, some[:9]]))
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= near_same.REACH
    reached = np.linalg.matrix_power(near.astype(object), 16).astype(bool)
    group = groups_of(hashes)
    assert np.array_equal(group[:, None] == group[None], reached) and 1 < len(np.unique(group)) < len(hashes)


def test_no_pictures():
    assert (picture_groups(["", ""]) == -1).all() and len(groups_of(np.empty(0, np.uint64))) == 0
