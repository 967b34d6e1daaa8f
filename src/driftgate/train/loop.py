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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import keyed
from ..config import TrainConfig
from ..data.experience import Experience
from ..errors import RunError
from ..teacher.local import token_logprobs
from . import checkpoint
from .checkpoint import Position
from .learner import Learner, make_spans
from .rollouts import (
    make_experience,
    prompts_of_step,
    rollout_metrics,
    rollout_rows,
    sample_responses,
)
from .setup import Parts
from .stop import StopSignal
from .tracking import Display, Metrics, write_rollouts


@dataclass
class State:
    """What a checkpoint restores, beside the student and the learner."""

    position: Position
    pending: Experience | None = None


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
    if state.pending is None:
        state.pending = collect(config, parts, position.step, metrics, out, display, stop)
    batch = state.pending
    spans = make_spans(config, batch, parts.newline_ids)
    values: dict[str, float] = {}
    for number, (pass_, minibatch, sequences) in enumerate(schedule(config, position.step, len(batch.responses))):
        if number < position.update:
            continue
        where = {
            "step": position.step + 1,
            "update": number + 1,
            "pass": pass_ + 1,
            "minibatch": minibatch + 1,
        }
        values = timed_update(parts.learner, batch, spans, sequences, where, out)
        metrics.log("update", **where, **values)
        position.update = number + 1
        stop.check()
    state.position, state.pending = Position(position.step + 1), None
    display.step(state.position.step, parts.last_rollout | values)


def collect(
    config: TrainConfig,
    parts: Parts,
    step: int,
    metrics: Metrics,
    out: Path,
    display: Display,
    stop: StopSignal,
) -> Experience:
    """Rollout and scores of a step, counted from 0."""
    prompts = prompts_of_step(parts.prompts, config, step)
    display.rollout(len(prompts) * config.rollout.samples)

    def advance(responses: int) -> None:
        display.advance(responses)
        stop.check()

    began = time.perf_counter()
    responses = sample_responses(parts.engine, prompts, config, step, parts.stop_ids, advance)
    sampled = time.perf_counter()
    rows = rollout_rows(prompts, responses, parts.decode)
    write_rollouts(out / "rollouts" / f"step-{step + 1:06d}.jsonl", rows)
    batch = make_experience(prompts, responses, config)
    if config.needs_behaviour:
        batch = batch.with_scores(behaviour_logp=behaviour_logprobs(config, parts, batch, step))
    rescored = time.perf_counter()
    batch = parts.teacher.score(batch, config.objective)
    taught = time.perf_counter()
    seconds = {"seconds_rollout": sampled - began, "seconds_behaviour": rescored - sampled}
    parts.last_rollout = rollout_metrics(batch, rows) | seconds | {"seconds_teacher": taught - rescored}
    metrics.log("rollout", step=step + 1, **parts.last_rollout)
    return batch


def behaviour_logprobs(config: TrainConfig, parts: Parts, batch: Experience, step: int) -> Tensor:
    """log o(y_t) by the trainer's own forward, in the very micro-batches of the first pass.

    So the drift of the first update is exactly 0, not rounding noise. Returns [N].
    """
    logp = torch.zeros(len(batch.ids), dtype=parts.policy.wide)
    for pass_, _, sequences in schedule(config, step, len(batch.responses)):
        if pass_ == 0:
            micros = batch.micro_batches(sequences, config.microbatch_tokens, parts.policy.device)
            logp += token_logprobs(parts.policy, batch, micros, config.rollout.temperature)
    return logp


def schedule(config: TrainConfig, step: int, responses: int) -> Iterator[tuple[int, int, list[int]]]:
    """(pass, minibatch, responses of it) of every update of a step; each pass shuffles anew, keyed."""
    size = config.minibatch or responses
    for pass_ in range(config.passes):
        order = keyed.generator(config.seed, "minibatches", step, pass_).permutation(responses).tolist()
        for minibatch, start in enumerate(range(0, responses, size)):
            yield pass_, minibatch, order[start : start + size]


def timed_update(
    learner: Learner, batch: Experience, spans: Tensor, sequences: list[int], where: dict[str, int], out: Path
) -> dict[str, float]:
    """One optimiser update; a failure is told with its place and with what is left to resume from."""
    began = time.perf_counter()
    try:
        values = learner.update(batch, spans, sequences)
    except RunError as error:
        place = ", ".join(f"{name} {number}" for name, number in where.items())
        last = checkpoint.all_checkpoints(out / "checkpoints")[-1:]
        kept = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        raise RunError(f"{error} at {place}; stopped before the optimiser step; {kept}") from None
    return values | {"seconds": time.perf_counter() - began}


def save(config: TrainConfig, parts: Parts, state: State, out: Path) -> None:
    """A checkpoint of where the run stands."""
    pending = state.pending if state.position.update else None
    learner_state = {
        "optimizer": parts.learner.optimizer.state_dict(),
        "schedule": parts.learner.schedule.state_dict(),
    }
    folder, keep = out / "checkpoints", config.checkpoint.keep
    checkpoint.save(folder, state.position, parts.policy.model, parts.tokenizer, learner_state, pending, keep)
