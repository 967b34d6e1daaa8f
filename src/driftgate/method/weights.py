"""The steps from a signal to a weight: reduce over a partition, then map. Controls replace a step.

Shapes: N tokens, S spans, T tokens of one sequence. Values of spans are [S]; `spans` is int64 [N], ids 0..S-1 without
gaps, non-decreasing. Nothing here carries a gradient.
"""

import math

import torch
from torch import Tensor

from . import check
from .gates import span_mean, widen


def reduce_spans(values: Tensor, spans: Tensor, reducer: str) -> Tensor:
    """One value per span [S] from its tokens' values [N].

    "mean", "abs_mean" |mean|, "mean_abs" mean of |v|, "rms" sqrt(mean v^2), "root_mean" sqrt(max(mean v, 0)), "max",
    "first", "sum". Raises ValueError for another name.
    """
    values = widen(values)
    if reducer in ("max", "first"):
        return _max(values, spans) if reducer == "max" else values[first_of(spans)]
    means = {
        "mean": lambda: span_mean(values, spans),
        "abs_mean": lambda: span_mean(values, spans).abs(),
        "mean_abs": lambda: span_mean(values.abs(), spans),
        "rms": lambda: span_mean(values.square(), spans).sqrt(),
        "root_mean": lambda: span_mean(values, spans).clamp(min=0).sqrt(),
        "sum": lambda: span_mean(values, spans) * spans.bincount(),
    }
    if reducer not in means:
        raise ValueError(f"reducer must be one of {', '.join(means)}, max, first, not {reducer!r}")
    return means[reducer]()


def reduce_prefix(values: Tensor, rows: Tensor, reducer: str, exclusive: bool = False) -> Tensor:
    """One value per token [N] from the tokens of its sequence up to it, or before it if exclusive.

    "sum", "mean" (0 for an empty prefix), or "share": the prefix's share of the sequence's sum (0 where the sum is 0).
    Sums run in float64 and inside one sequence, so that no other sequence changes them, not even by rounding.
    Raises ValueError for another reducer, or a decreasing `rows`.
    """
    check.rows_stream(rows)
    if reducer not in ("sum", "mean", "share"):
        raise ValueError(f"a prefix is reduced by sum, mean or share, not {reducer!r}")
    counts = rows.unique_consecutive(return_counts=True)[1].tolist()
    parts = values.double().split(counts) if counts else ()
    reduced = [_reduce_prefix(part, reducer, exclusive) for part in parts]
    return torch.cat([*reduced, values.new_zeros(0)]).to(widen(values).dtype)


def affine(values: Tensor, offset: float, scale: float, low: float | None, high: float | None, shift: float) -> Tensor:
    """clip(offset + scale * v, low, high) + shift; None leaves a bound out."""
    bounded = offset + scale * values
    return (bounded if low is None and high is None else bounded.clamp(low, high)) + shift


def sigmoid(values: Tensor, centre: float, width: float, low: float) -> Tensor:
    """low + (1 - low) * sigmoid((v - centre) / width): from `low` to 1, falling for a negative width."""
    return low + (1 - low) * torch.sigmoid((values - centre) / width)


def keep_top(values: Tensor, share: float, owners: Tensor | None = None) -> Tensor:
    """1 for the largest ceil(share * S) of the values [S], 0 for the others. Of equal values, the earlier is kept.

    owners: int64 [S], each span's sequence, non-decreasing; then so for the spans of each sequence.
    """
    if owners is not None and len(values):
        counts = owners.unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([keep_top(part, share) for part in values.split(counts)])
    kept = torch.zeros_like(values)
    count = math.ceil(share * len(values) * (1 - 1e-12))  # not 8 for 0.07 * 100 = 7.000000000000001
    kept[values.argsort(descending=True, stable=True)[:count]] = 1
    return kept


