"""How many tokens a rollout may have, as training goes on. Lengths are in tokens, steps are rollout batches from 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


def growing(step: int, start: int, increment: int, every: int, limit: int) -> int:
    """min(limit, start + increment * floor(step / every)): POPD (arXiv 2605.31490)."""
    return min(limit, start + increment * (step // every))


def share(rho: float, limit: int) -> int:
    """max(1, floor(rho * limit)): TOPD (arXiv 2605.31490). A product such as 0.29 * 100 is not floored to 28."""
    return max(1, math.floor(rho * limit + 1e-9))


@dataclass(frozen=True)
class LengthController:
    """The cap of the next rollout, moved by how many of the last one came near it: Prune-OPD (arXiv 2605.07804)."""

    cap: int
    misses: int = 0
    """Rollouts in a row of which too few came near the cap."""

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
        """The controller after a rollout of these response lengths; as it was after an empty one.

        Up by `change` (to `limit` at most) where at least `least_share` of them are within `near` tokens of the cap;
        down by as much (to `floor` at least) at the `patience`-th rollout in a row where fewer are.
        """
        if not lengths:
            return self
        if sum(length >= self.cap - near for length in lengths) / len(lengths) >= least_share:
            return LengthController(min(limit, self.cap + change))
        if self.misses + 1 < patience:
            return replace(self, misses=self.misses + 1)
        return LengthController(max(floor, self.cap - change))
