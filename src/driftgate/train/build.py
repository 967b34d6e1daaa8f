"""Everything that a run needs, loaded and checked before any compute is spent; restored where there is a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import encode_prompts, load_problems
from ..errors import InputError
from ..models import load
from ..models.policy import Policy, check_head
from ..rollout.hf import HFEngine
from ..scorers.local import LocalScorer
from ..verify.grading import Grader
from . import checkpoint
from .checkpoint import Position
from .checks import check_problems, check_supports, needs_initial, reads_newlines
from .determinism import prepare_torch
from .learner import Learner
from .rollouts import Engines
from .run import Run
from .scoring import check_scorers


def build_run(config: TrainConfig, out: Path) -> Run:
    """Load, check and, where `out` has a checkpoint, restore. Raises InputError."""
    device = prepare_torch(config)
    tokenizer = load.load_tokenizer(config.student, "student")
    teacher_tokenizer = load.load_tokenizer(config.teacher, "teacher")
    load.check_vocabularies(tokenizer, teacher_tokenizer)
    problems = load_problems(config.prompts)
    check_problems(problems, config)
    last = checkpoint.all_checkpoints(out / "checkpoints")[-1:]
    policy, targets = load_policies(config, last[0] / "model" if last else None, device)
    scorers = scorers_of(config, policy, targets)
    check_scorers(config, scorers)
    both = (policy.model, tokenizer), (targets["teacher"].model, teacher_tokenizer)
    stop_ids = load.choose_stop_ids(*both, config.rollout.stop_ids)
    contexts = {"context": load.context_length(policy.model)}
    contexts |= {"teacher_context": load.context_length(targets["teacher"].model)}
    new, template = config.rollout.max_new_tokens, config.teacher.context
    prompts = encode_prompts(problems, tokenizer, config.prompts, new, teacher_template=template, **contexts)
    learner = learner_of(config, policy, targets)
    position, pending = _restore(last[0], learner) if last else (Position(), {})
    return Run(
        config=config,
        out=out,
        policy=policy,
        targets=targets,
        tokenizer=tokenizer,
        scorers=scorers,
        engines=engines_of(config, policy, targets["teacher"], tokenizer, stop_ids, learner.version),
        learner=learner,
        prompts=prompts,
        # a pass over the whole vocabulary, which other weights have no use for
        newline_ids=newline_ids(tokenizer, policy.head.shape[0] if reads_newlines(config) else 0),
        grader=Grader(),
        position=position,
        pending=pending,
    )


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
    vocabulary = min(policy.head.shape[0], targets["teacher"].head.shape[0])
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


def scorers_of(config: TrainConfig, policy: Policy, targets: dict[str, Policy]) -> dict[str, LocalScorer]:
    """The student under "behaviour", and the targets. Only the teacher sees prompts of its own."""
    how = config.microbatch_tokens, config.rollout.temperature
    scorers = {name: LocalScorer(each, *how, teacher_prompts=name == "teacher") for name, each in targets.items()}
    return {"behaviour": LocalScorer(policy, *how), **scorers}


def learner_of(config: TrainConfig, policy: Policy, targets: dict[str, Policy]) -> Learner:
    heads = {name: lambda each=each: each.head for name, each in targets.items()}
    return Learner(config, policy, config.steps * config.passes * config.updates_per_step, heads)


def engines_of(
    config: TrainConfig,
    policy: Policy,
    teacher: Policy,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    version: int,
) -> Engines:
    """version: optimiser updates that the student has seen."""
    student = HFEngine(policy, config.rollout.batch, guide=teacher)
    student.load(policy, version)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Engines(student, HFEngine(teacher, config.rollout.batch), stop_ids, encode)


def newline_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """bool [V]: token ids whose text contains a newline."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return table


def _restore(path: Path, learner: Learner) -> tuple[Position, dict[str, Experience]]:
    position, state, pending = checkpoint.load(path)
    learner.load_state_dict(state)
    return position, pending
