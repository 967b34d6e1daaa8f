"""Which reader decodes a model: the fastest that is exact for it."""

import warnings

import torch
from torch import nn

from ..models.causal import rounding
from .cached_reader import CachedReader, has_cache
from .layers import has_full_attention
from .reader import Reader
from .whole_reader import WholeReader

PROMPTS = (1, 2, 3), (4, 5, 6, 7, 8)
"""For the comparison of `_agrees`: of two lengths, so that one is padded."""


def kind_of_reader(model: nn.Module) -> type[Reader]:
    """`Reader` for full attention in every layer; `CachedReader` where the cache of transformers gives the same hidden
    states as the whole sequence; else `WholeReader`, with a warning, because it is slow."""
    if has_full_attention(model):
        return Reader
    if has_cache(model) and _agrees(model):
        return CachedReader
    warnings.warn(
        f"{type(model).__name__}: transformers has no cache that fits it, so every new token computes the whole "
        f"sequence again; a server may be faster: rollout.engine={{kind: vllm}}",
        stacklevel=2,
    )
    return WholeReader


@torch.no_grad()
def _agrees(model: nn.Module) -> bool:
    """Whether decoding with the cache gives the hidden states of the whole sequence, up to rounding, on a short case.

    The mean gap is compared, because in a mixture of experts rounding may send one token to another expert.
    """
    cached, whole = (kind(model, None, PROMPTS, 3) for kind in (CachedReader, WholeReader))
    owner = torch.arange(len(PROMPTS), device=cached.device)
    whole.prefill(owner)
    try:
        cached.prefill(owner)
        gaps = [cached.hidden - whole.hidden]
        for step in range(3):
            for reader in (cached, whole):
                reader.read(owner + step, step)
            gaps.append(cached.hidden - whole.hidden)
    except Exception:  # whatever a model raises that takes a cache of another kind
        return False
    return bool(torch.stack(gaps).double().abs().mean() <= rounding(model) * whole.hidden.double().std())
