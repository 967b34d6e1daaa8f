"""Who writes the responses of a step, how long they may get, and what stands in their places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from .. import keyed
from ..config import TrainConfig
from ..config.maps import AffineMap
from ..data.experience import Experience
from ..data.prompts import Prompt
from ..data.response import Response
from ..horizon import LengthController, growing, share
from ..rollout.engine import Engine, Request, Sampling
from ..rollout.prefix import generate_with_prefix
from ..rollout.reference import reference_response
from .portions import Batch
from .weighing import Moment, factor_values, streams_of


@dataclass
class Engines:
    """Who writes: the student, leaning on the teacher where there is a KL budget, and the teacher itself."""

    student: Engine
    teacher: Engine
    stop_ids: tuple[int, ...]
    encode: Callable[[str], tuple[int, ...]]
    """Token ids of a reference solution."""


def length_limit(config: TrainConfig, step: int, controller: LengthController) -> int:
    """Longest response of a step, counted from 0."""
    horizon, limit = config.rollout.horizon, config.rollout.max_new_tokens
    if horizon is None:
        return limit
    if horizon.kind == "growing":
        return growing(step, horizon.start, horizon.increment, horizon.every, limit)
    return share(horizon.rho, limit) if horizon.kind == "share" else min(controller.cap, limit)


def controller_of(config: TrainConfig, controller: LengthController | None) -> LengthController:
    """The length controller as it stands; a new run's starts at `rollout.horizon.start`."""
    horizon = config.rollout.horizon
    return controller or LengthController(horizon.start if horizon else config.rollout.max_new_tokens)


def controller_after(config: TrainConfig, controller: LengthController, batch: Batch) -> LengthController:
    """The length controller after a step with this rollout batch; its floor is where it started."""
    horizon = config.rollout.horizon
    if horizon is None or horizon.kind != "controller":
        return controller
    how = horizon.near, horizon.least_share, horizon.change, horizon.patience, horizon.start
    return controller.after(counted_lengths(config, batch), config.rollout.max_new_tokens, *how)


def counted_lengths(config: TrainConfig, batch: Batch) -> list[int]:
    """Tokens of each response that the student wrote: all of them, or those that `horizon.unpruned_by` leaves."""
    horizon, student = config.rollout.horizon, batch.student
    if horizon is None or horizon.unpruned_by is None:
        return student.lengths
    name = horizon.unpruned_by
    factor = config.weights[name]
    affine, moment = cast(AffineMap, factor.map), Moment(config.seed, 0)
    tokens, cpu = torch.arange(len(student.ids)), torch.device("cpu")
    streams = streams_of(student, tokens, factor.reads, None, moment, config.diagnostics.k, cpu)
    values = factor_values(name, factor, streams, batch.spans["student"][0], moment, {})
    kept = values - affine.shift - cast(float, affine.low) > 1e-6
    counts = torch.zeros(len(student.responses)).index_add(0, student.rows, kept.float()).int().tolist()
    return [count for count, written in zip(counts, student.written.tolist()) if written]


def prompts_of_step(prompts: Sequence[Prompt], config: TrainConfig, step: int) -> list[Prompt]:
    """The prompts of a step, counted from 0: consecutive places in a shuffle keyed by seed and epoch."""
    size, count = config.prompts.per_step, len(prompts)
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: keyed.generator(config.seed, "order", epoch).permutation(count)
        for epoch in {place // count for place in places}
    }
    return [prompts[orders[place // count][place % count]] for place in places]


def sample_responses(
    engines: Engines,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    step: int,
    limit: int,
    advance: Callable[[int], None],
) -> list[list[Response]]:
    """`rollout.samples` responses of each prompt, of at most `limit` tokens, written as the settings say.

    Every one has its own address in the random stream; where its place goes to the reference solution it is not made.
    """
    settings = config.rollout
    own = [_own_places(config, step, place, prompt) for place, prompt in enumerate(prompts)]
    requests = [
        Request(p.ids, tuple((config.seed, "rollout", step, place, p.problem.id, n) for n in samples), p.teacher_ids)
        for place, (p, samples) in enumerate(zip(prompts, own))
        if samples
    ]
    budget = settings.kl_budget * _left(step, settings.kl_budget_steps)
    sampling = Sampling(limit, settings.temperature, settings.top_p, engines.stop_ids, budget)
    prefix = min(round(settings.teacher_prefix * _left(step, settings.teacher_prefix_steps)), limit - 1)
    written = generate_with_prefix(engines.student, engines.teacher, requests, sampling, prefix, advance)
    if settings.on_policy == 1:
        return written
    return _mixed(written, reference_responses(engines, prompts, limit), own, settings.samples)


def _left(step: int, steps: int | None) -> float:
    """What is left of a quantity that falls linearly to 0 over so many steps; all of it for None."""
    return 1.0 if steps is None else max(0.0, 1 - step / steps)


def _own_places(config: TrainConfig, step: int, place: int, prompt: Prompt) -> list[int]:
    """The samples of a prompt that the student writes: each with probability `rollout.on_policy`, keyed."""
    count, share = config.rollout.samples, config.rollout.on_policy
    draws = keyed.generator(config.seed, "mixture", step, place, prompt.problem.id).random(count)
    return [sample for sample in range(count) if draws[sample] < share]


def _mixed(
    written: list[list[Response]], references: list[list[Response]], own: list[list[int]], samples: int
) -> list[list[Response]]:
    """Each prompt's samples: those that the student wrote in their places, the reference solution in the others."""
    groups, mixed = iter(written), []
    for places, [reference] in zip(own, references):
        group = [reference] * samples
        for place, response in zip(places, next(groups) if places else []):
            group[place] = response
        mixed.append(group)
    return mixed


def reference_responses(engines: Engines, prompts: Sequence[Prompt], limit: int) -> list[list[Response]]:
    """Each prompt's reference solution as its one response, cut at `limit` tokens."""
    whole = [reference_response(engines.encode(p.problem.solution or ""), engines.stop_ids[0]) for p in prompts]
    return [[r if len(r.ids) <= limit else _cut(r, limit)] for r in whole]


def _cut(response: Response, limit: int) -> Response:
    return replace(response, ids=response.ids[:limit], logprobs=response.logprobs[:limit], finished=False)


def teacher_responses(
    engines: Engines, prompts: Sequence[Prompt], config: TrainConfig, step: int, advance: Callable[[int], None]
) -> list[list[Response]]:
    """One sample of the teacher for each prompt, behind the teacher's own prompt."""
    settings = config.rollout
    requests = [
        Request(p.teacher_ids, ((config.seed, "teacher stream", step, place, p.problem.id),))
        for place, p in enumerate(prompts)
    ]
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, engines.stop_ids)
    return engines.teacher.generate(requests, sampling, advance)


def other_responses(
    engines: Engines, prompts: Sequence[Prompt], config: TrainConfig, step: int, check: Callable[[], None]
) -> dict[str, Experience]:
    """Reference solutions and the teacher's samples, each where a term of the step's loss is on them.

    check: called as the teacher's samples end; may raise to stop.
    """
    wanted = {term.responses for term in config.terms_at(step).values()}
    found = {}
    if "reference" in wanted:
        found["reference"] = reference_responses(engines, prompts, config.rollout.max_new_tokens)
    if "teacher" in wanted:
        found["teacher"] = teacher_responses(engines, prompts, config, step, lambda count: check())
    return {name: Experience.of(prompts, responses, config.drop_tokens) for name, responses in found.items()}
