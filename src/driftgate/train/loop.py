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
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainConfig
from ..data.experience import Experience
from ..errors import RunError
from ..stop import StopSignal
from . import checkpoint
from .checkpoint import Position
from .learner import Learner
from .portions import Portion, schedule, sequences_of, spans_of
from .records import distances, make_experience, rollout_metrics, rollout_rows
from .rollouts import (
    controller_after,
    controller_of,
    length_limit,
    other_streams,
    prompts_of_step,
    sample_responses,
)
from .scoring import behaviour_scores, diagnosed, target_scores
from .setup import Parts
from .tracking import Display, Metrics, write_rollouts
from .weighing import Moment

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
    spans = {name: spans_of(config, name, batch, parts.newline_ids) for name, batch in streams.items()}
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
        if number == 0:
            values |= distances(streams["student"])
        metrics.log("update", **where, **values)
        position.update = number + 1
        stop.check()
    controller = controller_of(config, position.controller)
    controller = controller_after(config, controller, streams["student"].lengths)
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
    parts.learner.optimizer.zero_grad()  # the gradients' memory goes to the rollout
    step, prompts = position.step, prompts_of_step(parts.prompts, config, position.step)
    limit = length_limit(config, step, controller_of(config, position.controller))
    display.rollout(len(prompts) * config.rollout.samples)

    def advance(responses: int) -> None:
        display.advance(responses)
        stop.check()

    began = time.perf_counter()
    responses = sample_responses(parts.engines, prompts, config, step, limit, advance)
    rows = rollout_rows(prompts, responses, parts.decode, parts.grader)
    write_rollouts(out / "rollouts" / f"step-{step + 1:06d}.jsonl", rows)
    batch = make_experience(prompts, responses, [row["correct"] for row in rows], config, limit)
    streams = {"student": batch} | other_streams(parts.engines, prompts, config, step, stop.check)
    sampled = time.perf_counter()
    streams = {name: behaviour_scores(config, parts.policy, name, each, step) for name, each in streams.items()}
    rescored = time.perf_counter()
    streams = {name: target_scores(config, parts.targets, name, each, step) for name, each in streams.items()}
    taught = time.perf_counter()
    seconds = {"seconds_rollout": sampled - began, "seconds_behaviour": rescored - sampled}
    parts.last_rollout = rollout_metrics(streams["student"], rows) | seconds | {"seconds_teacher": taught - rescored}
    if config.rollout.horizon is not None:
        parts.last_rollout["limit"] = limit
    metrics.log("rollout", step=step + 1, **parts.last_rollout)
    return streams


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
