"""From hidden states to each token's loss: what the head is asked for, then the objective.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary, K support.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..loss_config import CandidateObjective, DivergenceObjective, LsmObjective, Objective, SampledTokenObjective
from ..method import head, supports
from ..method.objectives import (
    candidate_loss,
    clipped_tokens,
    sampled_token_loss,
    support_divergence,
    topk_reverse_kl,
)
from ..method.vocabulary import vocabulary_divergence

Scores = Callable[[str], Tensor]
"""A score of the micro-batch's tokens by its name in `Experience.scores`."""


@dataclass
class Outputs:
    """What one look at the head gave."""

    hidden: Tensor
    """[N, H], with gradient."""
    weight: Tensor
    """[V, H], with gradient."""
    logp: Tensor | None
    """float [N]: log p(y_t), in nats; with gradient where an objective reads the whole vocabulary."""
    supports: dict[Objective, Tensor] = field(default_factory=dict)
    """float [N, K]: log-probabilities of an objective's support; logits for a renormalised one."""


def read_head(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    objectives: Sequence[Objective],
    scores: Scores,
    temperature: float,
    want_logp: bool,
) -> Outputs:
    """One pass over the vocabulary at most. ids: int64 [N], the sampled tokens.

    Where every support is renormalised only its K rows of the head carry a gradient, and log p(y_t) costs a pass
    without one, made if `want_logp`.
    """
    wanted = {o: support_ids(o, scores).long().clamp(min=0) for o in objectives if _has_support(o)}
    outputs = Outputs(hidden, weight, None)
    if any(map(_reads_whole_vocabulary, objectives)):
        columns = torch.cat([ids[:, None], *wanted.values()], 1)
        logp = head.token_logprobs(hidden, weight, columns, temperature)
        outputs.logp, *parts = logp.split([1, *(part.shape[1] for part in wanted.values())], dim=1)
        outputs.logp = outputs.logp[:, 0]
        outputs.supports = dict(zip(wanted, parts))
        return outputs
    outputs.supports = {o: head.support_logits(hidden, weight, part, temperature) for o, part in wanted.items()}
    if want_logp:
        with torch.no_grad():
            outputs.logp = head.token_logprobs(hidden, weight, ids, temperature)
    return outputs


def token_losses(
    objective: Objective, outputs: Outputs, scores: Scores, target_head: Callable[[str], Tensor], temperature: float
) -> Tensor:
    """Each token's loss, [N], in nats or in units of the advantage. target_head: [V, H'] of "teacher" or "initial"."""
    if isinstance(objective, SampledTokenObjective):
        return sampled_token_loss(outputs.logp, *_gain_streams(scores), **_clips(objective))  # type: ignore[arg-type]
    if isinstance(objective, LsmObjective):
        return topk_reverse_kl(outputs.supports[objective], scores("teacher_top_logp")[:, : objective.k])
    if isinstance(objective, CandidateObjective):
        behaviour, teacher = scores("student_top_logp"), scores("teacher_at_student")
        streams = behaviour[:, : objective.k], teacher[:, : objective.k]
        return candidate_loss(outputs.supports[objective], *streams, objective.clip, objective.dual_clip)
    if isinstance(objective, DivergenceObjective):
        return _divergence(objective, outputs, scores, target_head, temperature)
    assert outputs.logp is not None
    return -outputs.logp


def clipped(objective: Objective, outputs: Outputs, scores: Scores) -> Tensor | None:
    """bool [N]: tokens whose gradient a clip takes away; None for an objective without a clip."""
    if not isinstance(objective, SampledTokenObjective) or outputs.logp is None:
        return None
    return clipped_tokens(outputs.logp, *_gain_streams(scores), **_clips(objective))  # type: ignore[arg-type]


def support_ids(objective: Objective, scores: Scores) -> Tensor:
    """int [N, K]: the tokens that a local objective compares; -1 for a slot without one."""
    k = objective.k  # type: ignore[union-attr]
    kind, name = ("teacher", "teacher") if isinstance(objective, LsmObjective) else ("student", "teacher")
    if isinstance(objective, DivergenceObjective):
        kind, name = objective.support, objective.target
    if kind == "student":
        return scores("student_top_ids")[:, :k]
    theirs = scores(f"{name}_top_ids")[:, :k]
    if kind == "teacher":
        return theirs
    both = supports.union if kind == "union" else supports.intersection
    return both(scores("student_top_ids")[:, :k], theirs)


def _divergence(
    objective: DivergenceObjective,
    outputs: Outputs,
    scores: Scores,
    target_head: Callable[[str], Tensor],
    temperature: float,
) -> Tensor:
    name, kind, beta = objective.target, objective.divergence, objective.beta
    if objective.support == "vocabulary":
        theirs = scores(f"{name}_hidden"), target_head(name)
        return vocabulary_divergence(outputs.hidden, outputs.weight, *theirs, kind, beta, temperature)
    present = support_ids(objective, scores) >= 0
    log_q = _target_logp(objective, scores)
    return support_divergence(outputs.supports[objective], log_q, kind, objective.mass, beta, present)


def _target_logp(objective: DivergenceObjective, scores: Scores) -> Tensor:
    """float [N, K]: the target's log-probabilities of the support, in its order."""
    k, name = objective.k, objective.target
    if objective.support == "student":
        return scores(f"{name}_at_student")[:, :k]
    theirs = scores(f"{name}_top_logp")[:, :k]
    if objective.support == "union":
        return torch.cat([theirs, scores(f"{name}_at_student")[:, :k]], 1)
    return theirs


def _has_support(objective: Objective) -> bool:
    if isinstance(objective, DivergenceObjective):
        return objective.support != "vocabulary"
    return isinstance(objective, (LsmObjective, CandidateObjective))


def _reads_whole_vocabulary(objective: Objective) -> bool:
    """Whether its gradient passes through the logsumexp of the whole vocabulary."""
    if isinstance(objective, DivergenceObjective):
        return objective.support != "vocabulary" and objective.mass != "renormalised"
    return not isinstance(objective, LsmObjective)


def _gain_streams(scores: Scores) -> tuple[Tensor, Tensor]:
    return scores("behaviour_logp"), scores("teacher_logp")


def _clips(objective: SampledTokenObjective) -> dict[str, object]:
    how = objective
    return {"advantage": how.advantage, "clip": how.clip, "dual_clip": how.dual_clip, "ratio": how.ratio}
