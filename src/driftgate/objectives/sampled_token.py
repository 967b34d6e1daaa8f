"""Sampled-token OPD: a policy gradient on the sampled tokens. The reward is the log-ratio of teacher to student, a
shape of it, the verifier's verdict, or a sum of both."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from ..method.gates import widen
from ..method.objectives import clipped_tokens, policy_gradient_loss
from ..method.scores import Needs, Scored
from ..method.signals import Streams
from ..settings import NonNegativeFloat
from .objective import Objective, Outputs
from .reward import RewardSettings
from .shape import BatchShape, IdentityShape, Shape, TokenShape


class SampledTokenObjective(Objective):
    """Clipped policy gradient. Its advantage is teacher_coef times a shape of log q(y_t) minus the student's
    log-probability of the sampled token, plus `reward`."""

    kind: Literal["sampled_token"]
    advantage: Literal["frozen", "recomputed"] = "frozen"
    """Which student's log-probability the advantage subtracts. `frozen`: the student that wrote the rollout.
    `recomputed`: the current student."""
    shape: Shape = IdentityShape()
    """What is made of that log-ratio a; a bare name for short. See docs/rewards.md."""
    teacher_coef: NonNegativeFloat = 1.0
    """Factor of the shape. At 0 `reward` alone is learned from, and no teacher is needed."""
    reward: RewardSettings | None = None
    """The verifier's verdict as an advantage beside the teacher's; null for none."""
    clip: PositiveFloat | None = 0.2
    """PPO clip of the probability ratio; null for no clip."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Upper bound on the loss of a token with negative advantage, in units of the advantage; null for no bound."""
    ratio: Literal["behaviour", "current"] = "behaviour"
    """What the ratio divides by. `behaviour`: the student that wrote the rollout (importance sampling). `current`: the
    current student, so that the ratio is 1 in value (plain score-function gradient)."""

    @property
    def needs(self) -> dict[str, Needs]:
        teacher = {"teacher": Needs(logp=True)} if self.teacher_coef and self.shape.reads_teacher else {}
        return {"behaviour": Needs(logp=True), **teacher}

    @property
    def reads_batch(self) -> set[str]:
        of_shape = self.shape.reads_batch if self.teacher_coef else set()
        return of_shape | (self.reward.reads_batch if self.reward else set())

    @property
    def reads_sampled_token(self) -> bool:
        return True

    @property
    def needs_own_samples(self) -> bool:
        return True

    @property
    def looks_ahead(self) -> bool:
        return self.reward is not None or (self.teacher_coef > 0 and isinstance(self.shape, BatchShape))

    def ahead(self, streams: Streams) -> Tensor:
        """float [N]: the advantage, or the part of it that is not found token by token."""
        gain = torch.zeros(streams.rows.shape, device=streams.rows.device)
        if self.reward is not None:
            gain = gain + self.reward.of_batch(streams)
        if self.teacher_coef and isinstance(self.shape, BatchShape):
            gain = gain + self.teacher_coef * self.shape.of_batch(streams)
        return gain

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """See `method.objectives.policy_gradient_loss`."""
        return policy_gradient_loss(*self._inputs(outputs, scores), **self._how)

    def clipped(self, outputs: Outputs, scores: Scored) -> Tensor | None:
        return None if outputs.logp is None else clipped_tokens(*self._inputs(outputs, scores), **self._how)

    def _inputs(self, outputs: Outputs, scores: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """log p and log o of the sampled tokens, and their advantage, float [N] each."""
        assert outputs.logp is not None
        assert scores.behaviour.logp is not None
        logp, behaviour = outputs.logp, scores.behaviour.logp
        gain = scores.ahead[self].to(widen(logp).dtype) if self.looks_ahead else None
        if self.teacher_coef and isinstance(self.shape, TokenShape):
            assert scores.teacher.logp is not None
            own = behaviour if self.advantage == "frozen" else logp.detach()
            shaped = self.shape.of(widen(scores.teacher.logp), widen(own))
            shaped = shaped if self.teacher_coef == 1 else self.teacher_coef * shaped
            gain = shaped if gain is None else shaped + gain
        assert gain is not None
        return logp, behaviour, gain

    @property
    def _how(self) -> dict[str, Any]:
        return {"clip": self.clip, "dual_clip": self.dual_clip, "ratio": self.ratio}

    @model_validator(mode="after")
    def _learns(self) -> "SampledTokenObjective":
        if not self.teacher_coef and self.reward is None:
            raise ValueError(
                "teacher_coef = 0 without reward leaves nothing to learn from; set objective.reward={coef: 1}, or "
                "teacher_coef=1"
            )
        if not self.teacher_coef and self.shape.kind != "identity":
            raise ValueError(f"shape = {self.shape.kind} with teacher_coef = 0 has no effect; take one of the two out")
        if self.advantage == "recomputed" and isinstance(self.shape, BatchShape):
            raise ValueError(
                f"advantage = recomputed with shape = {self.shape.kind}, which is found once for a rollout batch, from "
                f"the scores of the student that wrote it; set advantage=frozen"
            )
        return self
