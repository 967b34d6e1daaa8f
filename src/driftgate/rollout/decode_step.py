"""One decoding step for every row, in a few large operations on the live weights of a Llama-like model.

With the modules of transformers, most of a small model's decoding time is overhead. Their attention for a single query
(scaled_dot_product_attention on a CPU) is up to seven times slower than two batched matrix products.

Shapes: B rows, H hidden, h query heads, g key-value heads, D head size, P longest prompt.
Sources: Llama (arXiv 2302.13971), Qwen3 (arXiv 2505.09388: RMSNorm on each head's query and key).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import ResponseCache, ResponseLayer
from .layers import has_full_attention

MODEL_TYPES = ("llama", "qwen2", "qwen3")
Linear = tuple[Tensor, Tensor | None]
"""Weight and bias."""
Norm = tuple[Tensor, float]
"""Weight and epsilon of an RMSNorm."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def can_decode(model: Any) -> bool:
    """Whether `DecodeStep` supports a causal LM: its model type, no windows, no adapters, SiLU, and rotary positions
    that do not change with the length."""
    config = model.config
    plain = all(type(part) is nn.Linear for name, part in model.named_modules() if name.split(".")[-1] in LINEARS)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    known = config.model_type in MODEL_TYPES and config.hidden_act == "silu"
    return known and plain and has_full_attention(model) and rope not in ("dynamic", "longrope")


class _Layer(NamedTuple):
    """A layer's weights as plain tensors. Looking up a module's parameters takes a tenth of a small model's step."""

    before: Norm
    after: Norm
    query_norm: Norm | None
    key_norm: Norm | None
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    gate: Linear
    up: Linear
    down: Linear


class DecodeStep:
    """The body of a model for one token per row. The cache starts with the prompts, encoded by the model's modules."""

    def __init__(self, model: Any, positions: int):
        """positions: the most that a row can reach, prompt included."""
        body, attention = model.base_model, model.base_model.layers[0].self_attn
        self.embedding, self.norm = body.embed_tokens.weight, _norm(body.norm)
        self.layers = [_layer(layer) for layer in body.layers]
        self.size, self.scaling = attention.head_dim, attention.scaling
        cos, sin = body.rotary_emb(self.embedding, torch.arange(positions, device=self.embedding.device)[None])
        self.half = cos.shape[-1] // 2
        # the rotation (-x2, x1) is a roll by half a head, with the sign moved into the sine
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, : self.half], sin[0, :, self.half :]], 1)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: ResponseCache, visible: Tensor | None) -> Tensor:
        """Hidden states [B, H] that predict the next tokens.

        tokens, positions: int64 [B]; visible: bool [B, P], False at the padding before a short prompt, or None where
        nothing is padded.
        """
        x = F.embedding(tokens, self.embedding)
        rotation = self.cos[positions][:, None], self.sin[positions][:, None]
        hidden = None if visible is None else ~visible[:, None, None]
        for layer, kept in zip(self.layers, cache.layers):
            x = x + self._attention(layer, _rms(x, layer.before), rotation, cache, kept, hidden)
            x = x + _mlp(layer, _rms(x, layer.after))
        return _rms(x, self.norm)

    def _attention(
        self,
        layer: _Layer,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: ResponseCache,
        kept: ResponseLayer,
        hidden: Tensor | None,
    ) -> Tensor:
        """x: [B, H]; hidden: bool [B, 1, 1, P], True at padding. Returns [B, H]."""
        heads = len(x), -1, self.size
        query, key = F.linear(x, *layer.query).view(heads), F.linear(x, *layer.key).view(heads)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = _rms(query, layer.query_norm), _rms(key, layer.key_norm)
        query, key = self._rotate(query, *rotation), self._rotate(key, *rotation)
        value = F.linear(x, *layer.value).view(heads)
        kept.append(key, value)
        mixed = _attend(query.mul_(self.scaling).view(key.shape[0] * key.shape[1], -1, self.size), cache, kept, hidden)
        return F.linear(mixed.view(len(x), -1), *layer.out)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(self.half, -1), sin)


def _attend(query: Tensor, cache: ResponseCache, kept: ResponseLayer, hidden: Tensor | None) -> Tensor:
    """Mean of the values, weighted by softmax(query keys^T) over prompt and response.

    query: [B g, h/g, D], scaled. Returns the same shape. Softmax and sums run in float32 (or float64).
    """
    each, (keys, values) = query.shape[1], kept.prompt
    width, blocks = keys.shape[1], [block.flatten(1, 2) for block in kept.blocks]
    prompts = cache.gather(torch.bmm(cache.spread(query), keys.transpose(1, 2)), each)
    scores = torch.cat([prompts, *(torch.bmm(query, block[0].transpose(1, 2)) for block in blocks)], -1)
    if hidden is not None:
        scores.view(len(hidden), -1, *scores.shape[1:])[..., :width].masked_fill_(hidden, -torch.inf)
    scores[..., width + kept.length :] = -torch.inf
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    prompt, *own = shares.split([width, *(block.shape[2] for block in blocks)], -1)
    mixed = cache.gather(torch.bmm(cache.spread(prompt), values), each)
    if mixed.dtype == torch.bfloat16:  # a running sum in bfloat16 would lose what later blocks add
        later = (torch.bmm(part, block[1]).float() for part, block in zip(own, blocks))
        return sum(later, mixed.float()).to(mixed.dtype)
    for part, block in zip(own, blocks):
        mixed.baddbmm_(part, block[1])
    return mixed


def _mlp(layer: _Layer, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, *layer.gate)).mul_(F.linear(x, *layer.up)), *layer.down)


def _rms(x: Tensor, norm: Norm) -> Tensor:
    return F.rms_norm(x, norm[0].shape, *norm)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    own_norms = hasattr(attention, "q_norm")
    return _Layer(
        before=_norm(layer.input_layernorm),
        after=_norm(layer.post_attention_layernorm),
        query_norm=_norm(attention.q_norm) if own_norms else None,
        key_norm=_norm(attention.k_norm) if own_norms else None,
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        out=_linear(attention.o_proj),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _linear(part: Any) -> Linear:
    return part.weight, part.bias


def _norm(part: Any) -> Norm:
    return part.weight, part.variance_epsilon