def effective_share(weights: Tensor, sizes: Tensor) -> float:
    """Kish's effective sample size as a share of the tokens. weights: float [S]; sizes: [S], tokens of each span."""
    wide, sizes = weights.double(), sizes.double()
    total, squared = (wide * sizes).sum(), (wide.square() * sizes).sum()
    return float(total**2 / (squared * sizes.sum())) if squared > 0 else 0.0


def tau_for_ess(drift: Tensor, sizes: Tensor, share: float, highest: float = 1000.0) -> float:
    """The tau at which the gates exp(-tau * drift) have an effective sample size of `share` of the tokens.

    The effective sample size falls as tau grows (log ESS has derivative 2 E_2tau[s] - 2 E_tau[s] <= 0). So bisection
    finds the one tau, to a relative 1e-9.

    drift: float [S] >= 0, in nats (`span_drift`); sizes: int64 [S], tokens of each span; share in (0, 1). Returns
    `highest` where even that tau leaves more than the share: a drift that is only rounding noise must not be magnified
    without bound. Source: ours.
    """
    wide = drift.double()
    excess = wide - wide.min() if len(wide) else wide  # scales all weights alike, so that they cannot all underflow
    if not len(wide) or effective_share(torch.exp(-highest * excess), sizes) > share:
        return highest
    low, high = 0.0, highest
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        enough = effective_share(torch.exp(-middle * excess), sizes) > share
        low, high = (middle, high) if enough else (low, middle)
    return high


def shuffle_within(values: Tensor, owners: Tensor, draws: Tensor) -> Tensor:
    """The spans of each sequence exchange their values: [S].

    owners: int64 [S], each span's sequence, non-decreasing; draws: float [S] in [0, 1), one a span.
    """
    order = draws.double().argsort(stable=True)
    order = order[owners[order].argsort(stable=True)]
    return values[order]


def shuffle_across(values: Tensor, draws: Tensor) -> Tensor:
    """All spans exchange their values: [S]. draws: float [S] in [0, 1), one a span."""
    return values[draws.argsort(stable=True)]


def resample(values: Tensor, draws: Tensor) -> Tensor:
    """Each span's value is drawn from all spans' values, with replacement: [S]. draws: float [S] in [0, 1)."""
    return values[(draws.double() * len(values)).long().clamp(max=max(len(values) - 1, 0))]


def constant(values: Tensor, sizes: Tensor) -> Tensor:
    """Every span gets the mean over tokens: [S]. sizes: [S], tokens of each span."""
    sizes = sizes.to(values.dtype)
    return torch.full_like(values, float((values * sizes).sum() / sizes.sum())) if len(values) else values


def inverse(values: Tensor, least: float = 1e-3) -> Tensor:
    """1 / max(v, least): the lower a span's gate, the larger its weight. At most 1 / least."""
    return 1 / values.clamp(min=least)


def first_of(spans: Tensor) -> Tensor:
    """Index of each span's first token: int64 [S]."""
    start = torch.ones_like(spans, dtype=torch.bool)
    start[1:] = spans[1:] != spans[:-1]
    return start.nonzero().flatten()


def _max(values: Tensor, spans: Tensor) -> Tensor:
    count = int(spans[-1]) + 1 if len(spans) else 0
    return values.new_full((count,), -torch.inf).scatter_reduce(0, spans, values, "amax")


def _reduce_prefix(values: Tensor, reducer: str, exclusive: bool) -> Tensor:
    """`reduce_prefix` of one sequence, float64 [T]."""
    upto = torch.cat([values.new_zeros(1), values.cumsum(0)])
    sums, whole = upto[:-1] if exclusive else upto[1:], upto[-1]
    if reducer == "mean":
        return sums / (torch.arange(len(sums), device=sums.device) + (not exclusive)).clamp(min=1)
    if reducer == "share":
        return torch.where(whole == 0, 0.0, sums / torch.where(whole == 0, 1.0, whole))
    return sums
