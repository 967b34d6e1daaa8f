"""Slow twins of the controls and of our own variants, beside `repair_twins`."""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor
from twin_batch import Answer, Batch, Spans, Twin, Weights, flat, lsm_loss, mean_one, weighted


def lsm_truncated_is(s: dict[str, Batch], cap=2.0, k=8) -> Twin:
    weights = mean_one([[min(math.exp(d), cap) for d in a.shift] for a in s["student"].answers])
    return {"main": weighted(s["student"], lsm_loss(k), weights)}, {"main": weights}


def age_only(s: dict[str, Batch], k=8) -> Twin:
    weights = [[math.exp(-0.05 * s["student"].age)] * len(a) for a in s["student"].answers]
    return {"main": weighted(s["student"], lsm_loss(k), weights)}, {"main": weights}


def token_spans(b: Batch) -> Spans:
    return [[range(t, t + 1) for t in range(len(a))] for a in b.answers]


def sequence_spans(b: Batch) -> Spans:
    return [[range(len(a))] for a in b.answers]


def block_spans(b: Batch, size=8) -> Spans:
    return [[range(t, min(t + size, len(a))) for t in range(0, len(a), size)] for a in b.answers]


def random_spans(b: Batch, size=8) -> Spans:
    """As many spans as blocks; cut before the tokens (not the first) of the smallest draws."""
    spans = []
    for blocks, uniforms in zip(block_spans(b, size), b.draws("control", "gate")):
        order = sorted(range(1, len(uniforms)), key=lambda t: uniforms[t])
        cuts = [0, *sorted(order[: len(blocks) - 1]), len(uniforms)]
        spans.append([range(*pair) for pair in pairwise(cuts)])
    return spans


def changepoint_spans(b: Batch, min_tokens=4, penalty=0.5) -> Spans:
    """Least sum over segments of squares / sigma^2 + penalty log T (segments - 1): every last cut of every prefix."""
    spans = []
    for a in b.answers:
        v, best = a.shift, {0: (0.0, [])}
        sigma = max(
            math.sqrt(math.fsum((x - y) ** 2 for x, y in pairwise(v)) / (2 * max(len(v) - 1, 1))),
            1e-5 * (max(v) - min(v)),
        )
        for end in range(min_tokens, len(v) + 1) if len(v) >= 2 * min_tokens else []:
            ways = []
            for start in best:
                if end - start >= min_tokens:
                    part = v[start:end]
                    mean = math.fsum(part) / len(part)
                    cost = math.fsum((x - mean) ** 2 for x in part) / sigma**2
                    price = penalty * math.log(len(v)) if start else 0.0
                    ways.append((best[start][0] + cost + price, [*best[start][1], start]))
            best[end] = min(ways)
        cuts = [*best[len(v)][1], len(v)] if len(v) in best else [0, len(v)]
        spans.append([range(*pair) for pair in pairwise(cuts)])
    return spans


def drifts(b: Batch, spans: Spans) -> Weights:
    """|mean shift| of every span."""
    return [[abs(math.fsum(a.shift[t] for t in r)) / len(r) for r in own] for a, own in zip(b.answers, spans)]


def spread(values: Weights, spans: Spans) -> Weights:
    """Values of spans as values of tokens."""
    return [[v for v, r in zip(group, own) for _ in r] for group, own in zip(values, spans)]


def gated(
    s: dict[str, Batch],
    spans: Callable[[Batch], Spans] = block_spans,
    tau=3.0,
    control: str | None = None,
    target: float | None = None,
    loss: Callable[[Answer, int], Tensor] | None = None,
) -> Twin:
    """exp(-tau |mean shift of the span|), of mean 1 over the batch; with a control in the place of the values."""
    b, places = s["student"], spans(s["student"])
    drift = drifts(b, places)
    tau = tau if target is None else tau_for(spread(drift, places), target)
    gates = [[math.exp(-tau * d) for d in group] for group in drift]
    weights = mean_one(spread(controlled(b, gates, places, control), places))
    return {"main": weighted(b, loss or lsm_loss(8), weights)}, {"main": weights}


def controlled(b: Batch, gates: Weights, spans: Spans, control: str | None) -> Weights:
    if control is None:
        return gates
    if control == "inverse":
        return [[1 / max(g, 1e-3) for g in group] for group in gates]
    values = flat(gates)
    if control == "constant":
        mean = math.fsum(flat(spread(gates, spans))) / b.tokens
        return [[mean] * len(group) for group in gates]
    draws = [[uniforms[r.start] for r in own] for uniforms, own in zip(b.draws("control", "gate"), spans)]
    if control == "shuffle_within":  # the n-th span gets the value of the span with the n-th smallest draw
        orders = [sorted(range(len(u)), key=lambda i, u=u: u[i]) for u in draws]
        return [[group[i] for i in order] for group, order in zip(gates, orders)]
    if control == "shuffle_across":
        every = flat(draws)
        chosen = sorted(range(len(every)), key=lambda i: every[i])
    else:  # resample: with replacement
        chosen = [int(u * len(values)) for u in flat(draws)]
    drawn = iter([values[i] for i in chosen])
    return [[next(drawn) for _ in group] for group in gates]


def tau_for(drift: Weights, share: float) -> float:
    """The tau at which (sum g)^2 / (n sum g^2) is the share, by halving."""

    def worth(tau: float) -> float:
        g = [math.exp(-tau * d) for d in flat(drift)]
        return math.fsum(g) ** 2 / (len(g) * math.fsum(x * x for x in g))

    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) > share else (low, middle)
    return high
