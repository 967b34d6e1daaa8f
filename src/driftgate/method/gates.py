"""The drift gate and its normalisation (arXiv 2606.24084, steps 1 to 4 of the gating rule).

Shapes: N valid response tokens. Symbols: p the current student, o the behaviour student that wrote the rollout.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from . import check

Statistic = Literal["abs_mean", "mean_abs", "rms"]


def drift_gate(
    logp: Tensor, logp_behaviour: Tensor, spans: Tensor, tau: float = 1.0, statistic: Statistic = "abs_mean"
) -> Tensor:
    """g = exp(-tau * s_b), in [0, 1]: the less the student has moved on a token's span since the rollout, the higher.

    d_t = log p(y_t) - log o(y_t), in nats, on the sampled tokens. The drift s_b of span b is
    "abs_mean" |mean d| (the paper's: signs cancel inside a span), "mean_abs" mean |d|, or "rms" sqrt(mean d^2).

    logp, logp_behaviour: float [N]; spans: int64 [N], ids from 0. Returns float32 (or float64) [N], detached, exactly 1
    where p equals o or tau is 0. The gates are not normalised yet (see `unit_mean`). Raises ValueError naming the
    argument.
    """
    check.same_length(logp=logp, logp_behaviour=logp_behaviour, spans=spans)
    check.integer_ids("spans", spans)
    check.not_negative("tau", tau)
    shift = widen(logp.detach()) - widen(logp_behaviour.detach())
    return torch.exp(-tau * span_drift(shift, spans, statistic))[spans]


def span_drift(shift: Tensor, spans: Tensor, statistic: Statistic = "abs_mean") -> Tensor:
    """The drift s_b >= 0 of each span, in nats.

    shift: float [N], log p(y_t) - log o(y_t); spans: int64 [N], ids from 0. Returns float [largest id + 1].
    Raises ValueError for an unknown statistic. Source: arXiv 2606.24084, step 2 ("abs_mean").
    """
    if statistic == "abs_mean":
        return span_mean(shift, spans).abs()
    if statistic == "mean_abs":
        return span_mean(shift.abs(), spans)
    if statistic == "rms":
        return span_mean(shift.square(), spans).sqrt()
    raise ValueError(f"statistic must be one of {', '.join(get_args(Statistic))}, not {statistic!r}")


def span_mean(values: Tensor, spans: Tensor) -> Tensor:
    """Mean of `values` [N] over each span. Returns [largest id + 1]; 0 for an id that no token has."""
    count = int(spans.max()) + 1 if len(spans) else 0
    total = values.new_zeros(count).index_add(0, spans, values)
    size = values.new_zeros(count).index_add(0, spans, torch.ones_like(values))
    return total / size.clamp(min=1)


def unit_mean(weights: Tensor, groups: Tensor | None = None, keep_zeros: bool = False) -> Tensor:
    """Scale weights [N] to mean 1: over all tokens, or inside each group (int64 [N], for instance `rows`).

    Give it the whole optimiser batch. Called on each micro-batch or rank alone, it would weigh their tokens unequally.
    Returns [N], detached. Raises ValueError where a weight is negative, or where all weights of a group are zero; with
    keep_zeros these stay zero.
    Source: arXiv 2606.24084, step 4. The paper leaves the scope open.
    """
    check.same_length(weights=weights)
    weights = widen(weights.detach())
    if groups is None:
        groups = torch.zeros_like(weights, dtype=torch.int64)
    check.same_length(weights=weights, groups=groups)
    check.integer_ids("groups", groups)
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative; the smallest is {weights.min().item():g}")
    mean = span_mean(weights, groups)[groups]
    if not keep_zeros and (mean == 0).any():
        raise ValueError("weights are zero throughout a group, so no scale gives it mean 1")
    return weights / torch.where(mean == 0, 1.0, mean)


def widen(values: Tensor) -> Tensor:
    """Values in float32 at least. In bfloat16, a sum over a span would lose the drift that it measures."""
    return values if values.dtype == torch.float64 else values.float()
