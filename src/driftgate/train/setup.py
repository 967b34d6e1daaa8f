"""Everything that a run needs, loaded and checked before any compute is spent; and where an earlier run left off."""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Problem, Prompt, encode_prompts, load_problems
from ..errors import InputError
from ..models import load
from ..models.policy import Policy, check_head
from ..recipe import check_config
from ..rollout.hf import HFEngine
from ..scorers.local import LocalTeacher
from ..verify.grading import Grader, grader_for
from . import checkpoint
from .checkpoint import Position
from .learner import Learner
from .rollouts import Engines

MAY_CHANGE = ("steps", "checkpoint", "device", "microbatch_tokens", "rollout.batch")
"""Settings that a resumed run may change; the last three change results by rounding."""


@dataclass
class Parts:
    """The loaded pieces of a run."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    targets: dict[str, LocalTeacher]
    """"teacher" and, where a term is held to it, "initial"."""
    engines: Engines
    learner: Learner
    prompts: list[Prompt]
    newline_ids: Tensor
    grader: Grader | None
    position: Position
    pending: dict[str, Experience]
    """The rollout batch of a step that was interrupted, by stream; empty between steps."""
    last_rollout: dict[str, float] = field(default_factory=dict)

    def decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def set_up(config: TrainConfig, out: Path) -> Parts:
    """Load, check and, where `out` has a checkpoint, restore. Raises InputError."""
    device = prepare_torch(config)
    tokenizer = load.load_tokenizer(config.student, "student")
    teacher_tokenizer = load.load_tokenizer(config.teacher, "teacher")
    load.check_vocabularies(tokenizer, teacher_tokenizer)
    problems = load_problems(config.prompts)
    check_problems(problems, config)
    last = checkpoint.all_checkpoints(out / "checkpoints")[-1:]
    policy, targets = load_policies(config, last[0] / "model" if last else None, device)
    student, teacher = policy.model, targets["teacher"].model
    stop_ids = load.choose_stop_ids((student, tokenizer), (teacher, teacher_tokenizer), config.rollout.stop_ids)
    contexts = {"context": load.context_length(student), "teacher_context": load.context_length(teacher)}
    new = config.rollout.max_new_tokens
    prompts = encode_prompts(
        problems, tokenizer, config.prompts, new, teacher_template=config.teacher.context, **contexts
    )
    target_heads = {name: lambda each=each: each.head for name, each in targets.items()}
    learner = Learner(config, policy, config.steps * config.passes * config.updates_per_step, target_heads)
    position, pending = _restore(last[0], learner) if last else (Position(), {})
    batch, budget, temperature = config.rollout.batch, config.microbatch_tokens, config.rollout.temperature
    answers = [problem.answer for problem in problems if problem.answer is not None]
    return Parts(
        policy=policy,
        tokenizer=tokenizer,
        targets={name: LocalTeacher(each, budget, temperature, name) for name, each in targets.items()},
        engines=Engines(
            HFEngine(policy, batch, guide=targets["teacher"]),
            HFEngine(targets["teacher"], batch),
            stop_ids,
            lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]),
        ),
        learner=learner,
        prompts=prompts,
        # a pass over the whole vocabulary, which other weights have no use for
        newline_ids=newline_ids(tokenizer, policy.head.shape[0] if reads_newlines(config) else 0),
        grader=grader_for(answers) if needs_verifier(config) else None,
        position=position,
        pending=pending,
    )


def prepare_torch(config: TrainConfig) -> torch.device:
    """Threads, device and, on a GPU, the settings under which a resumed run repeats itself bit for bit."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = load.pick_device(config.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward does not repeat itself; flash's can, see learner.py
        # that mode also fills every tensor made empty; none is read before it is written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def load_policies(
    config: TrainConfig, checkpoint_model: Path | None, device: torch.device
) -> tuple[Policy, dict[str, Policy]]:
    """The student, from a checkpoint where there is one, and those it is held to: "teacher" and, where a term asks for
    it, "initial"; all cut to the vocabulary that they share. Raises InputError."""
    settings = config.student
    if checkpoint_model is not None:
        settings = settings.model_copy(update={"path": str(checkpoint_model)})
    policy = Policy(load.load_model(settings, "student", device), config.student.compute)
    targets = {"teacher": Policy(load.load_model(config.teacher, "teacher", device), config.teacher.compute)}
    check_head(policy, "student", config.student.path)
    check_head(targets["teacher"], "teacher", config.teacher.path)
    if any(getattr(term.objective, "target", None) == "initial" for term in config.all_terms.values()):
        targets["initial"] = Policy(load.load_model(config.student, "student", device), config.student.compute)
    vocabulary = min(policy.head.shape[0], targets["teacher"].head.shape[0])
    for each in (policy, *targets.values()):
        each.vocabulary = vocabulary
    check_supports(config, vocabulary)
    if config.student.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable()  # type: ignore[operator]
    return policy, targets


