"""What a rollout batch is turned into: the experience to train on, the rows of rollouts/, and metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.prompts import Prompt
from ..data.response import Response
from ..errors import RunError
from ..verify.verifier import Verifier
from .diagnostics import repetition


def make_experience(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    correct: Sequence[bool | None],
    config: TrainConfig,
    limit: int,
    version: int,
) -> Experience:
    """The student's responses as a batch. It has the verifier's verdicts and no other scores yet.

    correct: the verdict on each response, None where the problem has no answer. limit: most tokens of a response.
    version: see `Learner.version`. Raises RunError if nothing can be learned from the responses.
    """
    batch = Experience.of(prompts, responses, config.drop_tokens, version)
    _refuse_useless(batch, config, limit)
    groups = torch.repeat_interleave(torch.tensor([len(part) for part in responses]))
    return batch.with_groups(groups, None if None in correct else torch.tensor(correct).float())


def _refuse_useless(batch: Experience, config: TrainConfig, limit: int) -> None:
    count = len(batch.responses)
    if not len(batch.ids):
        raise RunError(
            "no response has a token to train on: drop fewer tokens (drop_tokens) or lower rollout.teacher_prefix"
        )
    if batch.finished.all() and all(len(response) == 1 for response in batch.responses):
        raise RunError(
            f"every one of the {count} responses is empty (the student stops at once); check prompts.template and "
            f"prompts.chat: perhaps the prompt already ends the student's turn"
        )
    if not config.rollout.allow_truncated and not batch.finished.any():
        raise RunError(
            f"every one of the {count} responses was cut at {_limit_setting(config)} = {limit}; raise it, or set "
            f"rollout.allow_truncated=true if this is intended"
        )


def _limit_setting(config: TrainConfig) -> str:
    return "rollout.max_new_tokens" if config.rollout.horizon is None else "the limit of rollout.horizon"


def rollout_rows(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], decode: Callable, verifier: Verifier
) -> list[dict[str, Any]]:
    """A row of rollouts/ for each response. `correct` is None where the verifier lacks an answer."""
    written = [(prompt.problem, n, r) for prompt, group in zip(prompts, responses) for n, r in enumerate(group)]
    texts = [decode(response.ids) for _, _, response in written]
    graded = [not verifier.needs_answer or problem.answer is not None for problem, _, _ in written]
    pairs = ((text, problem.answer) for text, (problem, _, _), whether in zip(texts, written, graded) if whether)
    verdicts = iter(verifier.grade_many(pairs))
    return [
        {
            "prompt": problem.id,
            "sample": sample,
            "finished": response.finished,
            "correct": next(verdicts) if whether else None,
            "prefix": response.prefix,
            "reference": response.reference,
            "text": text,
            "ids": list(response.ids),
        }
        for (problem, sample, response), text, whether in zip(written, texts, graded)
    ]


def rollout_metrics(batch: Experience, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the responses that the student wrote: lengths in tokens, share cut at the limit, repetition, share
    that is right."""
    written = [row for row in rows if not row["reference"]]
    metrics: dict[str, float] = {"responses": len(rows), "tokens": sum(len(row["ids"]) for row in rows)}
    if len(written) < len(rows):
        metrics["references"] = len(rows) - len(written)
    if written:
        lengths = np.array([len(row["ids"]) for row in written])
        metrics |= {
            "tokens_mean": float(lengths.mean()),
            "tokens_max": int(lengths.max()),
            "truncated": float(np.mean([not row["finished"] for row in written])),
            "repetition": repetition([row["text"] for row in written]),
        }
    graded = [row["correct"] for row in written if row["correct"] is not None]
    if graded:
        metrics["correct"] = float(np.mean(graded))
    return metrics


def rollout_by_source(prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of each source of a mixture that the batch has a prompt of: its share of all response tokens, and the share of
    right responses among those that the student wrote and that have a verdict. Empty without a mixture."""
    found: dict[str, float] = {}
    tokens = sum(len(row["ids"]) for row in rows)
    for name in sorted({prompt.problem.source for prompt in prompts if prompt.problem.source}):
        ids = {prompt.problem.id for prompt in prompts if prompt.problem.source == name}
        own = [row for row in rows if row["prompt"] in ids]
        found[f"source.{name}.share"] = sum(len(row["ids"]) for row in own) / tokens
        verdicts = [row["correct"] for row in own if row["correct"] is not None and not row["reference"]]
        if verdicts:
            found[f"source.{name}.correct"] = float(np.mean(verdicts))
    return found


def distances(batch: Experience, group: tuple[int, ...] = ()) -> dict[str, float]:
    """Differences of log-probabilities, in nats, over the tokens that the student wrote.

    mismatch_mean, mismatch_max: |engine - trainer|. teacher_gap: mean of log q - log o. Empty before the first update,
    which completes the student's log-probabilities, and if the student wrote no token. group: ids that the trainer
    takes as one class (see `method.stop_group`); the engine's log-probability is of the single id, so the mismatch
    leaves them out.
    """
    old_logp, teacher, own = batch.scores.behaviour.logp, batch.scores.teacher.logp, batch.written[batch.rows]
    if old_logp is None or not own.any():
        return {}
    single = own & ~torch.isin(batch.ids, torch.tensor(group)) if group else own
    gap = (batch.engine_logp - old_logp)[single].abs()
    metrics = {"mismatch_mean": float(gap.mean()), "mismatch_max": float(gap.max())} if len(gap) else {}
    if teacher is not None:
        metrics["teacher_gap"] = float((teacher - old_logp)[own].mean())
    return metrics
