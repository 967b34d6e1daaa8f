"""A key-value cache with room to grow: a step writes its one position instead of copying all that came before, and a
row that ends gives its place to the last one.

Shapes: B rows, h key-value heads, D head size, C capacity in positions.
"""

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256
"""Least positions added when room runs out."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, h, C, D], of which `length` positions are filled."""

    is_sliding = False
    length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, h, t, D]; returns all filled positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._both()
        end = self.length + key_states.shape[2]
        if end > keys.shape[2]:
            room = end + max(GROWTH, end // 4)
            keys, values = self._moved(keys, room), self._moved(values, room)
            self.keys, self.values = keys, values
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` int64 [B'] only, in that order; a row may be repeated."""
        self.keys, self.values = (part[rows] for part in self._both())

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

    def _moved(self, old: Tensor, room: int) -> Tensor:
        new = old.new_empty(*old.shape[:2], room, old.shape[3])
        new[:, :, : self.length] = old[:, :, : self.length]
        return new


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
