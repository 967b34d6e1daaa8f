"""Local support matching (LSM): reverse KL inside the teacher's K most probable tokens (arXiv 2603.25562)."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ..method.objectives import topk_reverse_kl
from ..method.scores import Needs, Scored
from .objective import Objective, Outputs


class LsmObjective(Objective):
    """Local support matching: reverse KL on the teacher's top K, renormalised. It equals `divergence` with
    divergence=reverse_kl, support=teacher, mass=renormalised."""

    kind: Literal["lsm"]
    k: Annotated[int, Field(ge=2)] = 32
    """Number of the teacher's most probable tokens that are compared at a position."""

    @property
    def needs(self) -> dict[str, Needs]:
        return {"teacher": Needs(top=self.k)}

    @property
    def reads_vocabulary(self) -> bool:
        return False

    @property
    def support_size(self) -> int:
        return self.k

    def support_ids(self, scores: Scored) -> Tensor:
        assert scores.teacher.top_ids is not None
        return scores.teacher.top_ids[:, : self.k]

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """See `method.objectives.topk_reverse_kl`."""
        assert scores.teacher.top_logp is not None
        return topk_reverse_kl(outputs.supports[self], scores.teacher.top_logp[:, : self.k])
