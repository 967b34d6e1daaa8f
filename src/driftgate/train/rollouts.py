"""One rollout batch: prompts of a step -> responses -> behaviour and teacher scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .. import keyed
from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Prompt
from ..errors import RunError
from ..evaluate.grading import Grader, canonical_integer, grade_integer
from ..rollout.engine import Engine, Request, Response, Sampling
from ..rollout.horizon import LengthController, growing, share
from ..rollout.prefix import generate_with_prefix
from ..rollout.reference import reference_response
from .diagnostics import repetition


@dataclass
class Engines:
    """Who writes: the student, leaning on the teacher where there is a KL budget, and the teacher itself."""

    student: Engine
    teacher: Engine


def length_limit(config: TrainConfig, step: int, controller: LengthController) -> int:
    """Longest response of a step, counted from 0."""
    horizon, limit = config.rollout.horizon, config.rollout.max_new_tokens
    if horizon is None:
        return limit
    if horizon.kind == "growing":
        return growing(step, horizon.start, horizon.increment, horizon.every, limit)
    return share(horizon.rho, limit) if horizon.kind == "share" else min(controller.cap, limit)


def controller_after(config: TrainConfig, controller: LengthController, lengths: Sequence[int]) -> LengthController:
    """The length controller after a step whose responses had these lengths; its floor is where it started."""
    horizon = config.rollout.horizon
    if horizon is None or horizon.kind != "controller":
        return controller
    how = horizon.near, horizon.least_share, horizon.change, horizon.patience, horizon.start
    return controller.after(lengths, config.rollout.max_new_tokens, *how)


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
    stop_ids: tuple[int, ...],
    encode: Callable[[str], tuple[int, ...]],
    advance: Callable[[int], None],
) -> list[list[Response]]:
    """`rollout.samples` responses of each prompt, of at most `limit` tokens, written as the settings say.

    Every one has its own address in the random stream. encode: token ids of a reference solution.
    """
    settings = config.rollout
    requests = [
        Request(
            p.ids,
            tuple((config.seed, "rollout", step, place, p.problem.id, n) for n in range(settings.samples)),
            p.teacher_ids,
        )
        for place, p in enumerate(prompts)
    ]
    budget = settings.kl_budget * _left(step, settings.kl_budget_steps)
    sampling = Sampling(limit, settings.temperature, settings.top_p, stop_ids, budget)
    prefix = min(round(settings.teacher_prefix * _left(step, settings.teacher_prefix_steps)), limit - 1)
    responses = generate_with_prefix(engines.student, engines.teacher, requests, sampling, prefix, advance)
    if settings.on_policy == 1:
        return responses
    references = reference_responses(prompts, limit, stop_ids, encode)
    return _mixed(responses, references, prompts, config, step)


def _left(step: int, steps: int | None) -> float:
    """What is left of a quantity that falls linearly to 0 over so many steps; all of it for None."""
    return 1.0 if steps is None else max(0.0, 1 - step / steps)


def _mixed(
    responses: list[list[Response]],
    references: list[list[Response]],
    prompts: Sequence[Prompt],
    config: TrainConfig,
    step: int,
) -> list[list[Response]]:
    """Each response gives way to the reference solution with probability 1 - `rollout.on_policy`, keyed."""
    mixed = []
    for place, (prompt, group, [reference]) in enumerate(zip(prompts, responses, references)):
        draws = keyed.generator(config.seed, "mixture", step, place, prompt.problem.id).random(len(group))
        own = draws < config.rollout.on_policy
        mixed.append([response if written else reference for response, written in zip(group, own)])
    return mixed


def reference_responses(
    prompts: Sequence[Prompt], limit: int, stop_ids: tuple[int, ...], encode: Callable[[str], tuple[int, ...]]
) -> list[list[Response]]:
    """Each prompt's reference solution as its one response, cut at `limit` tokens."""
    whole = [reference_response(encode(prompt.problem.solution or ""), stop_ids[0]) for prompt in prompts]
    return [[r if len(r.ids) <= limit else _cut(r, limit)] for r in whole]


def _cut(response: Response, limit: int) -> Response:
    return replace(response, ids=response.ids[:limit], logprobs=response.logprobs[:limit], finished=False)


