"""A teacher that follows the student: a copy of it every so many steps, or its moving average over steps.

It moves between steps alone, so that one teacher scores all of a rollout batch and is learned from in all its updates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..models.lora import FOLLOWER, TRAINED
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

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights, part of a checkpoint: those of the student have moved on."""
        return {"teacher": [teacher.detach() for _, teacher in self.pairs]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        for (_, teacher), saved in zip(self.pairs, state["teacher"], strict=True):
            teacher.copy_(saved)


def follower_of(config: TrainConfig, policy: Policy, teacher: Policy | None) -> Follower | None:
    """None for a teacher that stays as it is. teacher: None where there is not one for all problems."""
    follow = config.teacher.follow if config.teacher is not None else None
    if follow is None or teacher is None:
        return None
    if policy.adapters is not None:
        pairs = policy.adapters.parameters(TRAINED), policy.adapters.parameters(FOLLOWER)
    else:
        pairs = list(policy.model.parameters()), list(teacher.model.parameters())
    return Follower(*pairs, follow.every, follow.ema)
