"""Schedules of the response length limit during training. Lengths are in tokens, steps are rollout batches from 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


def growing(step: int, start: int, increment: int, every: int, limit: int) -> int:
    """min(limit, start + increment * floor(step / every)): POPD (arXiv 2605.31490)."""
    return min(limit, start + increment * (step // every))


def share(rho: float, limit: int) -> int:
    """max(1, floor(rho * limit)): TOPD (arXiv 2605.31490). Rounding errors are ignored: 0.29 * 100 gives 29, not 28."""
    return max(1, math.floor(rho * limit + 1e-9))


@dataclass(frozen=True)
class LengthController:
    """The length cap of the next rollout. It follows the share of the last responses near it: Prune-OPD
    (arXiv 2605.07804)."""

    cap: int
    misses: int = 0
    """Number of rollouts in a row in which too few responses came near the cap."""

    def after(
        self,
        lengths: Sequence[int],
        limit: int,
        near: int = 100,
        least_share: float = 0.1,
        change: int = 100,
        patience: int = 3,
        floor: int = 1,
    ) -> "LengthController":
        """The controller after a rollout with these response lengths. An empty rollout changes nothing.

        The cap rises by `change`, to at most `limit`, where at least `least_share` of the responses have
        max(floor, cap - near) tokens or more. It falls by `change`, to at least `floor`, at the `patience`-th rollout
        in a row with fewer. Source: the public code of Prune-OPD, which counts a response's unpruned tokens alone.
        """
        if not lengths:
            return self
        if sum(length >= max(floor, self.cap - near) for length in lengths) / len(lengths) >= least_share:
            return LengthController(min(limit, self.cap + change))
        if self.misses + 1 < patience:
            return replace(self, misses=self.misses + 1)
        return LengthController(max(floor, self.cap - change))
