"""Supervised training: the negative log-likelihood of the tokens."""

from typing import Literal

from torch import Tensor

from ..method.scores import Scored
from .objective import Objective, Outputs


class NllObjective(Objective):
    """Negative log-likelihood of the tokens."""

    kind: Literal["nll"]

    @property
    def reads_sampled_token(self) -> bool:
        return True

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        assert outputs.logp is not None
        return -outputs.logp
