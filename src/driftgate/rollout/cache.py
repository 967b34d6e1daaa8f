"""Key-value caches with free room: a decoding step writes one position instead of copying all earlier ones. The place
of a row that ends is filled with one of the last rows.

Shapes: U prompts, B rows (their responses), h key-value heads, r query heads per key-value head, D head size, P longest
prompt, t new positions, C capacity in positions, S largest number of running responses of one prompt, X any size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256
"""Positions added, at least, when a cache is full."""
BLOCK_POSITIONS = 64
"""Positions of a response in one tensor on a CPU, see `ResponseLayer`."""
GPU_BLOCK_POSITIONS = 1024
"""The same on a GPU, where the number of matrix products decides the speed."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, h, C, D], `length` positions filled; for a model's own modules."""

    is_sliding = False
    length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, h, t, D]; returns all filled positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, self.length = self.length, self.length + key_states.shape[2]
        self.keys, self.values = (_grown(p, n, before) for p, n in zip(self._both(), (key_states, value_states)))
        if not before:  # as given, not copied: attention kernels for a whole prompt need this layout
            return key_states, value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` int64 [B'], in that order; a row may be repeated."""
        self.keys, self.values = (part[rows] for part in self._both())

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """Copy `rows` int64 [n] to `places` int64 [n], then keep the first `count` rows."""
        for part in self._both():
            part[places, :, : self.length] = part[rows, :, : self.length]
        self.keys, self.values = (part[:count] for part in self._both())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def _both(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


class GrowingCache(Cache):
    """One GrowingLayer per layer of the model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows int64 [B'] in every layer."""
        for layer in self.layers:
            layer.select(rows)  # type: ignore[union-attr]

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """See `GrowingLayer.replace`, for every layer."""
        for layer in self.layers:
            layer.replace(places, rows, count)  # type: ignore[union-attr]


class ResponseLayer:
    """Keys and values of one layer for `DecodeStep`.

    `prompt` [2, U h, P, D] holds each prompt once for all its responses. `blocks` hold the responses' own positions,
    each [2, B, h, `block_size`, D]. Together they have `length` filled positions; the others are 0.

    A small model spends most of its time reading these tensors. A CPU reads a block twice as fast as the filled part of
    a larger tensor, because the gaps between rows stop its prefetching.
    """

    length = 0

    def __init__(self, keys: Tensor, values: Tensor):
        """keys, values: the prompts', [U, h, P, D]."""
        self.prompt = torch.stack([keys, values]).flatten(1, 2)
        self.blocks: list[Tensor] = []
        self.block_size = GPU_BLOCK_POSITIONS if keys.is_cuda else BLOCK_POSITIONS

    def append(self, key: Tensor, value: Tensor) -> None:
        """Append one position of each response, [B, h, D]."""
        place = self.length % self.block_size
        if not place:
            rows, heads, head_size = key.shape
            self.blocks.append(key.new_zeros(2, rows, heads, self.block_size, head_size))
        self.blocks[-1][0, :, :, place], self.blocks[-1][1, :, :, place] = key, value
        self.length += 1

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """As `GrowingLayer.replace`."""
        for block in self.blocks:
            block[:, places] = block[:, rows]
        self.blocks = [block[:, :count] for block in self.blocks]


class ResponseCache:
    """One ResponseLayer per layer of the model, and the responses of each prompt.

    `places` int64 [B h] are the indices of each row's heads in a flattened [U, h, S]. Where no prompt has more than one
    response, the prompts are in the order of the rows.
    """

    def __init__(self, prompts: Sequence[tuple[Tensor, Tensor]], owner: Tensor):
        """prompts: each layer's keys and values [U, h, P, D]; owner: int64 [B], each response's prompt."""
        self.layers = [ResponseLayer(keys, values) for keys, values in prompts]
        self.prompts, self.heads = prompts[0][0].shape[:2]
        self._own(owner.clone())

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """See `GrowingLayer.replace`, for every layer. Prompts without a running response are dropped."""
        self.owner[places] = self.owner[rows]
        running, owner = self.owner[:count].unique(return_inverse=True)
        if len(running) == count:  # one response each: prompts in the order of the rows
            running, owner = self.owner[:count], torch.arange(count, device=owner.device)
        for layer in self.layers:
            layer.replace(places, rows, count)
            if len(running) < self.prompts or len(running) == count:
                layer.prompt = layer.prompt.unflatten(1, (-1, self.heads))[:, running].flatten(1, 2)
        self.prompts = len(running)
        self._own(owner)

    def spread(self, rows: Tensor) -> Tensor:
        """From [B h, r, X] to [U h, S r, X], zero where a prompt has fewer than S responses."""
        if self.most == 1:
            return rows
        room = rows.new_zeros(self.prompts * self.heads * self.most, *rows.shape[1:])
        room.index_copy_(0, self.places, rows)
        return room.view(self.prompts * self.heads, -1, rows.shape[-1])

    def gather(self, spread: Tensor, each: int) -> Tensor:
        """Back from [U h, S r, X] to [B h, r, X]; `each` is r."""
        if self.most == 1:
            return spread
        return spread.view(-1, each, spread.shape[-1])[self.places]

    def _own(self, owner: Tensor) -> None:
        self.owner = owner
        counts, order = owner.bincount(minlength=self.prompts), owner.argsort(stable=True)
        number = torch.empty_like(owner)  # a row's number among the rows of its prompt
        number[order] = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        self.most = int(counts.max()) if len(owner) else 0
        heads = torch.arange(self.heads, device=owner.device)
        self.places = ((owner[:, None] * self.heads + heads) * self.most + number[:, None]).flatten()


def _grown(part: Tensor, new: Tensor, filled: int) -> Tensor:
    """`part` [B, h, C, D] with `new` [B, h, t, D] after its first `filled` positions. A full `part` is copied first."""
    length = filled + new.shape[2]
    if length > part.shape[2]:
        rows, heads, _, size = new.shape
        room = new.new_zeros(rows, heads, length + max(GROWTH, length // 4), size)
        room[:, :, :filled] = part[:, :, :filled]
        part = room
    part[:, :, filled:length] = new
    return part
