"""What the loss, the weights and the metrics read of a rollout batch; so that no more than that is computed.

Every response stream (the student's rollouts, reference solutions, the teacher's samples) has needs of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.experience import Experience
from ..loss_config import CandidateObjective, DivergenceObjective, LsmObjective, TermSettings
from ..models.policy import Policy
from ..scorers.local import LocalTeacher, TargetNeeds, score_tokens
from .portions import schedule, sequences_of
from .weighing import weighed_ahead


@dataclass
class Needs:
    """Scores of one stream: by the student that wrote it (or is about to learn from it), and by each target."""

    logp: bool = False
    """The student's log-probability of each token, before the first update."""
    entropy: bool = False
    """The student's entropy."""
    top: int = 0
    """The student's so many most probable tokens."""
    targets: dict[str, TargetNeeds] = field(default_factory=dict)

    @property
    def behaviour(self) -> bool:
        """Whether a forward of the student is wanted at all."""
        return self.logp or self.entropy or self.top > 0

    def target(self, name: str) -> TargetNeeds:
        return self.targets.setdefault(name, TargetNeeds())


def needs_of(config: TrainConfig, stream: str, step: int) -> Needs:
    """What `stream` has to be scored with at a step, counted from 0."""
    needs = Needs()
    for term in config.terms_at(step).values():
        if term.stream == stream:
            _add_objective(needs, term)
            _add_signals(needs, term.reads, config.diagnostics.k)
    if stream == "student":
        needs.logp |= config.log_drift
        if diagnosed(config, step):
            _add_signals(needs, {"behaviour_logp", "teacher_entropy", "teacher_top_logp"}, config.diagnostics.k)
    return needs


def _add_objective(needs: Needs, term: TermSettings) -> None:
    objective = term.objective
    if isinstance(objective, LsmObjective):
        _add_support(needs, "teacher", "teacher", objective.k)
    elif isinstance(objective, CandidateObjective):
        _add_support(needs, "teacher", "student", objective.k)
    elif isinstance(objective, DivergenceObjective):
        _add_support(needs, objective.target, objective.support, objective.k)


def _add_support(needs: Needs, name: str, support: str, k: int) -> None:
    target = needs.target(name)
    if support == "vocabulary":
        target.hidden = True
    if support in ("teacher", "union", "intersection"):
        target.top = max(target.top, k)
    if support in ("student", "union", "intersection"):
        needs.top = max(needs.top, k)
    target.at_student |= support in ("student", "union")


def _add_signals(needs: Needs, reads: set[str], k: int) -> None:
    """reads: names of `method.signals.READABLE` streams."""
    needs.logp |= "behaviour_logp" in reads
    needs.entropy |= "behaviour_entropy" in reads
    if reads & {"student_top_ids", "student_top_logp", "teacher_at_student"}:
        needs.top = max(needs.top, k)
    if any(name.startswith("teacher_") for name in reads):
        teacher = needs.target("teacher")
        teacher.logp |= "teacher_logp" in reads
        teacher.entropy |= "teacher_entropy" in reads
        teacher.at_student |= "teacher_at_student" in reads
        if reads & {"teacher_top_ids", "teacher_top_logp"}:
            teacher.top = max(teacher.top, k)


def behaviour_scores(config: TrainConfig, policy: Policy, name: str, batch: Experience, step: int) -> Experience:
    """What the student itself says of a stream before the first update, by the trainer's own forward: log o(y_t) and,
    as needed, its entropy and most probable tokens.

    In the very micro-batches of the first pass, so that the drift of the first update is exactly 0, not rounding noise.
    The log-probabilities of the first minibatch are left open, NaN, where its own update will tell them.
    """
    needs = needs_of(config, name, step)
    if not needs.behaviour:
        return batch
    scores: dict[str, Tensor] = {"logp": torch.zeros(len(batch.ids), 1, dtype=policy.wide)}
    for pass_, minibatch, sequences in schedule(config, step):
        if pass_ == 0:
            chosen = sequences_of(config, name, batch, sequences, minibatch)
            if minibatch == 0 and name == "student" and _told_by_update(config, needs, step):
                scores["logp"][batch.tokens_of(chosen)] = math.nan
                continue
            micros = batch.micro_batches(chosen, config.microbatch_tokens, policy.device)
            wanted = TargetNeeds(entropy=needs.entropy, top=needs.top)
            part = score_tokens(policy, micros, batch.ids[:, None], wanted, config.rollout.temperature)
            scores |= {key: value + scores[key] if key in scores else value for key, value in part.items()}
    names = {"logp": "behaviour_logp", "entropy": "behaviour_entropy"}
    scores["logp"] = scores["logp"][:, 0]
    return batch.with_scores(**{names.get(key, f"student_{key}"): value for key, value in scores.items()})


def _told_by_update(config: TrainConfig, needs: Needs, step: int) -> bool:
    """Whether the first update needs no forward before it: it finds log p(y_t) itself, before anything reads it."""
    terms = config.terms_at(step).values()
    ahead = any(weighed_ahead(t, len(terms)) and t.reads_of_weights & {"logp", "behaviour_logp"} for t in terms)
    return "logp" in config.reads and not (needs.entropy or needs.top or ahead)


def target_scores(
    config: TrainConfig, targets: Mapping[str, LocalTeacher], name: str, batch: Experience, step: int
) -> Experience:
    """What the teacher, and the initial student where a term is held to it, say of a stream."""
    for target, needs in needs_of(config, name, step).targets.items():
        batch = targets[target].score(batch, needs)
    return batch


def diagnosed(config: TrainConfig, step: int) -> bool:
    """Whether a step, counted from 0, is one whose updates are measured in full."""
    every = config.diagnostics.every
    return every > 0 and (step + 1) % every == 0
