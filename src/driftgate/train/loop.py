"""Gated on-policy distillation, the whole of it (arXiv 2606.24084).

for each step:
    sample responses to the step's prompts from the student                       rollout
    score them: the student's own log-probabilities, the teacher's                score
    repeat `passes` times, for each minibatch of the responses:                   learn
        shift  d_t = log p(y_t) - log o(y_t)
        gates  g = exp(-tau |mean of d over the token's span|), scaled to mean 1
        one optimiser step on the mean of g_t l_t
    save every `checkpoint.every` steps
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .. import keyed
from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Prompt
from ..errors import RunError
from ..loss_config import BlockPartition
from ..rollout.horizon import LengthController
from ..teacher.local import TargetNeeds, score_tokens
from . import checkpoint
from .checkpoint import Position
from .learner import Learner, Portion
from .rollouts import (
    controller_after,
    length_limit,
    make_experience,
    prompts_of_step,
    reference_responses,
    rollout_metrics,
    rollout_rows,
    sample_responses,
    teacher_responses,
)
from .scoring import needs_of
from .setup import Parts
from .stop import StopSignal
from .tracking import Display, Metrics, write_rollouts
from .weighing import Moment, Spans, fixed_partitions, partition_spans

Streams = dict[str, Experience]
"""A rollout batch: the student's responses under "student", and those of others that a term learns from."""


@dataclass
class State:
    """What a checkpoint restores, beside the student and the learner."""

    position: Position
    pending: Streams


def train(config: TrainConfig, parts: Parts, out: Path, display: Display, stop: StopSignal) -> None:
    """Run or resume until `config.steps`. Raises RunError for a failure on the way, Stopped when asked to stop."""
    state = State(parts.position, parts.pending)
    metrics = Metrics(out / "metrics.jsonl", state.position)
    try:
        while state.position.step < config.steps:
            one_step(config, parts, state, metrics, out, display, stop)
            if state.position.step % config.checkpoint.every == 0 or state.position.step == config.steps:
                save(config, parts, state, out)
    except stop.Stopped:
        save(config, parts, state, out)
        raise


def one_step(
    config: TrainConfig,
    parts: Parts,
    state: State,
    metrics: Metrics,
    out: Path,
    display: Display,
    stop: StopSignal,
) -> None:
    """Collect (or take up) a rollout batch, then make the optimiser updates that it still owes."""
    position = state.position
    if not state.pending:
        state.pending = collect(config, parts, position, metrics, out, display, stop)
    streams = state.pending
    spans = {name: spans_of(config, parts, name, batch) for name, batch in streams.items()}
    values: dict[str, float] = {}
    for number, (pass_, minibatch, sequences) in enumerate(schedule(config, position.step)):
        if number < position.update:
            continue
        where = {
            "step": position.step + 1,
            "update": number + 1,
            "pass": pass_ + 1,
            "minibatch": minibatch + 1,
        }
        portions = {
            name: Portion(batch, sequences_of(config, name, batch, sequences, minibatch), *spans[name])
            for name, batch in streams.items()
        }
        moment = Moment(config.seed, position.step, number)
        values = timed_update(parts.learner, portions, moment, diagnosed(config, position.step), where, out)
        metrics.log("update", **where, **values)
        position.update = number + 1
        stop.check()
    lengths = [len(response) for response in streams["student"].responses]
    controller = controller_after(config, controller_of(config, position), lengths)
    state.position, state.pending = Position(position.step + 1, controller=controller), {}
    display.step(state.position.step, parts.last_rollout | values)


def collect(
    config: TrainConfig,
    parts: Parts,
    position: Position,
    metrics: Metrics,
    out: Path,
    display: Display,
    stop: StopSignal,
) -> Streams:
    """Rollout and scores of a step: the student's responses and, where a term is on them, those of others."""
    step, prompts = position.step, prompts_of_step(parts.prompts, config, position.step)
    limit = length_limit(config, step, controller_of(config, position))
    display.rollout(len(prompts) * config.rollout.samples)

    def advance(responses: int) -> None:
        display.advance(responses)
        stop.check()

    began = time.perf_counter()
    responses = sample_responses(
        parts.engines, prompts, config, step, limit, parts.stop_ids, parts.encode_solution, advance
    )
    rows = rollout_rows(prompts, responses, parts.decode, parts.grader)
    write_rollouts(out / "rollouts" / f"step-{step + 1:06d}.jsonl", rows)
    batch = make_experience(prompts, responses, [row["correct"] for row in rows], config, limit)
    streams = {"student": batch} | other_streams(config, parts, prompts, step)
    sampled = time.perf_counter()
    streams = {name: behaviour_scores(config, parts, name, each, step) for name, each in streams.items()}
    rescored = time.perf_counter()
    streams = {name: target_scores(config, parts, name, each, step) for name, each in streams.items()}
    taught = time.perf_counter()
    seconds = {"seconds_rollout": sampled - began, "seconds_behaviour": rescored - sampled}
    parts.last_rollout = rollout_metrics(streams["student"], rows) | seconds | {"seconds_teacher": taught - rescored}
    if config.rollout.horizon is not None:
        parts.last_rollout["limit"] = limit
    metrics.log("rollout", step=step + 1, **parts.last_rollout)
    return streams


