"""CLIP_FT on a card against the CPU: an epoch in half precision, scores, the places of the word features, two processes."""

import dataclasses

import numpy as np
import pytest
import torch

from kit.clip_ft.cross_fit import cross_fit
from kit.clip_ft.export import export_posts
from kit.clip_ft.jobs import Job, fit
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import train
from kit.encoders.clip import save_clip
from tests.clip_ft.test_clip_ft import DIM, SMALL, make_clip, make_posts


def on_gpus(n):
    return pytest.mark.skipif(torch.cuda.device_count() < n, reason=f"needs {n} CUDA device(s)")


pytestmark = [pytest.mark.gpu, on_gpus(1)]
LOSSES = ["train_loss", "valid_loss", "valid_L_g", "valid_L_o", "valid_L_c"]
SETTINGS = dataclasses.replace(SMALL, epochs=1)


@pytest.fixture
def on_card():
    """Model, bank, prototypes and data with the text tower on the first card."""
    clip = make_clip()
    clip.text.to("cuda")
    return clip, *make_posts(clip)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-3), ("bf16", 5e-2), ("fp16", 2e-2)])
def test_an_epoch_has_the_losses_of_the_cpu(on_card, precision, tolerance, tmp_path):
    clip = make_clip()
    expected = train(clip, *make_posts(clip), SETTINGS, tmp_path / "cpu").history[LOSSES].to_numpy()
    settings = dataclasses.replace(SETTINGS, precision=precision)
    trained = train(*on_card, settings, tmp_path / precision)
    assert next(trained.model.parameters()).device.type == "cuda"
    np.testing.assert_allclose(trained.history[LOSSES].to_numpy(), expected, rtol=tolerance, atol=1e-3)
    again = train(*on_card, settings, tmp_path / precision)  # read from its checkpoint
    assert torch.equal(again.model.local_prompt.ctx, trained.model.local_prompt.ctx)


def test_scores_are_those_of_the_cpu(on_card, tmp_path):
    """The same parameters on both: evaluation and export run at full precision."""
    trained = train(*on_card, SETTINGS, tmp_path / "card")
    found = export_posts(trained.model, on_card[1], on_card[3])
    clip = make_clip()
    bank, prototypes, data = make_posts(clip)
    model = train(clip, bank, prototypes, data, SETTINGS, tmp_path / "cpu").model
    model.load_own_state({name: value.cpu() for name, value in trained.model.own_state().items()})
    expected = export_posts(model, bank, data)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.image.astype(float), expected.image.astype(float), atol=5e-3)


def test_folds_on_the_card(on_card, tmp_path):
    bank, data = on_card[1], on_card[3]
    folds = np.where(np.arange(120) < 100, np.arange(120) % 2, -1)
    text = np.random.default_rng(0).standard_normal((120, DIM))
    own = export_posts(train(*on_card, SETTINGS, tmp_path).model, bank, data)
    found = cross_fit(Job(*on_card, SETTINGS, text, folds), own, tmp_path, tmp_path)
    assert found.out_of_fold.all() and np.isfinite(found.losses[:100]).all()


def test_word_features_are_the_same_wherever_they_are_kept(monkeypatch):
    clip = make_clip()
    clip.text.to("cuda")
    texts = np.array(["a red cat", "", "word " * 60, "sea"], dtype=object)
    banks = {"cuda": TextBank(clip.text, texts), "None": TextBank(clip.text, texts, cache_share=0)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    banks["cpu"] = TextBank(clip.text, texts)
    for place, bank in banks.items():
        assert str(bank.place).split(":")[0] == place
        for found, expected in zip(
            bank.batch(np.array([2, 0, 1])), banks["cuda"].batch(np.array([2, 0, 1])), strict=True
        ):
            assert found.device.type == "cuda"
            if found.dtype == torch.bool:
                assert torch.equal(found, expected)
    for bank in banks.values():
        torch.testing.assert_close(
            bank.batch(np.array([3, 0]))[0], banks["cuda"].batch(np.array([3, 0]))[0], atol=2e-3, rtol=0
        )


@on_gpus(2)
def test_two_cards_have_the_losses_of_one(on_card, tmp_path):
    settings = dataclasses.replace(SETTINGS, precision="fp32")
    one = train(*on_card, settings, tmp_path / "one").history[LOSSES].to_numpy()
    save_clip(make_clip(), tmp_path / "clip")
    two = fit(Job(*on_card, settings), tmp_path / "two", tmp_path / "clip", processes=2).history[LOSSES].to_numpy()
    np.testing.assert_allclose(two, one, rtol=5e-3, atol=1e-3)
