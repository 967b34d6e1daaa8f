"""The verifier's verdict as an advantage of a policy gradient (GRPO, arXiv 2402.03300)."""

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from ..method.signals import Streams
from ..settings import Settings

SMALLEST_STD = 1e-6
"""Added to a group's standard deviation, as in public trainers, so that a group of equal verdicts gives 0."""


class RewardSettings(Settings):
    """coef * (verdict - mean verdict of the prompt's responses), for every token of a response. A prompt whose
    responses are all right, or all wrong, teaches nothing by it."""

    coef: PositiveFloat = 1.0
    """Beside the teacher's advantage."""
    scale: Literal["none", "std"] = "none"
    """`std` divides by the standard deviation of the verdicts on the prompt's responses (n - 1 in it), as GRPO does.
    `none` does not, as Dr. GRPO (arXiv 2503.20783) advises."""

    @property
    def reads_batch(self) -> set[str]:
        """Streams (`method.signals.READABLE`) that it is computed from."""
        return {"correct", "group_mean"} | ({"group_std"} if self.scale == "std" else set())

    def of_batch(self, streams: Streams) -> Tensor:
        """float [N]: the advantage of every token."""
        gain = streams["correct"] - streams["group_mean"]
        if self.scale == "std":
            gain = gain / (streams["group_std"] + SMALLEST_STD)
        return self.coef * gain