def teacher_responses(
    engines: Engines, prompts: Sequence[Prompt], config: TrainConfig, step: int, stop_ids: tuple[int, ...]
) -> list[list[Response]]:
    """One sample of the teacher for each prompt, behind the teacher's own prompt."""
    settings = config.rollout
    requests = [
        Request(p.teacher_ids, ((config.seed, "teacher stream", step, place, p.problem.id),))
        for place, p in enumerate(prompts)
    ]
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, stop_ids)
    return engines.teacher.generate(requests, sampling)


def make_experience(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    correct: Sequence[bool | None],
    config: TrainConfig,
    limit: int,
) -> Experience:
    """The student's responses as a batch, before any score but the verifier's. correct: a verdict for each response.

    Raises RunError where nothing can be learned from them.
    """
    batch = Experience.of(prompts, responses, config.drop_tokens)
    _refuse_useless(batch, config, limit)
    counts = torch.tensor([int(kept.sum()) for kept in batch.keep])
    group = torch.repeat_interleave(torch.tensor([len(part) for part in responses]))
    batch = batch.with_scores(group=torch.repeat_interleave(group, counts))
    if None not in correct:
        batch = batch.with_scores(correct=torch.repeat_interleave(torch.tensor(correct).float(), counts))
    return batch


def _refuse_useless(batch: Experience, config: TrainConfig, limit: int) -> None:
    count = len(batch.responses)
    if not len(batch.ids):
        raise RunError(
            "nothing is left of any response: drop fewer tokens (drop_tokens) or lower rollout.teacher_prefix"
        )
    if batch.finished.all() and all(len(response) == 1 for response in batch.responses):
        raise RunError(
            f"every one of the {count} responses is empty (the student stops at once); check prompts.template and "
            f"prompts.chat, and that the prompt does not already end the student's turn"
        )
    if not config.rollout.allow_truncated and not batch.finished.any():
        raise RunError(
            f"every one of the {count} responses was cut at {_limit_setting(config)} = {limit}; raise it, or set "
            f"rollout.allow_truncated=true if that is meant"
        )


def _limit_setting(config: TrainConfig) -> str:
    return "rollout.max_new_tokens" if config.rollout.horizon is None else "the limit of rollout.horizon"


def rollout_rows(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], decode: Callable, grader: Grader | None
) -> list[dict[str, Any]]:
    """What rollouts/ keeps of each response; `correct` by the grader, without one for integer answers only."""
    rows = []
    for prompt, group in zip(prompts, responses):
        for sample, response in enumerate(group):
            text, gold = decode(response.ids), prompt.problem.answer
            correct = _verdict(text, gold, grader)
            row = {
                "prompt": prompt.problem.id,
                "sample": sample,
                "finished": response.finished,
                "correct": correct,
                "prefix": response.prefix,
            }
            rows.append(row | {"text": text, "ids": list(response.ids)})
    return rows


def _verdict(text: str, gold: str | None, grader: Grader | None) -> bool | None:
    if gold is None:
        return None
    if grader is not None:
        return grader.grade(text, gold)
    return grade_integer(text, gold) if canonical_integer(gold) else None


def rollout_metrics(batch: Experience, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Lengths, truncated share, repetition, share right, distance to the teacher on the sampled tokens, and how far the
    engine's log-probabilities are from the trainer's own."""
    lengths = np.array([len(response) for response in batch.responses])
    metrics = {
        "responses": len(lengths),
        "tokens": int(lengths.sum()),
        "tokens_mean": float(lengths.mean()),
        "tokens_max": int(lengths.max()),
        "truncated": 1 - float(batch.finished.float().mean()),
        "repetition": repetition([row["text"] for row in rows]),
    }
    graded = [row["correct"] for row in rows if row["correct"] is not None]
    if graded:
        metrics["correct"] = float(np.mean(graded))
    scores = batch.scores
    if "behaviour_logp" in scores:
        drawn = ~batch.engine_logp.isnan()  # a reference solution was not drawn by any engine
        gap = (batch.engine_logp - scores["behaviour_logp"])[drawn].abs()
        if len(gap):
            metrics |= {"mismatch_mean": float(gap.mean()), "mismatch_max": float(gap.max())}
    if "behaviour_logp" in scores and "teacher_logp" in scores:
        metrics["teacher_gap"] = float((scores["teacher_logp"] - scores["behaviour_logp"]).mean())
    return metrics
