"""Everything that a run needs, loaded and checked before any compute is spent; restored where there is a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.prompts import Problem, Prompt, encode_prompts, load_problems
from ..data.rollout import Rollout
from ..errors import InputError
from ..models import load
from ..models.identity import fingerprint
from ..models.policy import Policy
from ..models.views import AdapterView
from ..rollout.choose import served_engine
from ..rollout.engine import Engine
from ..rollout.hf import HFEngine
from ..rollout.shared import LedEngine, SharedEngine
from ..rollout.vllm_server import VLLMEngine
from ..scorers.scorer import Scorer
from ..verify.grading import Grader
from ..world import Alone, World
from . import checkpoint
from .checkpoint import Position
from .checks import check_problems, check_ranks, reads_newlines
from .determinism import prepare_torch
from .follow import Follower, copies_of
from .learner import Learner
from .offload import Parked, ParkedEngine, ParkedScorer, moves, park, park_state
from .policies import load_policies, scorers_of
from .rollouts import Engines
from .run import Run
from .scoring import check_scorers


def build_run(config: TrainConfig, out: Path, world: World | None = None) -> Run:
    """Load, check and, where `out` has a checkpoint, restore; on every rank of a world. Raises InputError."""
    world = world or Alone()
    device = prepare_torch(config)
    check_ranks(config, world)
    tokenizer = load.load_tokenizer(config.student, "student")
    teacher_tokenizer = load.load_tokenizer(config.teacher_model, "teacher")
    load.check_vocabularies(tokenizer, teacher_tokenizer)
    problems = load_problems(config.prompts)
    check_problems(problems, config)
    last = world.share(checkpoint.all_checkpoints(out / "checkpoints")[-1:])[0]
    model = last[0] / "model" if last else None
    policy, targets, fingerprints = loaded_policies(config, model, tokenizer, device, world)
    parked = park(config, policy, {n: t for n, t in targets.items() if n != "writer"}) if world.size == 1 else {}
    scorers = parked_scorers(scorers_of(config, policy, targets, world), parked)
    check_scorers(config, scorers)
    both = (policy.model, tokenizer), (targets["teacher"].model, teacher_tokenizer)
    stop_ids = load.choose_stop_ids(*both, config.rollout.stop_ids)
    prompts = encoded(problems, config, tokenizer, policy, targets["teacher"])
    learner = learner_of(config, policy, targets, parked, world)
    copies = copies_of(config, policy, targets)
    position, pending = _restore(last[0], learner, copies) if last else (Position(), {})
    if "optimizer" in config.offload:
        park_state(learner.optimizer, policy.device)
    student = student_engine(config, policy, targets["teacher"], out, prompts, world)
    student.load(policy, learner.version)
    engines = engines_of(config, student, targets["teacher"], tokenizer, stop_ids, world)
    return Run(
        config=config,
        out=out,
        policy=policy,
        targets=targets,
        tokenizer=tokenizer,
        scorers=scorers,
        engines=parked_engines(config, engines, parked.get("teacher")),
        learner=learner,
        prompts=prompts,
        newline_ids=newline_ids(tokenizer, policy.vocabulary_size if reads_newlines(config) else 0),
        grader=Grader(),
        position=position,
        pending=pending,
        copies=copies,
        fingerprints=fingerprints,
        world=world,
    )


def loaded_policies(
    config: TrainConfig, model: Path | None, tokenizer: PreTrainedTokenizerBase, device: torch.device, world: World
) -> tuple[Policy, dict[str, Policy], dict[str, str]]:
    """The student, its targets, and what they are (`Run.fingerprints`), sharded over the ranks. model: a
    checkpoint's."""
    loaded_on = device if world.size == 1 else torch.device("cpu")  # the shards alone go to the device
    policy, targets = load_policies(config, model, loaded_on)
    fingerprints = fingerprints_of(policy, targets["teacher"], tokenizer) if world.rank == 0 else {}
    if world.size > 1:
        shard_policies(config, policy, targets, device)
    return policy, targets, fingerprints


