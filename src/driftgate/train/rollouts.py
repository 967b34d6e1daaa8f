"""One rollout batch: prompts of a step -> responses -> behaviour and teacher scores."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import keyed
from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Prompt
from ..errors import RunError
from ..evaluate.grading import canonical_integer, grade_integer
from ..rollout.engine import Engine, Request, Response, Sampling


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
    engine: Engine,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    step: int,
    stop_ids: tuple[int, ...],
    advance: Callable[[int], None],
) -> list[list[Response]]:
    """`rollout.samples` responses of each prompt; every one has its own address in the random stream."""
    settings = config.rollout
    requests = [
        Request(
            p.ids,
            tuple((config.seed, "rollout", step, place, p.problem.id, n) for n in range(settings.samples)),
        )
        for place, p in enumerate(prompts)
    ]
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, stop_ids)
    return engine.generate(requests, sampling, advance)


def make_experience(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], config: TrainConfig
) -> Experience:
    """Responses as a batch, before any score. Raises RunError where nothing can be learned from them."""
    batch = Experience.of(prompts, responses, config.objective.drop_tokens)
    _refuse_useless(batch, config)
    return batch


def _refuse_useless(batch: Experience, config: TrainConfig) -> None:
    limit, count = config.rollout.max_new_tokens, len(batch.responses)
    if not len(batch.ids):
        raise RunError("every response is empty after objective.drop_tokens; drop fewer tokens")
    if batch.finished.all() and all(len(response) == 1 for response in batch.responses):
        raise RunError(
            f"every one of the {count} responses is empty (the student stops at once); check prompts.template and "
            f"prompts.chat, and that the prompt does not already end the student's turn"
        )
    if not config.rollout.allow_truncated and not batch.finished.any():
        raise RunError(
            f"every one of the {count} responses was cut at rollout.max_new_tokens = {limit}; raise it, or set "
            f"rollout.allow_truncated=true if that is meant"
        )


def rollout_rows(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], decode: Callable
) -> list[dict[str, Any]]:
    """What rollouts/ keeps of each response; `correct` only where the problem has an integer answer."""
    rows = []
    for prompt, group in zip(prompts, responses):
        for sample, response in enumerate(group):
            text, gold = decode(response.ids), prompt.problem.answer
            correct = grade_integer(text, gold) if gold is not None and canonical_integer(gold) else None
            row = {
                "prompt": prompt.problem.id,
                "sample": sample,
                "finished": response.finished,
                "correct": correct,
            }
            rows.append(row | {"text": text, "ids": list(response.ids)})
    return rows


def rollout_metrics(batch: Experience, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Lengths, truncated share, share right, and how far the engine's log-probabilities are from the trainer's own."""
    lengths = np.array([len(response) for response in batch.responses])
    metrics = {
        "responses": len(lengths),
        "tokens": int(lengths.sum()),
        "tokens_mean": float(lengths.mean()),
        "tokens_max": int(lengths.max()),
        "truncated": 1 - float(batch.finished.float().mean()),
    }
    graded = [row["correct"] for row in rows if row["correct"] is not None]
    if graded:
        metrics["correct"] = float(np.mean(graded))
    if batch.behaviour_logp is not None:
        gap = (batch.engine_logp - batch.behaviour_logp).abs()
        metrics |= {"mismatch_mean": float(gap.mean()), "mismatch_max": float(gap.max())}
    return metrics