def other_streams(config: TrainConfig, parts: Parts, prompts: Sequence[Prompt], step: int) -> Streams:
    """Reference solutions and the teacher's samples, each where a term of the loss is on them."""
    wanted = {term.stream for term in config.all_terms.values()}
    streams: Streams = {}
    if "reference" in wanted:
        limit = config.rollout.max_new_tokens
        references = reference_responses(prompts, limit, parts.stop_ids, parts.encode_solution)
        streams["reference"] = Experience.of(prompts, references, config.drop_tokens)
    if "teacher" in wanted:
        samples = teacher_responses(parts.engines, prompts, config, step, parts.stop_ids)
        streams["teacher"] = Experience.of(prompts, samples, config.drop_tokens)
    return streams


def behaviour_scores(config: TrainConfig, parts: Parts, name: str, batch: Experience, step: int) -> Experience:
    """What the student itself says of a stream before the first update, by the trainer's own forward: log o(y_t) and,
    as needed, its entropy and most probable tokens.

    In the very micro-batches of the first pass, so that the drift of the first update is exactly 0, not rounding noise.
    """
    needs = needs_of(config, name, diagnosed(config, step))
    if not needs.behaviour:
        return batch
    scores: dict[str, Tensor] = {}
    for pass_, minibatch, sequences in schedule(config, step):
        if pass_ == 0:
            chosen = sequences_of(config, name, batch, sequences, minibatch)
            micros = batch.micro_batches(chosen, config.microbatch_tokens, parts.policy.device)
            wanted = TargetNeeds(entropy=needs.entropy, top=needs.top)
            part = score_tokens(parts.policy, micros, batch.ids[:, None], wanted, config.rollout.temperature)
            scores |= {key: value + scores[key] if key in scores else value for key, value in part.items()}
    names = {"logp": "behaviour_logp", "entropy": "behaviour_entropy"}
    scores["logp"] = scores["logp"][:, 0]
    return batch.with_scores(**{names.get(key, f"student_{key}"): value for key, value in scores.items()})


def target_scores(config: TrainConfig, parts: Parts, name: str, batch: Experience, step: int) -> Experience:
    """What the teacher, and the initial student where a term is held to it, say of a stream."""
    for target, needs in needs_of(config, name, diagnosed(config, step)).targets.items():
        batch = parts.targets[target].score(batch, needs)
    return batch


def spans_of(config: TrainConfig, parts: Parts, name: str, batch: Experience) -> tuple[Spans, Tensor | None]:
    """The partitions of a stream that its terms' weights use, and the one that the drift metric averages over."""
    spans: Spans = {}
    for term in config.all_terms.values():
        if term.stream == name:
            spans |= fixed_partitions(term, batch, parts.newline_ids)
    if name != "student":
        return spans, None
    measured = config.gate.partition if config.gate.spans != "changepoint" else BlockPartition(size=config.gate.size)
    return spans, partition_spans(measured, batch, parts.newline_ids)


def sequences_of(config: TrainConfig, name: str, batch: Experience, sequences: list[int], minibatch: int) -> list[int]:
    """A stream's share of a minibatch: the student's own sequences; of other streams every n-th, for n minibatches."""
    if name == "student":
        return sequences
    return list(range(minibatch, len(batch.responses), config.updates_per_step))


def controller_of(config: TrainConfig, position: Position) -> LengthController:
    """The length controller as it stands; a new run's starts at `rollout.horizon.start`."""
    horizon = config.rollout.horizon
    return position.controller or LengthController(horizon.start if horizon else config.rollout.max_new_tokens)


def diagnosed(config: TrainConfig, step: int) -> bool:
    """Whether a step, counted from 0, is one whose updates are measured in full."""
    every = config.diagnostics.every
    return every > 0 and (step + 1) % every == 0


def schedule(config: TrainConfig, step: int) -> Iterator[tuple[int, int, list[int]]]:
    """(pass, minibatch, responses of it) of every update of a step; each pass shuffles anew, keyed."""
    responses = config.prompts.per_step * config.rollout.samples
    size = config.minibatch or responses
    for pass_ in range(config.passes):
        order = keyed.generator(config.seed, "minibatches", step, pass_).permutation(responses).tolist()
        for minibatch, start in enumerate(range(0, responses, size)):
            yield pass_, minibatch, order[start : start + size]


def timed_update(
    learner: Learner,
    portions: dict[str, Portion],
    moment: Moment,
    diagnose: bool,
    where: dict[str, int],
    out: Path,
) -> dict[str, float]:
    """One optimiser update; a failure is told with its place and with what is left to resume from."""
    began = time.perf_counter()
    try:
        values = learner.update(portions, moment, diagnose)
    except RunError as error:
        place = ", ".join(f"{name} {number}" for name, number in where.items())
        last = checkpoint.all_checkpoints(out / "checkpoints")[-1:]
        kept = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        raise RunError(f"{error} at {place}; stopped before the optimiser step; {kept}") from None
    return values | {"seconds": time.perf_counter() - began}


def save(config: TrainConfig, parts: Parts, state: State, out: Path) -> None:
    """A checkpoint of where the run stands."""
    pending = state.pending if state.position.update else {}
    learner_state = {
        "optimizer": parts.learner.optimizer.state_dict(),
        "schedule": parts.learner.schedule.state_dict(),
    }
    folder, keep = out / "checkpoints", config.checkpoint.keep
    checkpoint.save(folder, state.position, parts.policy.model, parts.tokenizer, learner_state, pending, keep)
