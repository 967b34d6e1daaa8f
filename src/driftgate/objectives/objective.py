"""What an objective is: a loss for each token.

To add one, put one file with one class into this folder. The class has settings, the scores it needs, a support and a
loss. Nothing else changes: a recipe can use the new `kind` at once. See docs/adding_an_objective.md.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary, K tokens of the support of a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..method.logits import Head
from ..method.scores import Needs, Scored
from ..method.signals import Streams
from ..settings import Settings


@dataclass
class Outputs:
    """What one pass over the output head found for the tokens of a micro-batch."""

    hidden: Tensor
    """[N, H], with gradient."""
    head: Head
    """The student's output head, with gradient."""
    logp: Tensor | None
    """float [N]: log p(y_t), in nats; None if nothing asked for it. It has a gradient if `reads_vocabulary` holds for
    an objective of the pass."""
    temperature: float
    """The sampling temperature. All log-probabilities are taken at it."""
    target_heads: Mapping[str, Callable[[], Head]] = field(default_factory=dict)
    """Functions that return the output head of "teacher" and "initial"."""
    supports: "dict[Objective, Tensor]" = field(default_factory=dict)
    """float [N, K]: log-probabilities of the tokens of an objective's support. They are logits if the
    objective's `reads_vocabulary` is False."""
    ids: Tensor | None = None
    """int64 [N]: the sampled tokens y_t; None where the gradient is found from their log-probabilities alone."""


class Objective(Settings):
    """The base class of all objectives. A loss is a value for each token and is never averaged here: the learner
    divides once, before the optimiser step."""

    kind: Any
    """The name in a recipe. Each class makes it a Literal with one word."""

    @property
    def needs(self) -> dict[str, Needs]:
        """What each model has to score: "behaviour" (the student that wrote the rollout), "teacher", "initial"."""
        return {}

    @property
    def reads_vocabulary(self) -> bool:
        """Whether the gradient flows through log-probabilities that are normalised over the whole vocabulary."""
        return True

    @property
    def reads_sampled_token(self) -> bool:
        """Whether the loss depends on the current student through log p(y_t) alone. If so, the gradient can be computed
        in the forward pass."""
        return False

    @property
    def needs_own_samples(self) -> bool:
        """Whether the student must have written the responses itself, as a policy gradient requires."""
        return False

    @property
    def reads_batch(self) -> set[str]:
        """Streams of a whole rollout batch (`method.signals.READABLE`) that `ahead` reads."""
        return set()

    @property
    def looks_ahead(self) -> bool:
        """Whether `loss` reads `scores.ahead[self]`."""
        return False

    def ahead(self, streams: Streams) -> Tensor:
        """float [N], of any precision: for every token of a rollout batch, what its loss depends on of other tokens. It
        is found once for the batch, so that neither minibatches nor micro-batches change it."""
        raise NotImplementedError

    @property
    def support_size(self) -> int:
        """Number of most probable tokens that the objective reads; 0 for none."""
        return 0

    def support_ids(self, scores: Scored) -> Tensor | None:
        """int [N, K]: ids of the support's tokens, -1 in an empty place. `loss` finds their log-probabilities in
        `outputs.supports[self]`. None for an objective without a support."""
        return None

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """float [N]: each token's loss. It is differentiable in the tensors of `outputs`."""
        raise NotImplementedError

    def clipped(self, outputs: Outputs, scores: Scored) -> Tensor | None:
        """bool [N]: tokens whose gradient a clip sets to 0. None for an objective without a clip."""
        return None
