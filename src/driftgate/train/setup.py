"""Everything that a run needs, loaded and checked before any compute is spent; and where an earlier run left off."""

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Prompt, encode_prompts, load_problems
from ..errors import InputError
from ..models import load
from ..models.policy import Policy, check_head
from ..recipe import check_config
from ..rollout.engine import Engine
from ..rollout.hf import HFEngine
from ..teacher.local import LocalTeacher
from . import checkpoint
from .checkpoint import Position
from .learner import Learner

MAY_CHANGE = ("steps", "checkpoint", "device", "microbatch_tokens")
"""Settings that a resumed run may change; the last two change results by rounding."""


@dataclass
class Parts:
    """The loaded pieces of a run."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    teacher: LocalTeacher
    engine: Engine
    learner: Learner
    prompts: list[Prompt]
    stop_ids: tuple[int, ...]
    newline_ids: Tensor
    position: Position
    pending: Experience | None
    last_rollout: dict[str, float] = field(default_factory=dict)

    def decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def set_up(config: TrainConfig, out: Path) -> Parts:
    """Load, check and, where `out` has a checkpoint, restore. Raises InputError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = load.pick_device(config.device)
    if device.type == "cuda":  # resume is to be bit-exact there too
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    tokenizer = load.load_tokenizer(config.student, "student")
    teacher_tokenizer = load.load_tokenizer(config.teacher, "teacher")
    load.check_vocabularies(tokenizer, teacher_tokenizer)
    problems = load_problems(config.prompts)
    last = checkpoint.all_checkpoints(out / "checkpoints")[-1:]
    settings = config.student.model_copy(update={"path": str(last[0] / "model")}) if last else config.student
    student = load.load_model(settings, "student", device)
    teacher = load.load_model(config.teacher, "teacher", device)
    stop_ids = load.choose_stop_ids((student, tokenizer), (teacher, teacher_tokenizer), config.rollout.stop_ids)
    contexts = {"context": load.context_length(student), "teacher_context": load.context_length(teacher)}
    new = config.rollout.max_new_tokens
    prompts = encode_prompts(
        problems, tokenizer, config.prompts, new, teacher_template=config.teacher.context, **contexts
    )
    policy, teacher_policy = Policy(student, config.student.compute), Policy(teacher, config.teacher.compute)
    check_head(policy, "student", config.student.path)
    check_head(teacher_policy, "teacher", config.teacher.path)
    policy.vocabulary = teacher_policy.vocabulary = min(policy.head.shape[0], teacher_policy.head.shape[0])
    if config.objective.kind == "lsm":
        _check_support(config.objective.k, teacher_policy)
    if config.student.gradient_checkpointing:
        student.gradient_checkpointing_enable()  # type: ignore[operator]
    learner = Learner(config, policy, updates_of(config))
    position, pending = _restore(last[0], learner) if last else (Position(), None)
    return Parts(
        policy=policy,
        tokenizer=tokenizer,
        teacher=LocalTeacher(teacher_policy, config.microbatch_tokens, config.rollout.temperature),
        engine=HFEngine(policy, config.rollout.batch),
        learner=learner,
        prompts=prompts,
        stop_ids=stop_ids,
        # a pass over the whole vocabulary, which other gates have no use for
        newline_ids=newline_ids(tokenizer, policy.head.shape[0] if config.gate.spans == "newline" else 0),
        position=position,
        pending=pending,
    )


def updates_of(config: TrainConfig) -> int:
    """Optimiser updates of a whole run."""
    responses = config.prompts.per_step * config.rollout.samples
    return config.steps * config.passes * -(-responses // (config.minibatch or responses))


def newline_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """bool [V]: token ids whose text contains a newline."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return table


def resolved_config(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration to run with: the run folder's own where there is one. Raises InputError where they differ."""
    path = out / "config.yaml"
    if not path.is_file():
        threads = config.threads or torch.get_num_threads()
        return config.model_copy(update={"threads": threads})
    before = check_config(yaml.safe_load(path.read_text()))
    if config.threads is None:
        config = config.model_copy(update={"threads": before.threads})
    changed = [name for name in TrainConfig.model_fields if getattr(before, name) != getattr(config, name)]
    refused = [name for name in changed if name not in MAY_CHANGE]
    if "steps" in changed and config.optimizer.schedule != "constant":
        refused.append("steps (the learning rate's schedule ends with them)")
    if refused:
        raise InputError(
            f"--out {out}: holds a run with other settings: {', '.join(refused)}; its own are in {path}. "
            f"Choose another --out, or give the same settings to resume it"
        )
    return config


def lock(out: Path):
    """Keep a second process out of the run folder while the returned file is open. Raises InputError."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"--out {out}: another process is training in this folder; choose another --out") from None
    return file


def _restore(path: Path, learner: Learner) -> tuple[Position, Experience | None]:
    position, state, pending = checkpoint.load(path)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    return position, pending


def _check_support(k: int, teacher: Policy) -> None:
    if k > teacher.head.shape[0]:
        raise InputError(f"objective.k = {k}: the vocabulary has {teacher.head.shape[0]} tokens; lower objective.k")
