"""A reader for models with windows, convolutions or recurrent states: it decodes with the cache of transformers.

Padding before a prompt would run through a recurrent state. So prompts of each length are encoded apart, without
padding, and their caches are joined. Only keys and values get room on the left, which a mask leaves out.

Shapes: U prompts, B responses being decoded, P longest prompt, L positions so far.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from .reader import Reader

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What bodies call the cache: attention; Mamba."""
JOINED = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""The kinds of layers whose caches `joined` knows."""


class CachedReader(Reader):
    """See `Reader`. `lengths` int64 [B] are those of the rows' prompts."""

    def prefill(self, owner: Tensor) -> None:
        """Encode each prompt once, then make one row per response. owner: int64 [B], its prompt."""
        lengths = [len(prompt) for prompt in self.prompts]
        groups = [[i for i, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
        caches, hidden = zip(*(self._encode([self.prompts[i] for i in group]) for group in groups))
        self.cache = joined(caches)
        order = torch.tensor([i for group in groups for i in group], device=self.device).argsort()[owner]
        self.cache.reorder_cache(order)
        self.hidden, self.lengths = torch.cat(hidden)[order], torch.tensor(lengths, device=self.device)[owner]
        self.width = max(lengths)
        keyed = any(getattr(layer, "keys", None) is not None for layer in self.cache.layers)
        self.padded = keyed and min(lengths) < self.width

    def read(self, tokens: Tensor, step: int) -> None:
        """See `Reader.read`."""
        mask = None
        if self.padded:
            room = self.width + step + 1
            mask = (torch.arange(room, device=self.device) >= (self.width - self.lengths)[:, None]).long()
        self.hidden = self._read(tokens[:, None], self.cache, mask, self.lengths[:, None] + step)

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """See `Reader.replace`."""
        kept = torch.arange(len(self.lengths), device=self.device)
        kept[places] = kept[rows]
        self.cache.reorder_cache(kept[:count])
        self.lengths = self.lengths[kept[:count]]

    def _encode(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor]:
        """The cache and the last hidden states of prompts of one length."""
        cache = DynamicCache(config=self.model.config)
        return cache, self._read(torch.tensor(prompts, device=self.device), cache, None, None)

    def _read(self, ids: Tensor, cache: Any, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Last hidden states of new ids int64 [B, t]. mask: int64 [B, L], 0 where keys are padding."""
        given = {"attention_mask": mask, "position_ids": positions} | dict.fromkeys(CACHE_ARGUMENTS, cache)
        known = _arguments(self.model)
        given = {name: value for name, value in given.items() if value is not None and name in known}
        body = self.model.base_model(input_ids=ids, use_cache=True, **given)  # type: ignore[operator]
        return body.last_hidden_state[:, -1]


def has_cache(model: nn.Module) -> bool:
    """Whether the body takes a cache of transformers' own, all of whose layers are of kinds that `joined` knows."""
    if not _arguments(model) & set(CACHE_ARGUMENTS):
        return False
    try:
        cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError):  # a kind of layers that it does not know
        return False
    return all(type(layer) in JOINED for layer in cache.layers)


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.base_model.forward).parameters)


def joined(caches: Sequence[Any]) -> Any:
    """One cache of the rows of several, in their order, of the shortest prompts first; overwrites the last. Keys and
    values get zeros on the left."""
    longest = caches[-1]
    for index, layer in enumerate(longest.layers):
        parts = [cache.layers[index] for cache in caches]
        for name in ("keys", "values"):
            if getattr(layer, name, None) is not None:
                setattr(layer, name, _on_the_right([getattr(part, name) for part in parts]))
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, {})
            states.update({i: torch.cat([getattr(p, name)[i] for p in parts]) for i in states if states[i] is not None})
    return longest


def _on_the_right(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [U, ..., P, D] of several P as one, in the dimension U."""
    width = max(part.shape[-2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])
