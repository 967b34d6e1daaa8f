"""Everything that a run needs, loaded and checked before any compute is spent; restored where there is a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.prompts import Prompt
from ..data.rollout import Rollout
from ..errors import InputError
from ..method.logits import Head
from ..models import load
from ..models.identity import fingerprint
from ..models.policy import Policy
from ..models.views import AdapterView
from ..models.vocabularies import SharedVocabulary, shared_vocabulary
from ..rollout.choose import served_engine
from ..rollout.engine import Engine
from ..rollout.hf import HFEngine
from ..rollout.shared import LedEngine, SharedEngine
from ..rollout.vllm_server import VLLMEngine
from ..scorers.scorer import Scorer
from ..scorers.server import ServedScorer
from ..world import Alone, World
from . import checkpoint
from .checkpoint import Position
from .checks import check_engines, check_ranks, check_shared, reads_newlines, stop_group_of
from .determinism import prepare_torch
from .follow import Follower, copies_of
from .graders import Graders
from .learner import Learner
from .offload import Parked, ParkedEngine, ParkedScorer, moves, park, park_state
from .policies import load_policies, scorers_of
from .problems import problems_of, prompts_of
from .rollouts import Engines
from .routing import views_of
from .run import Run
from .scoring import check_scorers
from .teachers import cached, connected, contexts_of, models_of, routed, teachers_tokenizers


def build_run(config: TrainConfig, out: Path, world: World | None = None) -> Run:
    """Load, check and, where `out` has a checkpoint, restore; on every rank of a world. Raises InputError."""
    world = world or Alone()
    device = prepare_torch(config)
    check_ranks(config, world)
    tokenizer = load.load_tokenizer(config.student, "student")
    theirs = teachers_tokenizers(config)
    shared = check_engines(config, shared_vocabulary(tokenizer, theirs))
    data = problems_of(config)
    views = views_of(config, tokenizer, theirs)
    last = next(iter(world.share(checkpoint.all_checkpoints(out / "checkpoints")[-1:])[0]), None)
    policy, targets, served, fingerprints = loaded_policies(config, last, tokenizer, device, world, shared)
    stop_ids = chosen_stop_ids(config, policy, targets, tokenizer, theirs)
    parked = park(config, policy, targets) if world.size == 1 else {}
    scorers = scorers_for(config, policy, targets, served, parked, fingerprints, world)
    prompts = prompts_of(data, config, views, load.context_length(policy.model), contexts_of(config, targets, served))
    learner = learner_of(config, policy, targets, parked, world)
    copies = copies_of(config, policy, targets)
    position, pending = _begun(config, last, learner, copies)
    student = student_engine(config, policy, targets.get("teacher"), out, prompts.training, world)
    student.load(policy, learner.version)
    engines = engines_of(config, student, targets.get("teacher"), tokenizer, stop_ids, world)
    check_shared(config, shared, prompts.training, engines)
    return Run(
        config=config,
        out=out,
        policy=policy,
        targets=targets,
        tokenizer=tokenizer,
        scorers=scorers,
        engines=parked_engines(config, engines, parked.get("teacher")),
        learner=learner,
        problems=prompts,
        views=views,
        newline_ids=newline_ids(tokenizer, policy.vocabulary_size if reads_newlines(config) else 0),
        grader=Graders(config.prompts),
        position=position,
        pending=pending,
        copies=copies,
        fingerprints=fingerprints,
        served=served,
        shared=shared,
        world=world,
    )


def loaded_policies(
    config: TrainConfig,
    last: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    world: World,
    shared: SharedVocabulary | None,
) -> tuple[Policy, dict[str, Policy], dict[str, ServedScorer], dict[str, str]]:
    """The student and its targets, sharded over the ranks; the teachers on servers; and what all of them are
    (`Run.fingerprints`). last: the checkpoint that the student goes on from."""
    loaded_on = device if world.size == 1 else torch.device("cpu")  # the shards alone go to the device
    policy, targets = load_policies(config, last and last / "model", loaded_on, shared.size if shared else None)
    served = connected(config, policy.vocabulary_size, world)
    teachers = {role: targets[role] for role in config.local_teachers}
    fingerprints = fingerprints_of(policy, teachers, tokenizer) if world.rank == 0 else {}
    fingerprints |= {role: scorer.sha256 for role, scorer in served.items()}
    if world.size > 1:
        shard_policies(config, policy, targets, device)
    return policy, targets, served, fingerprints


def chosen_stop_ids(
    config: TrainConfig,
    policy: Policy,
    targets: Mapping[str, Policy],
    tokenizer: PreTrainedTokenizerBase,
    theirs: Mapping[str, PreTrainedTokenizerBase],
) -> tuple[int, ...]:
    """The ids that end a response. All models take them as one class where the settings say so. Raises InputError."""
    teachers = models_of(config, theirs, targets)
    found = load.choose_stop_ids((policy.model, tokenizer), teachers, config.rollout.stop_ids)
    for each in (policy, *targets.values()):
        each.stop_group = stop_group_of(config, found, policy.vocabulary_size)
    return found


def fingerprints_of(
    policy: Policy, teachers: Mapping[str, Policy], tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """SHA-256 of the student, of the frozen base of its adapters, which a checkpoint does not hold, and of the
    teachers."""
    found = {"student": fingerprint(policy, tokenizer)}
    found |= {role: fingerprint(teacher, tokenizer) for role, teacher in teachers.items()}
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


def learner_of(
    config: TrainConfig, policy: Policy, targets: Mapping[str, Policy], parked: Mapping[str, Parked], world: World
) -> Learner:
    """parked: those of the targets that wait in the computer's memory."""
    heads: dict[str, Callable[[], Head]] = {name: lambda each=each: each.head for name, each in targets.items()}
    heads |= {name: model.head for name, model in parked.items()}
    return Learner(config, policy, config.steps * config.passes * config.updates_per_step, heads, world)


