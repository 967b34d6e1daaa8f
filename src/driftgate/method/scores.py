"""What one model says of the tokens of a rollout batch: the student that wrote it, the teacher, the initial student.

Shapes: N valid response tokens, K most probable tokens, K' chosen ids, H hidden size of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What is wanted of a scorer. `a | b` is what serves both, `a & b` what is in both."""

    logp: bool = False
    """The log-probability of each sampled token."""
    entropy: bool = False
    """The entropy of the next-token distribution."""
    top: int = 0
    """How many most probable tokens."""
    at_ids: bool = False
    """The log-probabilities of the writing student's most probable tokens."""
    hidden: bool = False
    """Hidden states, from which a divergence over the vocabulary makes logits chunk by chunk."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            logp=self.logp or other.logp,
            entropy=self.entropy or other.entropy,
            top=max(self.top, other.top),
            at_ids=self.at_ids or other.at_ids,
            hidden=self.hidden or other.hidden,
        )

    def __and__(self, other: "Needs") -> "Needs":
        return Needs(**{f.name: min(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def __bool__(self) -> bool:
        return self != Needs()

    @property
    def logits(self) -> bool:
        """Whether logits have to be computed."""
        return self.logp or self.entropy or self.top > 0 or self.at_ids

    def beyond(self, other: "Needs") -> list[str]:
        """Names of what is wanted here and not in `other`."""
        return [f.name for f in fields(self) if getattr(self, f.name) > getattr(other, f.name)]


@dataclass(frozen=True)
class TokenScores:
    """One model's scores of N tokens. Log-probabilities are in nats, at the sampling temperature, of the whole
    vocabulary. None: not scored."""

    logp: Tensor | None = None
    """float [N]: of each sampled token."""
    entropy: Tensor | None = None
    """float [N], in nats."""
    top_ids: Tensor | None = None
    """int32 [N, K]: the most probable tokens, most probable first."""
    top_logp: Tensor | None = None
    """float [N, K]: their log-probabilities."""
    at_ids: Tensor | None = None
    """float [N, K']: log-probabilities of chosen ids, those of the writing student's `top_ids`."""
    hidden: Tensor | None = None
    """[N, H]: the hidden states that predict the tokens."""

    def rows(self, tokens: Tensor | slice, device: torch.device | None = None) -> "TokenScores":
        """The scores of some tokens (int64 [n], or a slice), on a device."""
        return TokenScores(**{name: value[tokens].to(device or value.device) for name, value in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of all that was scored."""
        every = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in every if value is not None]


@dataclass(frozen=True)
class Scored:
    """All scorers' scores of the same N tokens."""

    behaviour: TokenScores = TokenScores()
    """By the student with the weights that wrote the rollout (old log-probs)."""
    teacher: TokenScores = TokenScores()
    initial: TokenScores = TokenScores()
    """By the student as it was when the run began."""
    ahead: Mapping[Any, Tensor] = field(default_factory=dict, kw_only=True)
    """float [N] by objective: what its loss depends on of other tokens; see `Objective.ahead`."""

    def of(self, target: str) -> TokenScores:
        """target: "teacher" or "initial"."""
        return {"teacher": self.teacher, "initial": self.initial}[target]

    def rows(self, tokens: Tensor | slice, device: torch.device | None = None) -> "Scored":
        """See `TokenScores.rows`."""
        ahead = {key: value[tokens].to(device or value.device) for key, value in self.ahead.items()}
        parts = (scores.rows(tokens, device) for scores in (self.behaviour, self.teacher, self.initial))
        return Scored(*parts, ahead=ahead)
