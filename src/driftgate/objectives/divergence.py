"""A divergence between student and target, over the whole vocabulary or over a support.

Sources: GKD, arXiv 2306.13649, for the divergences; arXiv 2604.13016 for the supports.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from ..method import supports
from ..method.objectives import support_divergence, tail_mass
from ..method.residual import tail_residual
from ..method.scores import Needs, Scored, TokenScores
from ..method.vocabulary import vocabulary_divergence
from .objective import Objective, Outputs


class DivergenceObjective(Objective):
    """A divergence between the next-token distributions of the student and of a target. The gradient flows through the
    divergence itself; there is no policy gradient."""

    kind: Literal["divergence"]
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """`reverse_kl` is KL(student || target), `forward_kl` is KL(target || student), `jsd` is the generalised
    Jensen-Shannon divergence."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """`jsd` is beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p, student p and target q."""
    support: Literal["vocabulary", "teacher", "student", "union", "intersection"] = "vocabulary"
    """Tokens compared at a position: `vocabulary` for all, `teacher` for the target's top `k`, `student` for the top
    `k` of the student that wrote the rollout, `union` for tokens in either, `intersection` for tokens in both."""
    k: PositiveInt = 32
    """Number of most probable tokens that make up a support."""
    mass: Literal["renormalised", "tail", "raw", "residual"] = "renormalised"
    """Probability outside the support. `renormalised`: both sides are scaled to sum to 1 inside it. `tail`: the rest is
    one more class. `raw`: it is left out, and nothing is scaled. `residual`: as `tail`, and what that leaves out is
    estimated from the sampled token (ResOPD): the reverse KL over the vocabulary, unbiased with rollout.top_p=1."""
    allow_raw_reverse_kl: bool = False
    """Allow reverse KL on raw mass. That loss has no lower bound: it falls as mass moves out of the support."""
    target: Literal["teacher", "initial"] = "teacher"
    """What the student is compared with: the teacher, or the student before training."""

    @property
    def needs(self) -> dict[str, Needs]:
        theirs = Needs(
            top=self.k if self.support in ("teacher", "union", "intersection") else 0,
            at_ids=self.support in ("student", "union"),
            hidden=self.support == "vocabulary",
            logp=self.samples,
        )
        ours = Needs(top=self.k if self.support in ("student", "union", "intersection") else 0, logp=self.samples)
        return {"behaviour": ours, self.target: theirs}

    @property
    def samples(self) -> bool:
        """Whether the sampled token stands for the tokens outside the support."""
        return self.support != "vocabulary" and self.mass == "residual"

    @property
    def needs_own_samples(self) -> bool:
        return self.samples

    @property
    def reads_vocabulary(self) -> bool:
        return self.support != "vocabulary" and self.mass != "renormalised"

    @property
    def support_size(self) -> int:
        return 0 if self.support == "vocabulary" else self.k

    def support_ids(self, scores: Scored) -> Tensor | None:
        if self.support == "vocabulary":
            return None
        ours, theirs = (self._top(s.top_ids) for s in (scores.behaviour, scores.of(self.target)))
        if self.support in ("teacher", "student"):
            return _given(theirs if self.support == "teacher" else ours)
        both = supports.union if self.support == "union" else supports.intersection
        return both(_given(ours), _given(theirs))

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """See `method.vocabulary.vocabulary_divergence` and `method.objectives.support_divergence`."""
        ids, beta = self.support_ids(scores), self.beta
        if ids is None:
            theirs = _given(scores.of(self.target).hidden), outputs.target_heads[self.target]()
            how = self.divergence, beta, outputs.temperature
            return vocabulary_divergence(outputs.hidden, outputs.head, *theirs, *how)
        log_p, log_q, present = outputs.supports[self], self._target_logp(scores.of(self.target)), ids >= 0
        if self.mass == "residual":
            tails = support_divergence(log_p, log_q, "reverse_kl", "tail", present=present)
            return tails + self._residual(outputs, scores, log_p, log_q, ids)
        return support_divergence(log_p, log_q, self.divergence, self.mass, beta, present)

    def _residual(self, outputs: Outputs, scores: Scored, log_p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
        """float [N]: see `method.residual`."""
        tails = tail_mass(log_p, ids >= 0), tail_mass(log_q, ids >= 0)
        logp = _given(outputs.logp), _given(scores.behaviour.logp), _given(scores.of(self.target).logp)
        return tail_residual(*logp, *tails, (ids != _given(outputs.ids)[:, None]).all(1))

    def _target_logp(self, target: TokenScores) -> Tensor:
        """float [N, K]: the target's log-probabilities of the support's tokens, in the same order."""
        at_ours, of_theirs = self._top(target.at_ids), self._top(target.top_logp)
        if self.support == "union":
            return torch.cat([_given(of_theirs), _given(at_ours)], 1)
        return _given(at_ours if self.support == "student" else of_theirs)

    def _top(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values[:, : self.k]

    @model_validator(mode="after")
    def _sound(self) -> "DivergenceObjective":
        if self.support == "vocabulary":
            return self
        if self.mass == "renormalised" and self.k < 2:
            raise ValueError(
                "k = 1 with mass = renormalised: the loss is always 0, because one token's mass is always 1; set k=2 "
                "or more"
            )
        if self.mass == "residual" and self.divergence != "reverse_kl":
            raise ValueError(
                f"mass = residual with divergence = {self.divergence}: the student's samples stand for the tail of a "
                f"reverse KL alone; set divergence=reverse_kl, or mass=tail"
            )
        if self.mass == "raw" and self.divergence == "jsd":
            raise ValueError("jsd on raw mass is not a divergence: it can be negative; set mass=tail or renormalised")
        if self.mass == "raw" and self.divergence == "reverse_kl" and not self.allow_raw_reverse_kl:
            raise ValueError(
                "reverse_kl on raw mass has no lower bound: the student lowers it by moving probability out of the "
                "support, until training collapses; set mass=renormalised or tail, or allow_raw_reverse_kl=true"
            )
        return self


def _given(values: Tensor | None) -> Tensor:
    """A score that `needs` asks for. It is always there; the check is for the type checker."""
    assert values is not None
    return values