def check_problems(problems: Sequence[Problem], config: TrainConfig) -> None:
    """Answers where a weight asks the verifier, solutions where one is learned from. Raises InputError."""
    wants = {
        "answer": "a weight reads the verifier's verdict" if needs_verifier(config) else None,
        "solution": "reference solutions are learned from (rollout.on_policy, or a term's stream)"
        if learns_from_solutions(config)
        else None,
    }
    for name, why in wants.items():
        lacking = [problem.id for problem in problems if getattr(problem, name) is None]
        if why and lacking:
            raise InputError(
                f"prompts.path = {config.prompts.path}: {why}, but problem {lacking[0]!r} has no {name} "
                f"({len(lacking)} of {len(problems)} lack it); add it, rename with prompts.columns, or take that "
                f"setting out"
            )


def needs_verifier(config: TrainConfig) -> bool:
    return "correct" in config.reads


def learns_from_solutions(config: TrainConfig) -> bool:
    return config.rollout.on_policy < 1 or any(term.stream == "reference" for term in config.all_terms.values())


def reads_newlines(config: TrainConfig) -> bool:
    gates = [term.weights.values() for term in config.all_terms.values()]
    return any(factor.partition.kind == "newline" for factors in gates for factor in factors)


def check_supports(config: TrainConfig, vocabulary: int) -> None:
    """No more most probable tokens than there are. Raises InputError."""
    wanted = {"objective.k": getattr(config.objective, "k", 0)}
    wanted |= {f"terms.{name}.objective.k": getattr(t.objective, "k", 0) for name, t in config.terms.items()}
    tops = {"student_top_ids", "teacher_top_ids", "student_top_logp", "teacher_top_logp"}
    if config.diagnostics.every or any(tops & term.reads for term in config.all_terms.values()):
        wanted["diagnostics.k"] = config.diagnostics.k
    for name, k in wanted.items():
        if k > vocabulary:
            raise InputError(f"{name} = {k}: the vocabulary has {vocabulary} tokens; lower {name}")


def newline_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """bool [V]: token ids whose text contains a newline."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return table


def resolved_config(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration to run with: the run folder's own where there is one. Raises InputError where they differ."""
    if not (out / "config.yaml").is_file():
        threads = config.threads or torch.get_num_threads()
        return config.model_copy(update={"threads": threads})
    return resumed_config(written_config(out), config, out)


def written_config(out: Path) -> TrainConfig:
    """A run folder's own configuration. Raises InputError for one of another version."""
    try:
        return check_config(yaml.safe_load((out / "config.yaml").read_text()))
    except InputError as error:
        raise InputError(
            f"--out {out}: its config.yaml is of another version ({error}); choose another --out"
        ) from None


def resumed_config(before: TrainConfig, config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration to go on with in a folder that was begun with `before`. Raises InputError where they differ."""
    if config.threads is None:
        config = config.model_copy(update={"threads": before.threads})
    changed = changed_settings(before, config)
    refused = [name for name in changed if name not in MAY_CHANGE]
    if "steps" in changed and config.optimizer.schedule != "constant":
        refused.append("steps (the learning rate's schedule ends with them)")
    if refused:
        raise InputError(
            f"--out {out}: holds a run with other settings: {', '.join(refused)}; its own are in "
            f"{out / 'config.yaml'}. Choose another --out, or give the same settings to resume it"
        )
    return config


def changed_settings(before: TrainConfig, config: TrainConfig) -> list[str]:
    """Groups that differ; of `rollout` alone the setting, where it is the batch and nothing else."""
    changed = [name for name in TrainConfig.model_fields if getattr(before, name) != getattr(config, name)]
    same_batch = before.rollout.model_copy(update={"batch": config.rollout.batch})
    return ["rollout.batch" if name == "rollout" and same_batch == config.rollout else name for name in changed]


def lock(out: Path):
    """Keep a second process out of the run folder while the returned file is open. Raises InputError."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"--out {out}: another process is training in this folder; choose another --out") from None
    return file


def _restore(path: Path, learner: Learner) -> tuple[Position, dict[str, Experience]]:
    position, state, pending = checkpoint.load(path)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    return position, pending
