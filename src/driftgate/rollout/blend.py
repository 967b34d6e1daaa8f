"""A mixture of student and teacher, as close to the teacher as a KL budget allows: TRB (arXiv 2605.31159).

Shapes: B rows, V vocabulary. Symbols: p student, q teacher, mu mixture, b weight of the teacher in log space.
"""

import torch
from torch import Tensor

BISECTION_STEPS = 40
"""b is at most 2^-40 below the largest value that the budget allows."""
ELEMENTS_AT_ONCE = 2**24
"""Entries of [B, V] processed at once, in float64. Limits the extra memory to about 128 MB per copy."""


def blend(log_p: Tensor, log_q: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """mu = p^(1-b) q^b / Z with b [B] the largest value in [0, 1] for which KL(mu || p) <= budget, in nats.

    log_p, log_q: finite float [B, V], log-probabilities or logits at one temperature. Returns log mu [B, V] in the
    type of log_p and b float64 [B]; b is 0 in every row at budget 0. Raises ValueError for a negative budget.
    """
    if not budget >= 0:
        raise ValueError(f"budget = {budget}: a KL budget in nats must be 0 or more")
    rows = max(1, ELEMENTS_AT_ONCE // log_p.shape[1])
    parts = [_blend(p, q, budget) for p, q in zip(log_p.split(rows), log_q.split(rows))]
    return torch.cat([log_mu for log_mu, _ in parts]).to(log_p.dtype), torch.cat([b for _, b in parts])


def _blend(log_p: Tensor, log_q: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """`blend` of some rows. Where the teacher itself is within the budget, as in most rows late in training, b is 1."""
    log_p, log_q = log_p.double().log_softmax(-1), log_q.double().log_softmax(-1)
    b = torch.zeros_like(log_p[:, 0])
    if budget > 0:
        beyond = _kl(log_q, log_p) > budget
        b[~beyond] = 1.0
        b[beyond] = _bisect(log_p[beyond], log_q[beyond], budget)
    return _mix(log_p, log_q, b), b


def _bisect(log_p: Tensor, log_q: Tensor, budget: float) -> Tensor:
    """The largest b [B] within the budget. KL(mu_b || p) grows with b: its derivative is b Var_mu(log q - log p)."""
    low, high = torch.zeros_like(log_p[:, 0]), torch.ones_like(log_p[:, 0])
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        fits = _kl(_mix(log_p, log_q, middle), log_p) <= budget
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low


def _mix(log_p: Tensor, log_q: Tensor, b: Tensor) -> Tensor:
    """log mu = (1-b) log p + b log q - logsumexp, [B, V]."""
    return torch.lerp(log_p, log_q, b[:, None]).log_softmax(-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) in nats, [B]."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)
