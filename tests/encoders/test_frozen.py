"""What notebook 02 shows and hands on of frozen CLIP, on small arrays."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kit.clip_ft.prototypes import class_order
from kit.clip_ft.zero_shot import confused, nearest_class, zero_shot_accuracy, zero_shot_classes
from kit.encoders.frozen import clip_block, nearest_posts
from kit.release.taxonomy import prompt_names
from kit.viz.figures import shot_pictures
from tests.clip_ft.test_clip_ft import make_clip


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(40, 8)) for _ in range(2)]
    return [(values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16) for values in rows]


def test_block_holds_components_and_cosine(embeddings):
    image, text = embeddings
    ok = np.arange(40) != 3
    block = clip_block(image, text, ok, np.arange(30), components=3)
    assert block.columns == [f"clip_{part}_{i:02d}" for part in ("image", "text") for i in range(3)] + ["clip_cosine"]
    expected = (image.astype(float) * text.astype(float)).sum(axis=1)
    np.testing.assert_allclose(block.values[ok, -1], expected[ok], atol=1e-6)
    assert np.isnan(block.values[3, [0, 1, 2, 6]]).all() and np.isfinite(block.values[3, 3:6]).all()
    assert "clip_cosine" not in clip_block(image, text, ok, np.arange(30), 3, cosine=False).columns


def test_components_are_fitted_on_train_rows(embeddings):
    image, text = embeddings
    ok = np.ones(40, dtype=bool)
    before = clip_block(image, text, ok, np.arange(30), components=2).values[:30]
    image[30:], text[30:] = image[30:][::-1], -text[30:]
    np.testing.assert_array_equal(clip_block(image, text, ok, np.arange(30), components=2).values[:30], before)


def test_all_columns_on_request(embeddings):
    image, text = embeddings
    block = clip_block(image, text, np.ones(40, dtype=bool), np.arange(30), components=0)
    np.testing.assert_array_equal(block.values[:, :8], image.astype(np.float32))


def test_zero_shot_finds_what_the_sentence_says():
    model = make_clip()
    classes = ["Cats", "Dogs", "Tea"]
    labels = np.array([0, 1, 2, -1, 2])
    class_emb = zero_shot_classes(model.text, prompt_names(classes))
    image = class_emb.numpy()[[0, 1, 2, 0, 1]].astype(np.float16)  # the last post looks like another class
    assert zero_shot_accuracy(image, class_emb, labels, np.array([0, 1, 2, 4])) == pytest.approx(3 / 4)
    assert np.isnan(zero_shot_accuracy(image, class_emb, labels, np.array([], dtype=int)))
    rows = np.array([0, 1, 2, 4])
    found = confused(nearest_class(image, class_emb, rows), labels[rows], classes).set_index("subcategory")
    assert found.loc["Tea"].to_list() == [2, 0.5, "Dogs", 0.5] and found.index[0] == "Tea"
    assert found.loc["Cats"].to_list() == [1, 1.0, "", 0.0]


def test_pictures_and_order(tmp_path):
    Image.new("RGB", (9, 5), "red").save(tmp_path / "a.png")
    posts = pd.DataFrame({
        "Category": ["b", "a", "a"], "Subcategory": ["High,Heels", "Tea", "Cats"],
        "image_path": [str(tmp_path / "a.png"), "", ""],
    })  # fmt: skip
    shots = pd.DataFrame({"row": [0, 0, 1], "Subcategory": ["High,Heels", "High,Heels", "Tea"]})
    pictures = shot_pictures(posts, shots, n_classes=1, n_shots=5)
    assert list(pictures) == ["high heels"] and [p.size for p in pictures["high heels"]] == [(96, 96)] * 2
    assert class_order(posts, ["Cats", "High,Heels", "Tea"]) == [0, 2, 1]


def test_nearest_posts_are_the_largest_cosines(embeddings):
    image = embeddings[0].astype(np.float32)
    rows, pool = np.array([2, 35, 7]), np.arange(0, 40, 2)
    found = nearest_posts(image, rows, pool, 4, chunk=2)
    for row, near in zip(rows, found, strict=True):
        cosine = {other: image[row] @ image[other] for other in pool if other != row}
        assert list(near) == sorted(cosine, key=cosine.get, reverse=True)[:4]
