"""The responses of a step: who writes them, how long they may be, and which are reference solutions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from .. import keyed
from ..config import TrainConfig
from ..config.maps import AffineMap
from ..data.experience import Experience
from ..data.mixture import places_of
from ..data.prompts import Prompt
from ..data.response import Response
from ..horizon import LengthController, growing, share
from ..rollout.engine import Engine, Request, Sampling
from ..rollout.prefix import generate_with_prefix
from ..rollout.reference import reference_response
from ..rollout.shared import LedEngine
from ..rollout.vllm_server import VLLMEngine
from .portions import Batch
from .weighing import Moment, factor_values, streams_of


@dataclass
class Engines:
    """The engines that write responses. With a KL budget the teacher guides the student's engine."""

    student: Engine
    teacher: Engine | None
    """None where there is not one teacher that can write."""
    stop_ids: tuple[int, ...]
    encode: Callable[[str], tuple[int, ...]]
    """Turns the text of a reference solution into token ids."""

    def close(self) -> None:
        """End the server that was started for the student."""
        if isinstance(self.student, (VLLMEngine, LedEngine)):
            self.student.close()


def length_limit(config: TrainConfig, step: int, controller: LengthController) -> int:
    """Most tokens of a response at a step. step: counted from 0; controller: as it stands before the step."""
    horizon, limit = config.rollout.horizon, config.rollout.max_new_tokens
    if horizon is None:
        return limit
    if horizon.kind == "growing":
        return growing(step, horizon.start, horizon.increment, horizon.every, limit)
    return share(horizon.rho, limit) if horizon.kind == "share" else min(controller.cap, limit)


def controller_of(config: TrainConfig, controller: LengthController | None) -> LengthController:
    """The length controller as it stands. In a new run it starts at `rollout.horizon.start`."""
    horizon = config.rollout.horizon
    return controller or LengthController(horizon.start if horizon else config.rollout.max_new_tokens)


def controller_after(config: TrainConfig, controller: LengthController, batch: Batch) -> LengthController:
    """The length controller after a step with this rollout batch. It never falls below the limit that it started at."""
    horizon = config.rollout.horizon
    if horizon is None or horizon.kind != "controller":
        return controller
    how = horizon.near, horizon.least_share, horizon.change, horizon.patience, horizon.start
    return controller.after(counted_lengths(config, batch), config.rollout.max_new_tokens, *how)


def counted_lengths(config: TrainConfig, batch: Batch) -> list[int]:
    """Tokens of each response that the student wrote. With `horizon.unpruned_by`, only the tokens that this weight
    keeps above its lower bound are counted."""
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


def prompts_of_batch(prompts: Sequence[Prompt], config: TrainConfig, number: int) -> list[Prompt]:
    """The prompts of a rollout batch, counted from 0. They are consecutive in a shuffled order, which depends on the
    seed and the epoch alone; of a mixture each source has such an order of its own."""
    size, mix = config.prompts.per_step, config.prompts.mix
    places = range(number * size, (number + 1) * size)
    if not mix:
        return _shuffled(prompts, (config.seed, "order"), places)
    drawn = places_of({name: source.weight for name, source in mix.items()}, places.start, places.stop)
    walks = {}
    for name in mix:
        own = [prompt for prompt in prompts if prompt.problem.source == name]
        walks[name] = iter(_shuffled(own, (config.seed, "order", name), [n for each, n in drawn if each == name]))
    return [next(walks[name]) for name, _ in drawn]


def _shuffled(prompts: Sequence[Prompt], key: tuple[int | str, ...], places: Sequence[int]) -> list[Prompt]:
    """The prompts at these places of a walk through ever new shuffles, one an epoch."""
    count = len(prompts)
    orders = {epoch: keyed.generator(*key, epoch).permutation(count) for epoch in {place // count for place in places}}
    return [prompts[orders[place // count][place % count]] for place in places]


def sample_responses(
    engines: Engines,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    step: int,
    limit: int,
    advance: Callable[[int], None],
) -> list[list[Response]]:
    """`rollout.samples` responses of each prompt, of at most `limit` tokens each.

    Every response has a random key of its own, so it does not depend on how many others are written. With
    `rollout.on_policy` below 1, reference solutions take the places of some; those are not written. advance: called
    with the number of responses that have ended.
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
    """The factor of a quantity that falls linearly from 1 to 0 over `steps` steps. 1 for None."""
    return 1.0 if steps is None else max(0.0, 1 - step / steps)


def _own_places(config: TrainConfig, step: int, place: int, prompt: Prompt) -> list[int]:
    """Numbers of the samples that the student writes. Each is drawn with probability `rollout.on_policy`, by the
    prompt's own random key."""
    count, share = config.rollout.samples, config.rollout.on_policy
    draws = keyed.generator(config.seed, "mixture", step, place, prompt.problem.id).random(count)
    return [sample for sample in range(count) if draws[sample] < share]


def _mixed(
    written: list[list[Response]], references: list[list[Response]], own: list[list[int]], samples: int
) -> list[list[Response]]:
    """Each prompt's samples: what the student wrote at the places in `own`, the reference solution at all others."""
    groups, mixed = iter(written), []
    for places, [reference] in zip(own, references):
        group = [reference] * samples
        for place, response in zip(places, next(groups) if places else []):
            group[place] = response
        mixed.append(group)
    return mixed


def reference_responses(engines: Engines, prompts: Sequence[Prompt], limit: int) -> list[list[Response]]:
    """One response per prompt: its reference solution, cut after `limit` tokens."""
    whole = [reference_response(engines.encode(p.problem.solution or ""), engines.stop_ids[0]) for p in prompts]
    return [[r if len(r.ids) <= limit else _cut(r, limit)] for r in whole]


def _cut(response: Response, limit: int) -> Response:
    return replace(response, ids=response.ids[:limit], logprobs=response.logprobs[:limit], finished=False)


def teacher_responses(
    engines: Engines, prompts: Sequence[Prompt], config: TrainConfig, step: int, advance: Callable[[int], None]
) -> list[list[Response]]:
    """One response per prompt, written by the teacher, which sees its own prompt."""
    settings = config.rollout
    requests = [
        Request(p.teacher_ids, ((config.seed, "teacher stream", step, place, p.problem.id),))
        for place, p in enumerate(prompts)
    ]
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, engines.stop_ids)
    assert engines.teacher is not None
    return engines.teacher.generate(requests, sampling, advance)


def other_responses(
    engines: Engines, prompts: Sequence[Prompt], config: TrainConfig, steps: Sequence[int], check: Callable[[], None]
) -> dict[str, Experience]:
    """Reference solutions and the teacher's responses, each only if a term of these steps' losses learns from them.

    check: called each time responses of the teacher end. It may raise to stop.
    """
    wanted = {term.responses for step in steps for term in config.terms_at(step).values()}
    found = {}
    if "reference" in wanted:
        found["reference"] = reference_responses(engines, prompts, config.rollout.max_new_tokens)
    if "teacher" in wanted:
        found["teacher"] = teacher_responses(engines, prompts, config, steps[0], lambda count: check())
    return {name: Experience.of(prompts, responses, config.drop_tokens) for name, responses in found.items()}
