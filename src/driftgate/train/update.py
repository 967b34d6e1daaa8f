"""One optimiser update while it runs: its terms, what it learns from, and what was found on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.terms import TermSettings
from ..world import World
from .portions import Portion
from .weighing import Moment


@dataclass
class Ahead:
    """A term's weights and denominator, found before the backward pass."""

    weight: Tensor
    """[tokens of the group of responses]; 0 for those of other portions."""
    raw: Tensor
    """The same before any normalisation."""
    denominator: float


@dataclass
class Update:
    """The terms of the loss with the portion that each learns from."""

    terms: Mapping[str, TermSettings]
    portions: Mapping[str, Portion]
    moment: Moment
    diagnose: bool = False
    ahead: dict[str, Ahead] = field(default_factory=dict)
    """Weights found before the backward pass, by term."""
    tau: dict[str, float] = field(default_factory=dict)
    """The tau that a factor chose, by term and factor."""
    positions: int = 0
    """Positions of the forwards with a gradient, padding included."""
    padding: int = 0
    """Those of them that were padding."""
    old_logp: Tensor | None = None
    """float [tokens of the student's responses]: the log-probabilities seen so far of those that were `unscored`."""

    @property
    def fresh(self) -> bool:
        """Whether the current weights are those that wrote the rollout, so that the drift is 0."""
        return self.moment.age == 0

    @property
    def divided_last(self) -> bool:
        """Whether the gradient is summed up unscaled and divided once before the optimiser step: with a single term
        whose weights come with the forward, the denominator is known only after the last micro-batch."""
        return len(self.terms) == 1 and not self.ahead

    def terms_on(self, responses: str) -> dict[str, TermSettings]:
        """The terms that learn from a group of responses."""
        return {name: term for name, term in self.terms.items() if term.responses == responses}

    def unmoved(self, term: TermSettings) -> bool:
        """Whether the term's weights depend on the student's shift alone, which is 0 as yet."""
        return self.fresh and term.responses == "student" and term.of_shift_alone

    def scale(self, name: str) -> float:
        """Factor applied to a term's summed loss before the backward pass. Where `divided_last`, the division by the
        denominator follows before the optimiser step."""
        term = self.terms[name]
        coef = term.coef_at(self.moment.step)
        if name in self.ahead:
            denominator = self.ahead[name].denominator
            return coef / denominator if denominator else 0.0
        return coef if self.divided_last else coef / len(self.portions[term.responses].tokens)

    def note_logp(self, tokens: Tensor, logp: Tensor | None) -> None:
        """Keep log p(y_t) [n] of the student's tokens int64 [n], where the rollout has no old log-probabilities yet:
        at age 0 these are the same."""
        batch = self.portions["student"].batch
        if logp is None or not (self.fresh and batch.unscored):
            return
        if self.old_logp is None:
            self.old_logp = torch.zeros(len(batch.ids), dtype=logp.dtype)
        self.old_logp[tokens] = logp.detach().cpu()

    def found_old_logp(self, world: World) -> Tensor | None:
        """float [tokens of the sequences that were unscored]: see `old_logp`, of all ranks; None where there were
        none."""
        if self.old_logp is None:
            return None
        batch = self.portions["student"].batch
        return world.add(self.old_logp)[batch.tokens_of(batch.unscored)]
