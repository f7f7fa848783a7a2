"""CLIP: towers agree with open_clip's own encoder; a model is loaded whole and checked, or refused."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import types

import numpy as np
import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder, MeanPooler
from PIL import Image
from torch import nn

from kit.base.errors import InputError
from kit.encoders import weights
from kit.encoders.clip import load_clip, save_clip, wrap_model
from kit.encoders.registry import clip_name
from kit.encoders.text_tower import HFTextTower, TextTower, make_text_tower
from kit.encoders.weights import find_weights, missing_network, missing_of_step, weight_files

TEXTS = ["", "a cat", "!", "a photo of two dogs on the beach, by night", "x " * 90, "Ünïcode ☃ text"]
PREPROCESS = {"size": 32, "mode": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear",
              "resize_mode": "squash", "fill_color": 0}  # fmt: skip
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TOWERS = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "custom text": {"custom_text": True},
    "eos pooling": {"text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "bidirectional": {"custom_text": True, "text_cfg": {"no_causal_mask": True}},
    "bidirectional last": {
        "custom_text": True,
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "causal last": {"text_cfg": {"pool_type": "last"}},
    "no projection": {"custom_text": True, "embed_dim": 32, "text_cfg": {"proj_type": "none"}},
    "output tokens": {"custom_text": True, "text_cfg": {"output_tokens": True}},
}
CAUSAL = ("plain", "quick gelu", "custom text", "eos pooling", "no projection", "output tokens")


def config_of(changes):
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def build(changes, seed=0):
    """A small random model, its weights scaled up so that positions and words matter as in a trained one."""
    config = config_of(changes)
    custom = config.pop("custom_text", False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config).eval()
        for name, parameter in model.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=0.5)
    open_clip.model.set_model_preprocess_cfg(model, PREPROCESS)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=40)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A plain model and the folder it was saved in."""
    clip = wrap_model(build({}), tokenizer, CONFIG, "small")
    return clip, save_clip(clip, tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("kind", TOWERS)
def test_tower_equals_the_models_own_encoder(kind, tokenizer):
    model = build(TOWERS[kind])
    tower = make_text_tower(model, tokenizer)
    ids = tower.tokenize(TEXTS)
    with torch.no_grad():
        expected = build(TOWERS[kind]).encode_text(ids)  # by a model no tower was made of
        expected = expected[0] if kind == "output tokens" else expected
        pooled, tokens = tower.encode_embeds(tower.embed(ids), ids)
        short, short_tokens, mask = tower.encode_ids(ids[:4])
        torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(short, expected[:4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tower.pool_ids(ids[:4]), expected[:4], atol=1e-5, rtol=1e-5)
    assert tower.can_truncate == (kind in CAUSAL) and tower.n_start == 1
    assert tokens.shape == (len(TEXTS), 40, tower.dim) and pooled.shape == (len(TEXTS), tower.dim)
    assert short_tokens.shape[1] == mask.shape[1] == (tower.lengths(ids[:4]).max() if tower.can_truncate else 40)
    torch.testing.assert_close(short_tokens[mask], tokens[:4, : mask.shape[1]][mask], atol=1e-5, rtol=1e-5)


def test_truncating_a_bidirectional_tower_would_be_wrong_and_is_refused(tokenizer):
    model = build(TOWERS["bidirectional"])
    tower = make_text_tower(model, tokenizer)
    ids = tower.tokenize(["a cat"])
    assert torch.equal(tower.truncate(ids), ids)
    with pytest.raises(ValueError, match="needs all 40 tokens, not 4"):
        tower.encode_embeds(tower.embed(ids[:, :4]), ids[:, :4])
    tower.can_truncate = True  # what would happen if it were not refused
    with torch.no_grad():
        assert (tower.encode_ids(ids)[0] - model.encode_text(ids)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["plain", "eos pooling", "bidirectional", "bidirectional last"])
def test_valid_mask_ends_with_the_end_of_text(kind, tokenizer):
    tower = make_text_tower(build(TOWERS[kind]), tokenizer)
    ids = tower.tokenize(TEXTS)
    for row, mask in zip(ids.tolist(), tower.valid_mask(ids).tolist(), strict=True):
        assert mask == [at <= row.index(49407) for at in range(40)]


def test_gradient_reaches_embeddings_and_not_the_tower(tokenizer):
    clip = wrap_model(build({}), tokenizer, CONFIG, "small")
    ids = clip.text.tokenize(["X X X cat."])
    embeds = clip.text.embed(ids).clone().requires_grad_()
    clip.text.encode_embeds(embeds, ids)[0].square().sum().backward()
    end = int(ids.argmax())
    assert (embeds.grad[0, : end + 1].abs().sum(-1) > 0).all() and (embeds.grad[0, end + 1 :] == 0).all()
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_half_precision_copy_of_a_tower_stays_close(tokenizer):
    tower = make_text_tower(build({}), tokenizer)
    ids = tower.tokenize(TEXTS)
    with torch.no_grad():
        exact, half = tower.pool_ids(ids), copy.deepcopy(tower).to(torch.bfloat16).pool_ids(ids).float()
    assert torch.nn.functional.cosine_similarity(exact, half).min() > 0.99


def test_coca_is_refused(tokenizer):
    config = config_of({"text_cfg": {"embed_cls": True}})
    model = open_clip.coca_model.CoCa(
        multimodal_cfg={"context_length": 40, "width": 32, "heads": 2, "layers": 1, "vocab_size": 49408}, **config
    )
    with pytest.raises(InputError, match="CoCa text towers are not supported"):
        make_text_tower(model, tokenizer)


def test_a_tower_that_computes_something_else_is_refused(tokenizer):
    model = build({"custom_text": True})
    model.text.forward = types.MethodType(lambda self, ids: 2 * type(self).forward(self, ids), model.text)
    with pytest.raises(InputError, match="computes something else"):
        TextTower(model, tokenizer)


class FakeTransformer(nn.Module):
    """A bidirectional encoder with the interface of a Hugging Face model."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(49408, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.embeddings(input_ids), src_key_padding_mask=attention_mask == 0)
        return types.SimpleNamespace(last_hidden_state=hidden)


def hf_model():
    torch.manual_seed(0)
    text = HFTextEncoder.__new__(HFTextEncoder)  # its constructor would download a model
    nn.Module.__init__(text)
    text.transformer, text.pooler, text.proj = FakeTransformer(), MeanPooler(), nn.Linear(16, 24, bias=False)
    text.config, text.output_dim, text.output_tokens = types.SimpleNamespace(pad_token_id=0), 24, False
    model = build({"custom_text": True})
    model.text = text.eval()
    return model


def test_hf_tower_takes_embeddings_through_its_hook(tokenizer):
    model = hf_model()
    tower = make_text_tower(model, tokenizer)
    ids = tower.tokenize(TEXTS)
    pooled, tokens, mask = tower.encode_ids(ids)
    assert isinstance(tower, HFTextTower) and not tower.can_truncate and tokens.shape == (len(TEXTS), 40, 24)
    torch.testing.assert_close(pooled, model.encode_text(ids))
    assert torch.equal(mask, ids != 0)
    embeds = tower.embed(ids).detach().requires_grad_()
    tower.encode_embeds(embeds, ids)[0].sum().backward()
    assert (embeds.grad.abs().sum(-1) > 0).equal(mask)
    assert not tower.token_embedding._forward_hooks


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_saved_model_comes_back_with_its_own_preprocessing(saved):
    clip, folder = saved
    loaded = load_clip(f"local-dir:{folder}")
    image = Image.effect_noise((50, 70), 90).convert("RGB")
    assert torch.equal(loaded.preprocess(image), clip.preprocess(image))
    assert loaded.fingerprint == clip.fingerprint and loaded.config == clip.config and loaded.dim == 24
    ids = clip.text.tokenize(TEXTS)
    torch.testing.assert_close(loaded.text.encode_ids(ids)[0], clip.text.encode_ids(ids)[0], atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_image_encoder_equals_encode_image(saved):
    clip, _ = saved
    encoder = clip.image_encoder()
    images = [Image.effect_noise((50 + n, 70), 90).convert("RGB") for n in range(3)]
    pixels = torch.from_numpy(np.stack([encoder.transform(image) for image in images]))
    with torch.no_grad():
        found = encoder.encode_batch(encoder.module, pixels)
        expected = clip.model.encode_image(torch.stack([clip.preprocess(image) for image in images]), normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def spoil_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"] += 0.5
    save_file(weights, folder / "open_clip_model.safetensors")


def spoil_preprocessing(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.0, 0.0, 0.0]
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def hide_weights(folder):
    (folder / "open_clip_model.safetensors").rename(folder / "model.pt")


def cut_weights(folder):
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_architecture(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("damage, message", [
    (spoil_weights, "not the model its fingerprint.json tells of"),
    (spoil_preprocessing, "not the model its fingerprint.json tells of"),
    (hide_weights, r"holds no weights: a .safetensors.*model.pt.*--set 02.clip_model=smp-tiny"),
    (cut_weights, "damaged"),
    (other_architecture, "damaged"),
    (lambda folder: (folder / "open_clip_config.json").unlink(), "holds no open_clip_config.json"),
])  # fmt: skip
def test_a_folder_that_is_not_what_was_saved_is_refused(saved, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(saved[1], folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_clip(f"local-dir:{folder}")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights, "_snapshot", lambda *_: None)
    return tmp_path


def missing(name, tag="", folder="inputs/weights"):
    return missing_network("clip", clip_name(name, tag), folder)


def test_missing_weights_say_which_file_to_put_where(offline):
    with pytest.raises(InputError) as caught:
        load_clip("ViT-B-32", "laion2b_s34b_b79k", offline)
    needs = missing("ViT-B-32", "laion2b_s34b_b79k", offline)
    assert needs in str(caught.value) and "cannot be reached" in str(caught.value)
    for part in ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K (open_clip_model.safetensors)", "--set 02.clip_model=smp-tiny",
                 str(offline / "ViT-B-32-laion2b_s34b_b79k.safetensors")):  # fmt: skip
        assert part in needs
    step = {"clip_model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "weights_dir": str(offline)}
    assert missing_of_step(step) == [f"clip needs {needs}"]
    assert "ViTamin-S (pytorch_model.bin)" in missing("ViTamin-S", "datacomp1b", offline)  # its entry names the file


@pytest.mark.parametrize("name, tag, message", [
    ("ViT-B-32", "nonsense", "'nonsense' is no tag of ViT-B-32 .*laion2b_s34b_b79k"),
    ("ViT-B-33", "openai", "'ViT-B-33' is no open_clip model.*ViT-B-32"),
    ("ViT-B-32", "openai", "use clip_model=ViT-B-32-quickgelu"),
    ("smp-tiny", "", "trains it on the run's train posts"),
    ("smp-dual", "", "trains it on the run's train posts"),
    ("local-dir:does/not/exist", "", "holds no open_clip_config.json"),
])  # fmt: skip
def test_wrong_names_are_refused(offline, name, tag, message):
    with pytest.raises(InputError, match=message):
        load_clip(name, tag, offline)


def test_hand_put_file_of_a_tag_gets_the_tags_preprocessing(offline, monkeypatch, tmp_path, tokenizer):
    """A bare weights file would silently get OpenAI's preprocessing; a tag's own must be used."""
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, "small": CONFIG})
    tag = {"hf_hub": "someone/small/", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda name, pretrained: tag)
    torch.save(build({}).state_dict(), offline / "small-mine.pt")
    clip = load_clip("small", "mine", offline)
    assert missing("small", "mine", offline) == ""
    assert (
        clip.config["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]
        and clip.config["preprocess_cfg"]["resize_mode"] == "squash"
    )
    assert torch.equal(clip.model.visual.proj, build({}).visual.proj)


def test_nothing_is_missing_where_it_is_there_or_trained(saved, offline):
    assert missing("smp-tiny", "laion2b_s34b_b79k") == ""
    assert missing(f"local-dir:{saved[1]}", "laion2b_s34b_b79k") == ""
    assert f"put into {offline}" in missing(f"local-dir:{offline}")
    assert "huggingface.co/someone/model" in missing("hf-hub:someone/model")
    shutil.copytree(saved[1], offline / "ViT-B-32-openai")
    assert find_weights("clip", "ViT-B-32 openai", offline) == offline / "ViT-B-32-openai"


def test_cached_weights_are_found_loaded_and_watched(monkeypatch, tmp_path, tokenizer):
    """A file in the hub's cache gets its tag's preprocessing; a repository there is loaded as the folder it is."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, "small": CONFIG})
    tag = {"hf_hub": "someone/small/", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda name, pretrained: tag)
    snapshot = tmp_path / "hub" / "models--someone--small" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_clip(wrap_model(build({}), tokenizer, CONFIG, "small"), snapshot)
    found = find_weights("clip", "small mine", tmp_path)
    assert weight_files(found) == [snapshot / "open_clip_model.safetensors"]
    assert load_clip("small", "mine", tmp_path).config["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert find_weights("clip", "hf-hub:someone/small", tmp_path) == snapshot
    assert load_clip("hf-hub:someone/small").config["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]
    (snapshot / "open_clip_model.safetensors").unlink()
    assert find_weights("clip", "hf-hub:someone/small", tmp_path) is None


def test_encoders_can_be_sent_to_other_processes(saved):
    clip = saved[0]
    image, text = (pickle.loads(pickle.dumps(one)) for one in (clip.image_encoder(), clip.text_encoder()))
    pixels = torch.from_numpy(image.transform(Image.effect_noise((50, 70), 90).convert("RGB"))[None].copy())
    ids = text.tokenize(TEXTS)
    with torch.no_grad():
        for one, sent, batch in ((clip.image_encoder(), image, pixels), (clip.text_encoder(), text, ids)):
            assert torch.equal(sent.encode_batch(sent.module, batch), one.encode_batch(one.module, batch))
            assert sent.fingerprint == clip.fingerprint
