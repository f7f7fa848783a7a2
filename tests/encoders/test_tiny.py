"""kit.encoders.tiny: a few steps teach words and colours; the same seed gives the same model; a second call reads it."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kit.encoders import tiny
from kit.encoders.clip import load_clip
from kit.encoders.tiny import train_tiny
from tests.encoders.test_bulk import edit_kit

COLOURS = {"rose": (220, 40, 60), "grass": (40, 200, 50), "ocean": (30, 60, 220), "snow": (240, 240, 240),
           "lemon": (240, 230, 40), "night": (10, 10, 20)}  # fmt: skip
STEPS = {"text_steps": 40, "image_steps": 60}


def make_posts(folder, n_posts, seed):
    """Noisy pictures of one colour each, with the name of the colour among other words."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = rng.choice(list(COLOURS), n_posts)
    for row, name in enumerate(names):
        pixels = np.clip(rng.normal(COLOURS[name], 40, (40, 52, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    fillers = np.array(["nice", "today", "nikon", "square", "big", "2015"])
    texts = [
        " ".join(rng.permutation([name, f"{name} view", *rng.choice(fillers, 3, replace=False)])) for name in names
    ]
    return [str(folder / f"{row}.png") for row in range(n_posts)], texts, names


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Paths, texts, folder and model of a short training, with unusable posts among the others."""
    folder = tmp_path_factory.mktemp("tiny")
    paths, texts, _ = make_posts(folder / "train", 240, seed=0)
    paths, texts = [*paths, str(folder / "missing.png"), paths[0]], [*texts, "missing", "  "]
    return paths, texts, folder / "clip", train_tiny(paths, texts, folder / "clip", seed=3, **STEPS)


def test_names_find_held_out_images(trained, tmp_path):
    clip = trained[3]
    paths, _, names = make_posts(tmp_path / "test", 60, seed=1)
    encoder = clip.image_encoder()
    pixels = torch.from_numpy(np.stack([encoder.transform(Image.open(path)) for path in paths]))
    with torch.inference_mode():
        images = encoder.encode_batch(encoder.module, pixels)
        classes = F.normalize(clip.text.pool_ids(clip.text.tokenize(list(COLOURS))), dim=-1)
    accuracy = (np.array(list(COLOURS))[(images @ classes.T).argmax(1)] == names).mean()
    assert accuracy > 0.6  # chance is 1/6


def test_losses_fall_in_both_stages(trained):
    history = pd.read_csv(trained[2] / "history.csv")
    for stage, steps in (("text", 40), ("image", 60)):
        loss = history.loc[history["stage"] == stage, "loss"]
        assert len(loss) == steps and loss.tail(10).mean() < 0.9 * loss.head(5).mean()


def test_result_is_a_plain_open_clip_model(trained):
    clip, loaded = trained[3], load_clip(f"local-dir:{trained[2]}")
    assert loaded.fingerprint == clip.fingerprint
    assert (clip.image_px, clip.text.context_length, clip.text.can_truncate) == (48, 32, True)
    assert not clip.model.training and not clip.model.token_embedding.sparse


def test_second_call_reads_and_other_posts_or_seed_train_again(trained, monkeypatch, tmp_path):
    paths, texts, folder, clip = trained
    shutil.copytree(folder, tmp_path / "copy")
    calls = []
    monkeypatch.setattr(tiny, "_train", lambda *_: calls.append(1) or (clip, pd.DataFrame()))
    train_tiny(paths, texts, tmp_path / "copy", seed=3, **STEPS)
    assert calls == []
    train_tiny(paths, texts, tmp_path / "copy", seed=4, **STEPS)
    train_tiny(paths[1:], texts[1:], tmp_path / "copy", seed=4, **STEPS)
    assert len(calls) == 2


def test_a_model_trained_by_other_code_is_trained_again(trained, monkeypatch, tmp_path):
    paths, texts, _, clip = trained
    paths, texts = paths[:60], texts[:60]
    before = train_tiny(paths, texts, tmp_path / "c", 1, 2, 2).fingerprint
    monkeypatch.setattr(tiny, "LEARNING_RATE", 1e-2)  # what an edit does
    assert train_tiny(paths, texts, tmp_path / "c", 1, 2, 2).fingerprint == before  # no file was edited
    edit_kit(monkeypatch, tmp_path / "kit", "encoders/tiny.py", "LEARNING_RATE, WEIGHT_DECAY", "RATE, WEIGHT_DECAY")
    assert train_tiny(paths, texts, tmp_path / "c", 1, 2, 2).fingerprint != before


def test_same_seed_gives_the_same_model(trained, tmp_path):
    paths, texts = trained[0][:100], trained[1][:100]
    state = torch.random.get_rng_state()
    prints = [train_tiny(paths, texts, tmp_path / str(n), seed, 3, 3).fingerprint for n, seed in enumerate((1, 1, 2))]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers are left alone
