"""Everything that a run needs, loaded and checked before any compute is spent; restored where there is a checkpoint."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import encode_prompts, load_problems
from ..models import load
from ..models.policy import Policy
from ..rollout.hf import HFEngine
from ..verify.grading import Grader
from . import checkpoint
from .checkpoint import Position
from .checks import check_problems, reads_newlines
from .determinism import prepare_torch
from .follow import Follower, follower_of
from .learner import Learner
from .policies import load_policies, scorers_of
from .rollouts import Engines
from .run import Run
from .scoring import check_scorers


def build_run(config: TrainConfig, out: Path) -> Run:
    """Load, check and, where `out` has a checkpoint, restore. Raises InputError."""
    device = prepare_torch(config)
    tokenizer = load.load_tokenizer(config.student, "student")
    teacher_tokenizer = load.load_tokenizer(config.teacher_model, "teacher")
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
    follower = follower_of(config, policy, targets["teacher"])
    position, pending = _restore(last[0], learner, follower) if last else (Position(), {})
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
        newline_ids=newline_ids(tokenizer, policy.vocabulary_size if reads_newlines(config) else 0),
        grader=Grader(),
        position=position,
        pending=pending,
        follower=follower,
    )


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


def _restore(path: Path, learner: Learner, follower: Follower | None) -> tuple[Position, dict[str, Experience]]:
    position, state, pending = checkpoint.load(path)
    learner.load_state_dict(state)
    if follower is not None:
        follower.load_state_dict(state)
    return position, pending
