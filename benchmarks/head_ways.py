"""Ways through the output head to a loss: with full logits, and with the package's chunks.

Shapes: hidden [N, H], weight [V, H], ids int64 [N, K], whose first column stands for the sampled tokens too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from driftgate.method import head, objectives
from driftgate.method.vocabulary import vocabulary_divergence

Losses = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From hidden, weight, ids and the tokens of a chunk to losses [N]. Ways without chunks do not use the last."""


def full_logp(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, ids[:, :1])[:, 0]


def chunked_logp(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return head.token_logprobs(hidden, weight, ids[:, 0], chunk=chunk)


def fused_loss(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """With weights that are known before the forward, which then makes the gradient too."""
    ones = torch.ones(len(ids), device=ids.device)
    return head.weighted_loss(hidden, weight, ids[:, 0], ones, lambda part, logp: -logp, chunk=chunk)[0]


def torch_loss(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """torch's own chunked cross-entropy, from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    how = {"reduction": "none", "options": options}
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids[:, 0], **how)


def full_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Losses [N], and the log-probabilities [N] that the gate reads."""
    logits = (hidden @ weight.T).float()
    logp = logits.detach().log_softmax(-1).gather(1, ids[:, :1])[:, 0]
    return objectives.topk_reverse_kl(logits.gather(1, ids), _teacher(ids)), logp


def chunked_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Losses [N], and the log-probabilities [N] that the gate reads."""
    losses = ungated_lsm(hidden, weight, ids, chunk)
    with torch.no_grad():
        return losses, chunked_logp(hidden, weight, ids, chunk)


def ungated_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return objectives.topk_reverse_kl(head.support_logits(hidden, weight, ids, chunk=chunk), _teacher(ids))


def full_divergence(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """Reverse KL over the vocabulary. The teacher is the student's head on its hidden states in reverse order."""
    log_p = (hidden @ weight.T).float().log_softmax(-1)
    log_q = (hidden.detach().flip(0) @ weight.detach().T).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def chunked_divergence(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    teacher = hidden.detach().flip(0), weight.detach()
    return vocabulary_divergence(hidden, weight, *teacher, "reverse_kl", chunk=chunk)


def _teacher(ids: Tensor) -> Tensor:
    """Log-probabilities [N, K] of a teacher that finds all tokens of the support alike."""
    return torch.zeros(ids.shape, device=ids.device)


@dataclass(frozen=True)
class Way:
    """A way, and the products that its forward and backward take."""

    run: Losses
    base: str
    """Name of the full logits that it is compared with."""
    products: int | None = None
    """Products of hidden states [N, H] and head [V, H]; None where they are not known."""
    gathers: int = 0
    """Products of hidden states and K rows of the head."""
    chunked: bool = True


SAMPLED, LSM, VOCABULARY = (
    "sampled token, full logits",
    "LSM with gate, full logits",
    "KL over the vocabulary, full logits",
)
WAYS = {
    SAMPLED: Way(full_logp, SAMPLED, 3, chunked=False),
    "sampled token, chunked": Way(chunked_logp, SAMPLED, 4),
    "sampled token, weights known before": Way(fused_loss, SAMPLED, 3),
    "sampled token, torch's chunked": Way(torch_loss, SAMPLED),
    LSM: Way(lambda *operands: full_lsm(*operands)[0], LSM, 3, chunked=False),
    "LSM with gate, chunked": Way(lambda *operands: chunked_lsm(*operands)[0], LSM, 1, 3),
    "LSM without gate, chunked": Way(ungated_lsm, LSM, 0, 3),
    VOCABULARY: Way(full_divergence, VOCABULARY, 4, chunked=False),
    "KL over the vocabulary, chunked": Way(chunked_divergence, VOCABULARY, 6),
}
if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
    del WAYS["sampled token, torch's chunked"]
