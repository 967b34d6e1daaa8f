"""The processes that train together: what they add up, gather and agree on."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

Key = TypeVar("Key")


class World(Protocol):
    """What the trainer asks of all processes. The same calls come in the same order on every rank."""

    rank: int
    size: int

    def sum(self, totals: Mapping[Key, float]) -> dict[Key, float]:
        """Each total added up over the ranks, which all give the same keys."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """[n of this rank] to [n of all ranks], rank after rank: for what looks over the whole batch."""
        ...

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes it, so that all stop together."""
        ...


class Alone:
    """One process: nothing to add, gather or agree on."""

    rank, size = 0, 1

    def sum(self, totals: Mapping[Key, float]) -> dict[Key, float]:
        return dict(totals)

    def gather(self, values: Tensor) -> Tensor:
        return values

    def agree(self, wish: bool) -> bool:
        return wish
