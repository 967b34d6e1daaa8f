"""One more token for every row, in few large operations on the live weights of a Llama-like model.

The modules of transformers spend most of a small model's decoding in overhead, and their attention for a single query
(scaled_dot_product_attention on a CPU) is up to seven times slower than two batched products.

Shapes: B rows, H hidden, h heads, g heads a key-value head, D head size, L positions, P longest prompt.
Sources: Llama (arXiv 2302.13971), Qwen3 (arXiv 2505.09388: RMSNorm on each head's query and key).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import GrowingCache, GrowingLayer

KINDS = ("llama", "qwen2", "qwen3")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def can_decode(model: Any) -> bool:
    """Whether a causal LM is built of the parts that `DecodeStep` knows: no adapters, SiLU, rotary positions that do
    not change with the length."""
    config = model.config
    plain = all(type(part) is nn.Linear for name, part in model.named_modules() if name.split(".")[-1] in LINEARS)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.model_type in KINDS and config.hidden_act == "silu" and plain and rope not in ("dynamic", "longrope")


class DecodeStep:
    """The body of a model for one token a row; goes on with a cache that the model's own modules began."""

    def __init__(self, model: Any, positions: int):
        """positions: those to come at most, prompt included."""
        self.body = model.base_model
        device = self.body.embed_tokens.weight.device
        cos, sin = self.body.rotary_emb(self.body.embed_tokens.weight, torch.arange(positions, device=device)[None])
        self.half = cos.shape[-1] // 2
        # of the rotation (-x2, x1), the sign goes to the sine, and what is left is a roll by half
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, : self.half], sin[0, :, self.half :]], 1)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: GrowingCache, visible: Tensor | None) -> Tensor:
        """tokens, positions: int64 [B]; visible: bool [B, P], False at the padding before a short prompt; None without
        padding. Returns the states [B, H] that predict the next tokens."""
        x = F.embedding(tokens, self.body.embed_tokens.weight)
        rotation = self.cos[positions][:, None], self.sin[positions][:, None]
        hidden = None if visible is None else ~visible[:, None, None]
        for layer, kept in zip(self.body.layers, cache.layers):
            x = x + self._attention(layer.self_attn, _rms(x, layer.input_layernorm), rotation, kept, hidden)  # type: ignore[arg-type]
            x = x + _mlp(layer.mlp, _rms(x, layer.post_attention_layernorm))
        return _rms(x, self.body.norm)

    def _attention(
        self, part: Any, x: Tensor, rotation: tuple[Tensor, Tensor], kept: GrowingLayer, hidden: Tensor | None
    ) -> Tensor:
        """hidden: bool [B, 1, 1, P], where nothing may be seen."""
        query, key, value = (_heads(x, of, part.head_dim) for of in (part.q_proj, part.k_proj, part.v_proj))
        if hasattr(part, "q_norm"):
            query, key = _rms(query, part.q_norm), _rms(key, part.k_norm)
        query, key = self._rotate(query, *rotation), self._rotate(key, *rotation)
        keys, values = kept.update(key[:, :, None], value[:, :, None])
        mixed = _attend(query.unflatten(1, (keys.shape[1], -1)), keys, values, part.scaling, hidden)
        return _linear(mixed.view(len(x), -1), part.o_proj)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(self.half, -1), sin)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float, hidden: Tensor | None) -> Tensor:
    """query: [B, h/g, g, D]; keys, values: [B, h/g, L, D]. Returns the values' mean by softmax(query keys^T scaling),
    [B h/g, g, D]; the softmax in float32 (or float64)."""
    scores = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).mul_(scaling)
    if hidden is not None:
        scores.unflatten(0, keys.shape[:2])[..., : hidden.shape[-1]].masked_fill_(hidden, -torch.inf)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return torch.bmm(shares.to(values.dtype), values.flatten(0, 1))


def _mlp(part: Any, x: Tensor) -> Tensor:
    return _linear(F.silu(_linear(x, part.gate_proj)).mul_(_linear(x, part.up_proj)), part.down_proj)


def _heads(x: Tensor, part: Any, size: int) -> Tensor:
    return _linear(x, part).unflatten(1, (-1, size))


def _linear(x: Tensor, part: Any) -> Tensor:
    return F.linear(x, part.weight, part.bias)


def _rms(x: Tensor, part: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), part.weight, part.variance_epsilon)
