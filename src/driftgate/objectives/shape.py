"""Shapes of the advantage of a policy gradient, as settings; the functions are in `method.shapes`.

Shapes: N valid response tokens. Symbols: p the student, q the teacher, a = log q(y_t) - log p(y_t).
"""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, model_validator
from torch import Tensor

from ..method import shapes
from ..method.signals import Streams
from ..settings import Settings, Share, named


class TokenShape(Settings):
    """A shape that looks at one token at a time."""

    @property
    def reads_teacher(self) -> bool:
        return True

    @property
    def reads_batch(self) -> set[str]:
        """Streams (`method.signals.READABLE`) of a whole rollout batch that the shape is computed from; empty for a
        shape of single tokens."""
        return set()

    def of(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """float [N]: the advantage, from log-probabilities of the sampled tokens."""
        return log_q - log_p


class IdentityShape(TokenShape):
    """a, the log-ratio."""

    kind: Literal["identity"] = "identity"


class ClipShape(TokenShape):
    """a, not below `low` and not above `high`."""

    kind: Literal["clip"] = "clip"
    low: float = -5.0
    """Lower bound, in nats."""
    high: float = 5.0
    """Upper bound, in nats."""

    def of(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_q - log_p).clamp(self.low, self.high)

    @model_validator(mode="after")
    def _bounds(self) -> "ClipShape":
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}; lower low")
        return self


class SignLogShape(TokenShape):
    """sign(a) log(1 + |a|)."""

    kind: Literal["sign_log"] = "sign_log"

    def of(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return shapes.sign_log(log_q - log_p)


class BoxCoxShape(TokenShape):
    """(q^power - p^power) / power, which is at most 1 / power."""

    kind: Literal["box_cox"] = "box_cox"
    power: PositiveFloat = 1.0
    """The nearer to 0, the nearer the shape is to the log-ratio."""

    def of(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return shapes.box_cox(log_q, log_p, self.power)


class MixtureShape(TokenShape):
    """log(alpha q / p + 1 - alpha), which is at least log(1 - alpha)."""

    kind: Literal["mixture"] = "mixture"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the teacher in the mixture with the student that the student learns from."""

    def of(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return shapes.mixture(log_q - log_p, self.alpha)


class BatchShape(Settings):
    """A shape that looks at other tokens of the rollout batch, by the scores of the student that wrote it. It is found
    once for each batch, so it depends on neither minibatches nor micro-batches."""

    @property
    def reads_teacher(self) -> bool:
        return "teacher_logp" in self.reads_batch

    @property
    def reads_batch(self) -> set[str]:
        """See `TokenShape.reads_batch`."""
        return set()

    def of_batch(self, streams: Streams) -> Tensor:
        """float [N]: the advantage of every token of a rollout batch."""
        raise NotImplementedError


class ReturnToGoShape(BatchShape):
    """The sum of a over the token and those after it in its response (in the loss), each later one times
    `discount`."""

    kind: Literal["return_to_go"] = "return_to_go"
    discount: Share = 0.99
    """1 for the plain sum; 0 for the log-ratio of the token alone."""

    @property
    def reads_batch(self) -> set[str]:
        return {"teacher_logp", "behaviour_logp"}

    def of_batch(self, streams: Streams) -> Tensor:
        ratio = streams["teacher_logp"] - streams["behaviour_logp"]
        return shapes.return_to_go(ratio, streams.rows, self.discount)


class EntropyShape(BatchShape):
    """-1/2 to -1, linear in the student's entropy, whose least and greatest value in the rollout batch these are. No
    teacher."""

    kind: Literal["entropy"] = "entropy"

    @property
    def reads_batch(self) -> set[str]:
        return {"behaviour_entropy"}

    def of_batch(self, streams: Streams) -> Tensor:
        return shapes.by_entropy(streams["behaviour_entropy"])


class ConstantShape(BatchShape):
    """The same for every token. No teacher."""

    kind: Literal["constant"] = "constant"
    value: float = -0.5
    """Below 0 the sampled tokens become less likely."""

    def of_batch(self, streams: Streams) -> Tensor:
        return streams.rows.new_full(streams.rows.shape, self.value, dtype=torch.float32)


Shape = Annotated[
    Annotated[
        IdentityShape
        | ClipShape
        | SignLogShape
        | BoxCoxShape
        | MixtureShape
        | ReturnToGoShape
        | EntropyShape
        | ConstantShape,
        Field(discriminator="kind"),
    ],
    BeforeValidator(named),
]
