"""A key-value cache with room to grow: a step writes its one position instead of copying all that came before, and a
row that ends gives its place to the last one.

Shapes: B rows, h key-value heads, D head size, C capacity in positions.
"""

from functools import partial

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256
"""Least positions added when room runs out."""
STRIDE = 16
"""Lengths that a turned layer gives are multiples of this: products of ever new sizes cost oneDNN, which keeps a
kernel for each, a megabyte a token."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, h, C, D], of which `length` positions are filled.

    A `turned` layer is for `DecodeStep`. Its keys lie in memory as [B, h, D, C]: one query's products with them then
    run along the positions, two to three times faster on a CPU once the cache outgrows the processor's own; attention
    kernels want them the other way. And it gives some empty positions behind the filled ones.
    """

    is_sliding = False
    length = 0

    def __init__(self, turned: bool = False):
        super().__init__()
        self.turned = turned

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._room(key_states, 0, self.turned), self._room(value_states, 0)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, h, t, D]; returns all filled positions, a turned layer up to STRIDE - 1 empty ones behind them
        (values 0, keys anything)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, self.length = self.length, self.length + key_states.shape[2]
        keys, values = self._both()
        if self.length > keys.shape[2]:
            keys, values = self._grow(before)
        keys[:, :, before : self.length] = key_states
        values[:, :, before : self.length] = value_states
        if not before:  # as they came: attention kernels that read a whole prompt want them so
            return key_states, value_states
        end = -(-self.length // STRIDE) * STRIDE if self.turned else self.length
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` int64 [B'] only, in that order; a row may be repeated."""
        keys, values = self._both()
        self.keys = keys.transpose(2, 3)[rows].transpose(2, 3) if self.turned else keys[rows]
        self.values = values[rows]

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """Put `rows` int64 [n] into `places` int64 [n], then keep the first `count` rows; copies those n alone."""
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

    def _grow(self, filled: int) -> tuple[Tensor, Tensor]:
        """Move to room for `length` positions and some more."""
        capacity = -(-(self.length + max(GROWTH, self.length // 4)) // STRIDE) * STRIDE
        keys, values = self._both()
        room = self._room(keys, capacity, self.turned), self._room(values, capacity)
        for old, new in zip((keys, values), room):
            new[:, :, :filled] = old[:, :, :filled]
        self.keys, self.values = room
        return room

    def _room(self, like: Tensor, capacity: int, turned: bool = False) -> Tensor:
        """Zeros [B, h, capacity, D] of a tensor's type, lying as [B, h, D, capacity] where turned."""
        rows, heads, _, size = like.shape
        if turned:
            return like.new_zeros(rows, heads, size, capacity).transpose(2, 3)
        return like.new_zeros(rows, heads, capacity, size)


class GrowingCache(Cache):
    """One GrowingLayer per layer of the model."""

    def __init__(self, turned: bool = False) -> None:
        """turned: how keys lie in memory, see `GrowingLayer`."""
        super().__init__(layer_class_to_replicate=partial(GrowingLayer, turned))  # type: ignore[arg-type]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows int64 [B'] in every layer."""
        for layer in self.layers:
            layer.select(rows)  # type: ignore[union-attr]

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """See `GrowingLayer.replace`, for every layer."""
        for layer in self.layers:
            layer.replace(places, rows, count)  # type: ignore[union-attr]
