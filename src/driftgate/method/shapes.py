"""Shapes of the advantage: what a policy gradient makes of what teacher and student say of the sampled tokens.

Shapes: N valid response tokens, sequence after sequence. Symbols: p the student, q the teacher, y_t the sampled token,
a_t = log q(y_t) - log p(y_t). Nothing here carries a gradient. Values are float32, or float64 where the input is.
"""

import math

import torch
from torch import Tensor

from . import check
from .gates import widen


def sign_log(log_ratio: Tensor) -> Tensor:
    """sign(a) log(1 + |a|). Float, any shape, in nats; returns the same shape. Source: arXiv 2607.13399."""
    a = widen(log_ratio)
    return a.sign() * a.abs().log1p()


def box_cox(logp_teacher: Tensor, logp: Tensor, power: float) -> Tensor:
    """(q^power - p^power) / power: the difference of the two probabilities' Box-Cox transforms, at most 1 / power.

    It has the sign of the log-ratio, which it becomes as `power` goes to 0. Log-probabilities [N], in nats; returns
    [N]. Source: arXiv 2606.17199, whose public code leaves the division out. Raises ValueError where `power` is not
    above 0.
    """
    check.positive("power", power)
    teacher, student = widen(logp_teacher), widen(logp)
    a = teacher - student
    larger = torch.exp(power * torch.maximum(teacher, student))  # the difference of the powers would lose small ones
    return a.sign() * larger * -torch.expm1(-power * a.abs()) / power


def mixture(log_ratio: Tensor, alpha: float) -> Tensor:
    """log(alpha q / p + 1 - alpha): the log-ratio of a teacher that is mixed with the student. At least
    log(1 - alpha).

    Float, any shape, in nats; returns the same shape. Source: arXiv 2607.04751. Raises ValueError where `alpha` is not
    above 0 and below 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, not {alpha}")
    a = widen(log_ratio) + math.log(alpha)
    return torch.logaddexp(a, torch.full_like(a, math.log1p(-alpha)))


def return_to_go(log_ratio: Tensor, rows: Tensor, discount: float) -> Tensor:
    """sum over k >= 0 of discount^k a_{t+k}, over the tokens of the same sequence: [N].

    Sums run in float64 and inside one sequence, so that no other sequence changes them. log_ratio: float [N], in nats;
    rows: int64 [N], the sequence of each token, non-decreasing. Source: arXiv 2609.16937. Raises ValueError naming the
    argument.
    """
    check.same_length(log_ratio=log_ratio, rows=rows)
    check.rows_stream(rows)
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be from 0 to 1, not {discount}")
    counts = rows.unique_consecutive(return_counts=True)[1].tolist()
    parts = log_ratio.double().split(counts) if counts else ()
    return torch.cat([*(_to_go(part, discount) for part in parts), log_ratio.new_zeros(0)]).to(widen(log_ratio).dtype)


def by_entropy(entropy: Tensor) -> Tensor:
    """-1/2 - (H - least H) / (2 (greatest H - least H)): from -1/2 for the surest token to -1 for the least sure.

    entropy: float [N] of the student, in nats; least and greatest are over the N tokens. -1/2 everywhere where all are
    equal. Returns [N]. Source: arXiv 2608.31046.
    """
    h = widen(entropy)
    if not len(h):
        return h
    low, high = h.min(), h.max()
    return -0.5 - (h - low) / (2 * (high - low)).clamp(min=torch.finfo(h.dtype).tiny)


def _to_go(values: Tensor, discount: float) -> Tensor:
    """`return_to_go` of one sequence, float64 [T], by doubling: after n turns a sum has 2^n terms."""
    reach = 1
    while reach < len(values):
        later = torch.nn.functional.pad(values[reach:], (0, reach))
        values, reach = values + discount**reach * later, 2 * reach
    return values
