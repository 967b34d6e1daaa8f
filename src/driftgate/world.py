"""The processes that train together: what they add up, share and agree on."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

Key = TypeVar("Key")
Value = TypeVar("Value")


class World(Protocol):
    """What the trainer asks of all processes. The same calls come in the same order on every rank."""

    rank: int
    size: int

    def sum(self, totals: Mapping[Key, float]) -> dict[Key, float]:
        """Each total added up over the ranks, which all give the same keys."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """Tensors of one shape, on the CPU, added up over the ranks. What only one rank filled in stays exact."""
        ...

    def share(self, value: Value) -> list[Value]:
        """The value of every rank, in order of the ranks."""
        ...

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes it, so that all stop together."""
        ...

    def ask_to_stop(self) -> None:
        """Let the other ranks know that this one was asked to stop."""
        ...

    @property
    def asked_to_stop(self) -> bool:
        """Whether another rank was asked to stop. Costs nothing; for use between two agreements."""
        ...


class Alone:
    """One process: nothing to add, share or agree on."""

    rank, size, asked_to_stop = 0, 1, False

    def sum(self, totals: Mapping[Key, float]) -> dict[Key, float]:
        return dict(totals)

    def add(self, values: Tensor) -> Tensor:
        return values

    def share(self, value: Value) -> list[Value]:
        return [value]

    def agree(self, wish: bool) -> bool:
        return wish

    def ask_to_stop(self) -> None:
        pass
