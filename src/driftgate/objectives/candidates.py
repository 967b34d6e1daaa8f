"""A policy gradient on every token of the student's top K (the public code of arXiv 2604.13016)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from ..method.objectives import candidate_loss
from ..method.scores import Needs, Scored
from .objective import Objective, Outputs


class CandidateObjective(Objective):
    """Clipped policy gradient on every token of the student's top K (the public code of arXiv 2604.13016). Each token
    is weighted by its probability, renormalised inside the top K."""

    kind: Literal["candidates"]
    k: PositiveInt = 16
    """Number of tokens: the most probable ones under the student that wrote the rollout."""
    clip: PositiveFloat | None = 0.2
    """PPO clip of each token's probability ratio; null for no clip."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Upper bound on the loss of a token with negative advantage, in units of the advantage; null for no bound."""

    @property
    def needs(self) -> dict[str, Needs]:
        return {"behaviour": Needs(top=self.k), "teacher": Needs(at_ids=True)}

    @property
    def needs_own_samples(self) -> bool:
        return True

    @property
    def support_size(self) -> int:
        return self.k

    def support_ids(self, scores: Scored) -> Tensor:
        assert scores.behaviour.top_ids is not None
        return scores.behaviour.top_ids[:, : self.k]

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """See `method.objectives.candidate_loss`."""
        behaviour, teacher = scores.behaviour.top_logp, scores.teacher.at_ids
        assert behaviour is not None
        assert teacher is not None
        given = behaviour[:, : self.k], teacher[:, : self.k]
        return candidate_loss(outputs.supports[self], *given, self.clip, self.dual_clip)
