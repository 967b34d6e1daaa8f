"""What an objective is: the loss that a term asks of each token.

To add one, put a file into this folder with one class: its settings, what it needs, its support, its loss. Nothing else
changes; the new `kind` can be used in a recipe at once. See docs/adding_an_objective.md.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary, K tokens of the support of a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..method.scores import Needs, Scored
from ..settings import Settings


@dataclass
class Outputs:
    """What one pass over the head gave for the tokens of a micro-batch."""

    hidden: Tensor
    """[N, H], with gradient."""
    head: Tensor
    """[V, H]: the output embedding, with gradient."""
    logp: Tensor | None
    """float [N]: log p(y_t), in nats; with gradient where an objective reads the whole vocabulary."""
    temperature: float
    """The sampling temperature, which all log-probabilities are taken at."""
    target_heads: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Output embeddings [V, H'] of "teacher" and "initial"."""
    supports: "dict[Objective, Tensor]" = field(default_factory=dict)
    """float [N, K]: log-probabilities of an objective's support; logits for one that does not read the vocabulary."""


class Objective(Settings):
    """The base of all objectives. A loss never normalises: the learner divides once, before the optimiser step."""

    kind: Any
    """The name in a recipe: a Literal of one word in each class."""

    @property
    def needs(self) -> dict[str, Needs]:
        """What "behaviour" (the student that wrote the rollout), "teacher" and "initial" have to score."""
        return {}

    @property
    def reads_vocabulary(self) -> bool:
        """Whether the gradient passes through log p(y_t) or a log-probability of the whole vocabulary."""
        return True

    @property
    def reads_sampled_token(self) -> bool:
        """Whether the loss reads the current student through log p(y_t) alone: its gradient can then be fused into the
        forward pass."""
        return False

    @property
    def needs_own_samples(self) -> bool:
        """Whether the responses must be the student's own, as for a policy gradient."""
        return False

    @property
    def support_size(self) -> int:
        """Most probable tokens that it looks at; 0 for none."""
        return 0

    def support_ids(self, scores: Scored) -> Tensor | None:
        """int [N, K]: the token ids whose log-probabilities `loss` finds in `outputs.supports[self]`, -1 for an empty
        slot; None for an objective without a support."""
        return None

    def loss(self, outputs: Outputs, scores: Scored) -> Tensor:
        """Each token's loss, float [N], differentiable in what `outputs` holds."""
        raise NotImplementedError

    def clipped(self, outputs: Outputs, scores: Scored) -> Tensor | None:
        """bool [N]: tokens whose gradient a clip takes away; None for an objective without a clip."""
        return None
