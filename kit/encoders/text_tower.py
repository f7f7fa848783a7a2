"""Text towers of open_clip models behind one interface: from ids or from embeddings, pooled and per token, cut where exact.

Prompt learning needs to put learned vectors in the place of words, and the local prompt needs a feature per token; neither
is offered by ``model.encode_text``. ``make_text_tower`` picks the right adapter and tests it against the model's own encoder.
"""

from __future__ import annotations

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from kit.base.errors import InputError

# several lengths, one text empty, one too long
PROBE_TEXTS = ["", "a photo", "a longer description of a sunset over the sea, with boats", "word " * 100]


def make_text_tower(model: nn.Module, tokenizer) -> TextTower:
    """The text tower of an open_clip model behind the one interface, tested against ``model.encode_text``."""
    text = getattr(model, "text", model)
    return (HFTextTower if isinstance(text, HFTextEncoder) else TextTower)(model, tokenizer)


class TextTower(nn.Module):
    """The built-in text tower of a ``CLIP`` or ``CustomTextCLIP`` model, from tokens or from embeddings.

    A causal tower that pools at the end-of-text token never looks at the pads behind it, so its texts are cut to the
    longest of a batch: exact, and about three times faster on titles. Bidirectional towers see the pads and keep the full
    length. Modules are shared with the model; gradients flow to embeddings, not to the tower when it is frozen.

    Attributes:
        context_length: tokens of a full text.
        width: width of a token embedding.
        dim: width d of pooled and token features.
        can_truncate: whether texts may be shorter than ``context_length``.
        is_causal: whether no token looks at one behind it.
        n_start: tokens that every text begins with: start-of-text, and what its tokenizer puts before each text.

    Raises:
        InputError: a tower it cannot serve exactly (CoCa's, or one whose result differs from ``model.encode_text``).
    Source: method of prompt learning on open_clip 3.3.0, checked at construction by ``_self_test``.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        text = getattr(model, "text", model)
        if getattr(text, "cls_emb", None) is not None:
            raise InputError(
                "CoCa text towers are not supported: their text feature is an extra class token, so there is no feature per "
                "token to compare with prompts. Use a CLIP, SigLIP, EVA, MobileCLIP or MetaCLIP model."
            )
        self._adopt(text, tokenizer)
        self.n_start = _n_start(self.tokenizer)
        ids = self.tokenize(PROBE_TEXTS)
        with torch.no_grad():
            expected = model.encode_text(ids)
        _run_sequence_first(self.transformer)
        self._self_test(ids, expected[0] if isinstance(expected, tuple) else expected)

    def _adopt(self, text: nn.Module, tokenizer) -> None:
        """Take over the parts of the model's own tower."""
        self.tokenizer, self.context_length = tokenizer, text.context_length
        self.transformer, self.ln_final = text.transformer, text.ln_final
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.pool_type = getattr(text, "pool_type", None) or text.text_pool_type
        self.eos_id = getattr(text, "eos_id", None) or getattr(text, "text_eos_id", None)
        self.pad_id = _pad_id(tokenizer, getattr(text, "pad_id", 0))
        self.is_causal = text.attn_mask is not None
        self.can_truncate = self.is_causal and self.pool_type in ("argmax", "eos")
        self.width = text.token_embedding.embedding_dim
        projection = text.text_projection
        self.dim = self.width if projection is None else project(torch.zeros(1, self.width), projection).shape[-1]

    def place(self, device: torch.device | str, precision: str = "float32") -> None:
        """Bring the tower to a device; on a CPU one that can do with less may go into a lower precision, as "bfloat16"."""
        self.to(device)

    def tokenize(self, texts: list[str]) -> Tensor:
        """(N, context_length) int64 token ids, padded."""
        return self.tokenizer(list(texts), context_length=self.context_length)

    def embed(self, ids: Tensor) -> Tensor:
        """(N, L, width) token embeddings of ``ids`` (N, L), without positions."""
        return self.token_embedding(ids)

    def encode_embeds(self, embeds: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (N, d) and token features (N, L, d), not normalised, of token embeddings.

        Args:
            embeds: (N, L, width); learned vectors may stand in the place of words.
            ids: (N, L) ids of the same texts; they only tell where a text ends.
        """
        hidden = self._hidden(embeds, ids)
        tokens = project(hidden, self.text_projection)
        return tokens[torch.arange(len(ids), device=ids.device), self._pool_position(ids)], tokens

    def encode_ids(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (N, d), token features (N, L', d) and valid mask (N, L') of ``ids`` (N, L), truncated where exact."""
        ids = self.truncate(ids)
        return *self.encode_embeds(self.embed(ids), ids), self.valid_mask(ids)

    def pool_ids(self, ids: Tensor) -> Tensor:
        """Pooled features (N, d) alone: as ``encode_ids`` but only the pooled token is projected."""
        ids = self.truncate(ids)
        hidden = self._hidden(self.embed(ids), ids)
        pooled = hidden[torch.arange(len(ids), device=ids.device), self._pool_position(ids)]
        return project(pooled, self.text_projection)

    def forward(self, ids: Tensor) -> Tensor:
        """As ``pool_ids``."""
        return self.pool_ids(ids)

    def valid_mask(self, ids: Tensor) -> Tensor:
        """(N, L) bool, true from the first token to the end-of-text token, false on pads; never all false."""
        position = torch.arange(ids.shape[1], device=ids.device)
        if self.pool_type == "argmax":
            return position <= ids.argmax(dim=-1, keepdim=True)
        if self.pool_type == "eos":
            return position <= (ids == self.eos_id).int().argmax(dim=-1, keepdim=True)
        return (ids != self.pad_id) | (position == 0)

    def lengths(self, ids: Tensor) -> Tensor:
        """(N,) number of tokens each text needs: up to its last valid one, or all where nothing may be cut."""
        if not self.can_truncate:
            return torch.full((len(ids),), ids.shape[1])
        return self.valid_mask(ids).sum(dim=-1)

    def truncate(self, ids: Tensor) -> Tensor:
        """``ids`` cut to the longest text of the batch, where that changes no result."""
        return ids[:, : int(self.lengths(ids).max())] if self.can_truncate and len(ids) else ids

    def _hidden(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """(N, L, width) after the last norm."""
        length = embeds.shape[1]
        if length != self.context_length and not self.can_truncate:
            raise ValueError(f"this tower attends to pads and needs all {self.context_length} tokens, not {length}")
        dtype = self.transformer.get_cast_dtype()
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        hidden = embeds.to(dtype) + self.positional_embedding[:length].to(dtype)
        return self.ln_final(self.transformer(hidden, attn_mask=mask))

    def _pool_position(self, ids: Tensor) -> Tensor:
        if self.pool_type == "argmax":
            return ids.argmax(dim=-1)
        if self.pool_type == "eos":
            return (ids == self.eos_id).int().argmax(dim=-1)
        return torch.full((len(ids),), 0 if self.pool_type == "first" else ids.shape[1] - 1, device=ids.device)

    @torch.no_grad()
    def _self_test(self, ids: Tensor, expected: Tensor) -> None:
        """Compare with what the model's own encoder says of the same texts."""
        for found in (self.encode_embeds(self.embed(ids), ids)[0], self.encode_ids(ids[:3])[0], self.pool_ids(ids[:2])):
            error = (found - expected[: len(found)]).abs().max() / expected.abs().max()
            if not error < 1e-4:
                raise InputError(
                    f"this text tower computes something else than a plain CLIP tower (relative difference {error:.1e}, pooling "
                    f"'{self.pool_type}'): prompts cannot be learned through it. Use another model."
                )


class HFTextTower(TextTower):
    """A Hugging Face text tower; embeddings are put in by a hook on its embedding layer.

    Texts keep their full length unless the tower says that it ``can_truncate``.
    """

    def _adopt(self, text: nn.Module, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.context_length = getattr(tokenizer, "context_length", None) or text.context_length
        self.transformer, self.pooler, self.proj = text.transformer, text.pooler, text.proj
        self.token_embedding = text.transformer.get_input_embeddings()
        self.pool_type, self.pad_id = "hf", text.config.pad_token_id
        self.is_causal, self.can_truncate = False, getattr(text, "can_truncate", False)
        self.width, self.dim = self.token_embedding.embedding_dim, text.output_dim

    def place(self, device: torch.device | str, precision: str = "float32") -> None:
        """Bring the tower to a device, on a CPU its network in a precision, too: autocast would cast all weights each time.

        In bfloat16 the fused attention takes several times as long backwards as the plain one.
        """
        self.to(device)
        if torch.device(device).type == "cpu" and precision == "bfloat16":
            self.transformer.to(torch.bfloat16).set_attn_implementation("eager")

    def encode_embeds(self, embeds: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As in ``TextTower``; token features are the projected last hidden states."""
        mask = (ids != self.pad_id).long()
        embeds = embeds.to(self.token_embedding.weight.dtype)
        hook = self.token_embedding.register_forward_hook(lambda *_: embeds)
        try:
            output = self.transformer(input_ids=ids, attention_mask=mask)
        finally:
            hook.remove()
        return self.proj(self.pooler(output, mask)), self.proj(output.last_hidden_state)

    def pool_ids(self, ids: Tensor) -> Tensor:
        """Pooled features (N, d) alone."""
        return self.encode_ids(ids)[0]


def project(hidden: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    """(..., width) -> (..., d): the text projection in any of the forms open_clip has, none, a matrix or a layer."""
    if projection is None:
        return hidden
    return projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection


def _run_sequence_first(transformer: nn.Module) -> None:
    """Let attention run on (L, N, width), which open_clip offers too: twice as fast in bfloat16 on CPUs, the same result.

    Batch-first input reaches torch's attention as a transposed view, and its projection then copies weights per batch.
    """
    blocks = getattr(transformer, "resblocks", ())
    if blocks and all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks):
        transformer.batch_first = False
        for block in blocks:
            block.attn.batch_first = False


def _pad_id(tokenizer, default: int) -> int:
    """Pad id of the tokenizer: SigLIP's comes from its own tokenizer, not from the model's config."""
    inner = getattr(tokenizer, "tokenizer", None)
    found = getattr(inner, "pad_token_id", None)
    return default if found is None else found


def _n_start(tokenizer) -> int:
    """In how many tokens two different words begin alike."""
    one, two = tokenizer(["cat", "house"])
    return int((one == two).int().cumprod(dim=0).sum())