def fingerprints_of(policy: Policy, teacher: Policy, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """SHA-256 of the student, of the frozen base of its adapters, which a checkpoint does not hold, and of the
    teacher."""
    found = {"student": fingerprint(policy, tokenizer), "teacher": fingerprint(teacher, tokenizer)}
    if policy.adapters is not None:
        found["base"] = fingerprint(AdapterView(policy, None), tokenizer)
    return found


def shard_policies(config: TrainConfig, policy: Policy, targets: dict[str, Policy], device: torch.device) -> None:
    """Each rank keeps its share of every model. A divergence over the vocabulary reads its target's output embedding in
    every micro-batch, so that stays whole."""
    from ..models.shard import all_ranks, shard  # a process alone needs none of it

    mesh = all_ranks(device)
    read = {name for t in config.all_terms.values() for name, needs in t.objective.needs.items() if needs.hidden}
    views = {name for name, target in targets.items() if isinstance(target, AdapterView)}
    shard(policy, mesh, keep_head=bool(views & read))
    waits = "teacher" in config.offload and moves(device)
    for name, target in targets.items():
        if name not in views:
            shard(target, mesh, keep_head=name in read, offload=waits)


def encoded(
    problems: Sequence[Problem],
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    teacher: Policy,
) -> list[Prompt]:
    """The problems as token ids. Raises InputError for a prompt that leaves its response no room."""
    contexts = {"context": load.context_length(policy.model), "teacher_context": load.context_length(teacher.model)}
    new, template = config.rollout.max_new_tokens, config.teacher.context
    return encode_prompts(problems, tokenizer, config.prompts, new, teacher_template=template, **contexts)


def learner_of(
    config: TrainConfig, policy: Policy, targets: Mapping[str, Policy], parked: Mapping[str, Parked], world: World
) -> Learner:
    """parked: those of the targets that wait in the computer's memory."""
    heads: dict[str, Callable[[], Tensor]] = {name: lambda each=each: each.head for name, each in targets.items()}
    heads |= {name: model.head for name, model in parked.items()}
    return Learner(config, policy, config.steps * config.passes * config.updates_per_step, heads, world)


def engines_of(
    config: TrainConfig,
    student: Engine,
    teacher: Policy,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    world: World,
) -> Engines:
    writer: Engine = HFEngine(teacher, config.rollout.batch)
    writer = SharedEngine(writer, world) if world.size > 1 else writer

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Engines(student, writer, stop_ids, encode)


def student_engine(
    config: TrainConfig, policy: Policy, teacher: Policy, out: Path, prompts: Sequence[Prompt], world: World
) -> Engine:
    """Not loaded yet. Raises InputError for servers that cannot serve this student."""
    settings, new = config.rollout.engine, config.rollout.max_new_tokens
    if settings.kind == "hf":
        own = HFEngine(policy, config.rollout.batch, guide=teacher)
        return SharedEngine(own, world) if world.size > 1 else own

    def make() -> VLLMEngine:
        made = served_engine(settings, policy, config.student.path, out)
        made.check_room(max(len(prompt.ids) for prompt in prompts), new)
        return made

    return LedEngine(make, world) if world.size > 1 else make()


def parked_scorers(scorers: Mapping[str, Scorer], parked: Mapping[str, Parked]) -> dict[str, Scorer]:
    """The scorers; those whose models wait in the computer's memory bring them to the GPU to score."""
    return {**scorers, **{name: ParkedScorer(scorers[name], model) for name, model in parked.items()}}


def parked_engines(config: TrainConfig, engines: Engines, teacher: Parked | None) -> Engines:
    """The engines, where the teacher waits in the computer's memory: it comes to write, or to guide the student."""
    if teacher is None:
        return engines
    student = ParkedEngine(engines.student, teacher) if config.rollout.kl_budget else engines.student
    return replace(engines, student=student, teacher=ParkedEngine(engines.teacher, teacher))


def newline_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """bool [V]: token ids whose text contains a newline. size: V; 0 where no weight asks, to spare a pass over it."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return table


def _restore(path: Path, learner: Learner, copies: Mapping[str, Follower]) -> tuple[Position, dict[int, Rollout]]:
    position, state, pending = checkpoint.load(path)
    try:
        learner.load_state_dict(state)
        if learner.world.size > 1 or (path / checkpoint.SHARDS).is_dir():
            from .sharded import restore

            restore(path, learner, copies, state)
        else:
            for name in copies.keys() & state.keys():
                copies[name].load(state[name])
    except ValueError as error:
        raise InputError(
            f"{path}: its optimiser belongs to a model of another shape ({error}); restore the checkpoint, or delete "
            f"it to go on from the one before"
        ) from None
    return position, pending
