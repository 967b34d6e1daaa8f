"""A teacher that follows the student: a copy of it every so many steps, or its moving average over steps.

It moves between steps alone, so that one teacher scores all of a rollout batch and is learned from in all its updates.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..models.lora import FOLLOWER, TRAINED, WRITER
from ..models.policy import Policy


class Follower:
    """Moves the teacher's weights after the student's. With LoRA these are an adapter each, on one base."""

    def __init__(self, student: list[nn.Parameter], teacher: list[nn.Parameter], every: int | None, ema: float | None):
        """student, teacher: parameters of the same shapes in the same order. Either `every` or `ema` is given."""
        self.pairs = list(zip(student, teacher, strict=True))
        self.every, self.ema = every, ema

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """step: steps done, this one included."""
        if self.every is not None and step % self.every:
            return
        for student, teacher in self.pairs:
            if self.ema is None:
                teacher.copy_(student)
            else:
                teacher.lerp_(student.to(teacher.dtype), 1 - self.ema)

    def weights(self) -> list[Tensor]:
        """The teacher's, part of a checkpoint: those of the student have moved on."""
        return [teacher.detach() for _, teacher in self.pairs]

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor]) -> None:
        """Set the teacher's weights to what `weights` gave."""
        for (_, teacher), saved in zip(self.pairs, weights, strict=True):
            teacher.copy_(saved)


def copies_of(config: TrainConfig, policy: Policy, targets: Mapping[str, Policy]) -> dict[str, Follower]:
    """What moves the "teacher", unless it stays as it is, and the "writer", which is copied each time."""
    follow, found = config.teacher and config.teacher.follow, {}
    if follow is not None:
        found["teacher"] = Follower(*_pairs(policy, targets["teacher"], FOLLOWER), follow.every, follow.ema)
    if "writer" in targets:
        found["writer"] = Follower(*_pairs(policy, targets["writer"], WRITER), every=1, ema=None)
    return found


def _pairs(policy: Policy, other: Policy, adapter: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the student and of a model that follows it: another model, or another adapter on its base."""
    if policy.adapters is not None:
        return policy.adapters.parameters(TRAINED), policy.adapters.parameters(adapter)
    return list(policy.model.parameters()), list(other.model.parameters())
