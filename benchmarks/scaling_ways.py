"""Ways through the head with the gate's arithmetic, from hidden states to a loss.

It imports no more than it needs: each process that measures memory loads it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from head_ways import chunked_logp, chunked_lsm, full_logp, full_lsm, ungated_lsm
from scaling_sizes import HeadSize
from torch import Tensor

from driftgate.method import head
from driftgate.method.gates import drift_gate, unit_mean
from driftgate.method.objectives import sampled_token_loss
from driftgate.method.spans import fixed_spans, sequence_spans


@dataclass
class Inputs:
    """Inputs of the head and the loss."""

    hidden: Tensor
    weight: Tensor
    ids: Tensor
    """int64 [N, K]: the teacher's support, whose first column stands for the sampled tokens too."""
    rows: Tensor
    """int64 [N]: the sequence of each token."""
    behaviour: Tensor
    """[N]: log o(y_t)."""

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """What the ways of `head_ways` take."""
        return self.hidden, self.weight, self.ids, head.CHUNK


def inputs(size: HeadSize, hidden: int, response: int) -> Inputs:
    """Random inputs, the same each time. response: tokens of a sequence."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(size.tokens, hidden, generator=generator).requires_grad_()
    weight = torch.randn(size.vocabulary, hidden, generator=generator).div_(hidden**0.5).requires_grad_()
    ids = torch.randint(size.vocabulary, (size.tokens, size.support), generator=generator)
    behaviour = -math.log(size.vocabulary) + 0.1 * torch.randn(size.tokens, generator=generator)
    return Inputs(states, weight, ids, torch.arange(size.tokens) // response, behaviour)


def gates(logp: Tensor, given: Inputs, block: int | None = 64) -> Tensor:
    """All of the gate's arithmetic: spans, drift, gates, mean 1. block: tokens, None for whole sequences."""
    spans = sequence_spans(given.rows) if block is None else fixed_spans(given.rows, block)
    return unit_mean(drift_gate(logp, given.behaviour, spans))


def gated_sampled(given: Inputs, logp: Tensor) -> Tensor:
    """The loss of the sampled tokens, from their log-probabilities [N]."""
    return (gates(logp, given) * sampled_token_loss(logp, given.behaviour, given.behaviour)).mean()


def gated_lsm(given: Inputs, losses: Tensor, logp: Tensor) -> Tensor:
    """The loss of LSM, from its losses [N] and the sampled tokens' log-probabilities [N]."""
    return (gates(logp, given) * losses).mean()


def inputs_alone(given: Inputs) -> Tensor:
    """What every way needs before it begins: the inputs and their gradients."""
    return given.hidden.sum() + given.weight.sum() * 0


def teacher_top(given: Inputs) -> Tensor:
    """The teacher's part: its K most probable tokens, no backward."""
    hidden, weight, ids, chunk = given.operands
    return head.summary(hidden, weight, ids[:, :1], top=ids.shape[1], chunk=chunk).logp.sum()


INPUTS_ALONE = "inputs alone"
WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    "gated sampled token, full logits": lambda given: gated_sampled(given, full_logp(*given.operands)),
    "gated sampled token, ours": lambda given: gated_sampled(given, chunked_logp(*given.operands)),
    "gated LSM, full logits": lambda given: gated_lsm(given, *full_lsm(*given.operands)),
    "gated LSM, ours": lambda given: gated_lsm(given, *chunked_lsm(*given.operands)),
    "ungated LSM, ours": lambda given: ungated_lsm(*given.operands).mean(),
    "teacher's top K, ours": teacher_top,
    INPUTS_ALONE: inputs_alone,
}
GATED = tuple(WAYS)[:4]
MEASURED = {"tokens": GATED, "vocabulary": GATED, "support": ("gated LSM, ours", *tuple(WAYS)[4:6])}
"""Ways that are measured along each size."""


def learn(name: str, given: Inputs) -> None:
    """Forward and, where there is one, backward."""
    given.hidden.grad = given.weight.grad = None
    loss = WAYS[name](given)
    if loss.requires_grad:
        loss.backward()


def learn_once(name: str, size: HeadSize, hidden: int, response: int) -> None:
    """For a process of its own."""
    learn(name, inputs(size, hidden, response))
