"""Sampled-token OPD: a policy gradient on the sampled tokens. The reward is the log-ratio of teacher to student."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from ..method.objectives import clipped_tokens, sampled_token_loss
from ..method.scores import Needs, Scored
from .objective import Objective, Outputs


class SampledTokenObjective(Objective):
    """Clipped policy gradient. Its reward is log q(y_t) minus the student's log-probability of the sampled token."""

    kind: Literal["sampled_token"]
    advantage: Literal["frozen", "recomputed"] = "frozen"
    """Which student's log-probability the advantage subtracts. `frozen`: the student that wrote the rollout.
    `recomputed`: the current student."""
    clip: PositiveFloat | None = 0.2
    """PPO clip of the probability ratio; null for no clip."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Upper bound on the loss of a token with negative advantage, in units of the advantage; null for no bound."""
    ratio: Literal["behaviour", "current"] = "behaviour"
    """What the ratio divides by. `behaviour`: the student that wrote the rollout (importance sampling). `current`: the
    current student, so that the ratio is 1 in value (plain score-function gradient)."""

    @property
    def needs(self) -> dict[str, Needs]:
        return {"behaviour": Needs(logp=True), "teacher": Needs(logp=True)}

    @property
    def reads_sampled_token(self) -> bool:
        return True

    @property
    def needs_own_samples(self) -> bool:
        return True

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """See `method.objectives.sampled_token_loss`."""
        return sampled_token_loss(*self._logp(outputs, scores), **self._how)

    def clipped(self, outputs: Outputs, scores: Scored) -> Tensor | None:
        return None if outputs.logp is None else clipped_tokens(*self._logp(outputs, scores), **self._how)

    def _logp(self, outputs: Outputs, scores: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """log p, log o and log q of the sampled tokens, float [N] each."""
        assert outputs.logp is not None
        assert scores.behaviour.logp is not None
        assert scores.teacher.logp is not None
        return outputs.logp, scores.behaviour.logp, scores.teacher.logp

    @property
    def _how(self) -> dict[str, Any]:
        return {"advantage": self.advantage, "clip": self.clip, "dual_clip": self.dual_clip, "ratio": self.ratio}
