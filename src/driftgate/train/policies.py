"""The models of a run: the student, those it is compared with, and the scorers that they make."""

from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import InputError
from ..models import load
from ..models.policy import Policy, check_head
from ..scorers.local import LocalScorer
from ..world import World
from .checks import check_supports, needs_initial


def load_policies(
    config: TrainConfig, checkpoint_model: Path | None, device: torch.device
) -> tuple[Policy, dict[str, Policy]]:
    """The student, from a checkpoint where there is one, and those it is compared with: "teacher" and, where a term
    asks for it, "initial"; all cut to the vocabulary that they share. Raises InputError."""
    settings = config.student
    if checkpoint_model is not None:
        settings = settings.model_copy(update={"path": str(checkpoint_model)})
    policy = Policy(load.load_model(settings, "student", device), config.student.compute)
    targets = {"teacher": Policy(load.load_model(config.teacher, "teacher", device), config.teacher.compute)}
    check_head(policy, "student", config.student.path)
    check_head(targets["teacher"], "teacher", config.teacher.path)
    if needs_initial(config):
        targets["initial"] = Policy(load.load_model(config.student, "student", device), config.student.compute)
    vocabulary = min(policy.vocabulary_size, targets["teacher"].vocabulary_size)
    for each in (policy, *targets.values()):
        each.vocabulary = vocabulary
    for target in targets.values():
        target.requires_grad_(False)
    check_supports(config, vocabulary)
    if config.student.gradient_checkpointing:
        enable_checkpointing(policy)
    return policy, targets


def enable_checkpointing(policy: Policy) -> None:
    """Recompute the layers' activations in the backward pass. Raises InputError for a model that cannot."""
    model: Any = policy.model
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"student.gradient_checkpointing = true: {type(model).__name__} does not support it; set it to false, "
            f"and lower microbatch_tokens if memory is short"
        )
    model.gradient_checkpointing_enable()


def scorers_of(config: TrainConfig, policy: Policy, targets: dict[str, Policy], world: World) -> dict[str, LocalScorer]:
    """The student under "behaviour", and the targets. Only the teacher sees prompts of its own."""
    how = config.microbatch_tokens, config.rollout.temperature
    scorers = {name: LocalScorer(each, *how, name == "teacher", world) for name, each in targets.items()}
    return {"behaviour": LocalScorer(policy, *how, world=world), **scorers}
