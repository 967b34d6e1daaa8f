"""Supervised training: minus the log-probability of each token."""

from typing import Literal

from torch import Tensor

from ..method.scores import Scored
from .objective import Objective, Outputs


class NllObjective(Objective):
    """Negative log-likelihood: -log p(y_t) of each token."""

    kind: Literal["nll"]

    @property
    def reads_sampled_token(self) -> bool:
        return True

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        assert outputs.logp is not None
        return -outputs.logp
