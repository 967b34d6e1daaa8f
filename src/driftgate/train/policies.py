"""The models of a run: the student, those it is compared with, and the scorers that they make."""

from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..config.models import STUDENT
from ..errors import InputError
from ..models import load, lora
from ..models.causal import check_causal
from ..models.head import check_head
from ..models.policy import Policy
from ..models.views import AdapterView
from ..scorers.local import LocalScorer
from ..world import World
from .checks import check_supports, needs_initial
from .timetable import overlaps


def load_policies(
    config: TrainConfig, checkpoint_model: Path | None, device: torch.device, shared: int | None
) -> tuple[Policy, dict[str, Policy]]:
    """The student, from a checkpoint where there is one, and those it is compared with: its local teachers, "initial"
    where a term asks for it, and "writer" where rollouts are written while the student learns; all cut to the
    vocabulary that they share: to the ids below `shared`, where their tokenizers differ behind it. Raises
    InputError."""
    policy = _student(config, checkpoint_model, device)
    targets = {role: _teacher(config, role, policy, device) for role in config.local_teachers}
    check_causal(policy, "student", config.student.path)
    check_head(policy, "student", config.student.path)
    for role, target in targets.items():
        check_causal(target, role, config.teacher_roles[role].path)
        check_head(target, role, config.teacher_roles[role].path)
    if needs_initial(config):
        targets["initial"] = _initial(config, policy, device)
    if overlaps(config):
        targets["writer"] = _writer(config, policy, device)
    every = [policy, *targets.values()]
    declared = [load.declared_vocabulary(config.teacher_model(role), role) for role in config.served_teachers]
    sizes = [*(each.vocabulary_size for each in every), *declared, shared]
    vocabulary = min(size for size in sizes if size)
    for each in every:
        each.vocabulary = vocabulary
    for target in targets.values():
        target.requires_grad_(False)
    check_supports(config, vocabulary)
    if config.student.gradient_checkpointing:
        enable_checkpointing(policy)
    return policy, targets


def _student(config: TrainConfig, checkpoint_model: Path | None, device: torch.device) -> Policy:
    settings = config.student
    if checkpoint_model is not None and settings.lora is None:
        settings = settings.model_copy(update={"path": str(checkpoint_model)})
    model = load.load_model(settings, "student", device)
    if settings.lora is None:
        return Policy(model, settings.compute)
    adapters = lora.attach(model, settings.lora, settings.path, config.seed)
    if checkpoint_model is not None:
        adapters.load(checkpoint_model)
    return Policy(model, settings.compute, adapters)


def _teacher(config: TrainConfig, role: str, policy: Policy, device: torch.device) -> Policy:
    """Another model; or the student itself as it began, which may then follow the student (see `follow`)."""
    given = config.teacher_roles[role]
    if given.path != STUDENT or policy.adapters is None:
        settings = config.teacher_model(role)
        return Policy(load.load_model(settings, role, device), settings.compute)
    if given.follow is None:
        return AdapterView(policy, None)
    policy.adapters.add_copy(lora.FOLLOWER, config.seed)
    return AdapterView(policy, lora.FOLLOWER)


def _initial(config: TrainConfig, policy: Policy, device: torch.device) -> Policy:
    """The student as it began: with adapters its base, which never changes; else a second copy."""
    if policy.adapters is not None:
        return AdapterView(policy, None)
    return Policy(load.load_model(config.student, "student", device), config.student.compute)


def _writer(config: TrainConfig, policy: Policy, device: torch.device) -> Policy:
    """A copy of the student's weights: with adapters another one on its base, else a model of its own."""
    if policy.adapters is None:
        return Policy(load.load_model(config.student, "student", device), config.student.compute)
    policy.adapters.add_copy(lora.WRITER, config.seed)
    return AdapterView(policy, lora.WRITER)


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
    """The student under "behaviour", and the targets. Only the teachers see prompts of their own."""
    how = config.microbatch_tokens, config.rollout.temperature
    scorers = {name: LocalScorer(each, *how, name in config.teacher_roles, world) for name, each in targets.items()}
    return {"behaviour": LocalScorer(policy, *how, world=world), **scorers}