def engines_of(
    config: TrainConfig,
    student: Engine,
    teacher: Policy | None,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    world: World,
) -> Engines:
    """teacher: None where there is not one that can write."""
    writer: Engine | None = HFEngine(teacher, config.rollout.batch) if teacher is not None else None
    writer = SharedEngine(writer, world) if writer is not None and world.size > 1 else writer

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Engines(student, writer, stop_ids, encode)


def student_engine(
    config: TrainConfig,
    policy: Policy,
    teacher: Policy | None,
    out: Path,
    prompts: Sequence[Prompt],
    world: World,
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


def scorers_for(
    config: TrainConfig,
    policy: Policy,
    targets: dict[str, Policy],
    served: Mapping[str, ServedScorer],
    parked: Mapping[str, Parked],
    fingerprints: Mapping[str, str],
    world: World,
) -> dict[str, Scorer]:
    """See `Run.scorers`. Raises InputError where one of them cannot score what is needed."""
    own = {**parked_scorers(scorers_of(config, policy, targets, world), parked), **served}
    scorers = routed(config, cached(config, own, policy, fingerprints, world))
    check_scorers(config, scorers)
    return scorers


def parked_scorers(scorers: Mapping[str, Scorer], parked: Mapping[str, Parked]) -> dict[str, Scorer]:
    """The scorers; those whose models wait in the computer's memory bring them to the GPU to score."""
    return {**scorers, **{name: ParkedScorer(scorers[name], model) for name, model in parked.items()}}


def parked_engines(config: TrainConfig, engines: Engines, teacher: Parked | None) -> Engines:
    """The engines, where the teacher waits in the computer's memory: it comes to write, or to guide the student."""
    if teacher is None or engines.teacher is None:
        return engines
    student = ParkedEngine(engines.student, teacher) if config.rollout.kl_budget else engines.student
    return replace(engines, student=student, teacher=ParkedEngine(engines.teacher, teacher))


def newline_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """bool [V]: token ids whose text contains a newline. size: V; 0 where no weight asks, to spare a pass over it."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return table


def _begun(
    config: TrainConfig, last: Path | None, learner: Learner, copies: Mapping[str, Follower]
) -> tuple[Position, dict[int, Rollout]]:
    """Where a run begins: at its last checkpoint, restored, or at nothing."""
    found = (Position(), {}) if last is None else _restore(last, learner, copies)
    if "optimizer" in config.offload:
        park_state(learner.optimizer, learner.policy.device)
    return found


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
