"""Slow twins of shaped advantages, of verdicts as advantages, and of both: see `repair_twins`."""

import math
from statistics import fmean, stdev

from torch import Tensor
from twin_batch import (
    Answer,
    Batch,
    Twin,
    Weights,
    entropy,
    flat,
    gain_loss,
    per_token,
    policy_gradient,
    score_loss,
    top,
    weighted,
)


def ratio(a: Answer, t: int, who: str = "o") -> float:
    """log q - log o of the sampled token, or less log p."""
    return (a.q[t, a.y[t]] - getattr(a, who)[t, a.y[t]]).item()


def verdict_gain(b: Batch, a: Answer, divided: bool = False) -> float:
    """The verdict less the mean over all responses to the prompt in the rollout batch."""
    group = [float(other.correct) for other in b.rollout() if other.prompt == a.prompt]
    gain = float(a.correct) - fmean(group)
    return gain / (stdev(group) + 1e-6) if divided else gain


def grpo(s: dict[str, Batch], divided=True) -> Twin:
    b = s["student"]
    return {"main": weighted(b, gain_loss(lambda a, t: verdict_gain(b, a, divided), dual_clip=None))}, {}


def opd_reward(s: dict[str, Batch], coef=1.0) -> Twin:
    b = s["student"]
    return {"main": weighted(b, gain_loss(lambda a, t: ratio(a, t) + coef * verdict_gain(b, a)))}, {}


def power_opd(s: dict[str, Batch], power=5) -> Twin:
    """The public code's reward: a difference of powers of probabilities."""

    def gain(a: Answer, t: int) -> float:
        q, p = (math.exp(side[t, a.y[t]].item()) for side in (a.q, a.p))
        return q**power - p**power

    return {"main": weighted(s["student"], score_loss(gain))}, {}


def top_d(s: dict[str, Batch], alpha=0.5) -> Twin:
    def gain(a: Answer, t: int) -> float:
        return math.log(alpha * math.exp(ratio(a, t)) + 1 - alpha)

    return {"main": weighted(s["student"], gain_loss(gain))}, {}


def clipped_reward(s: dict[str, Batch], bound=5.0) -> Twin:
    return {"main": weighted(s["student"], gain_loss(lambda a, t: max(-bound, min(ratio(a, t), bound))))}, {}


def sign_log_reward(s: dict[str, Batch]) -> Twin:
    def gain(a: Answer, t: int) -> float:
        return math.copysign(math.log(1 + abs(ratio(a, t))), ratio(a, t))

    return {"main": weighted(s["student"], gain_loss(gain))}, {}


def gamma_opd(s: dict[str, Batch], discount=0.99) -> Twin:
    def gain(a: Answer, t: int) -> float:
        return math.fsum(discount ** (later - t) * ratio(a, later) for later in range(t, len(a)))

    return {"main": weighted(s["student"], gain_loss(gain))}, {}


def semi_opd(s: dict[str, Batch]) -> Twin:
    return {"main": weighted(s["student"], score_loss(lambda a, t: ratio(a, t, "p")))}, {}


def keep(scores: Weights, share: float) -> Weights:
    """1 for the highest share of all scores, rounded up; the earlier of equal ones."""
    every = flat(scores)
    kept = set(sorted(range(len(every)), key=lambda i: -every[i])[: math.ceil(share * len(every) - 1e-9)])
    places = iter(range(len(every)))
    return [[float(next(places) in kept) for _ in group] for group in scores]


def opsa(s: dict[str, Batch], share=0.2, constant: float | None = None) -> Twin:
    b = s["student"]
    unsure = [entropy(row) for a in b.rollout() for row in a.o]
    low, high = min(unsure), max(unsure)

    def gain(a: Answer, t: int) -> float:
        return -0.5 - (entropy(a.o[t]) - low) / (2 * (high - low)) if constant is None else constant

    weights = keep(per_token(b, lambda a, t: -a.at("o")[t]), share)
    return {"main": weighted(b, gain_loss(gain), weights, kept=True)}, {"main": weights}


def dial(s: dict[str, Batch], share=0.4, beta=0.5, at_random=False) -> Twin:
    """Inside each response. At random: the n-th token has the choice of the token with the n-th smallest draw."""
    b, weights = s["student"], []
    for a in b.answers:
        scores = []
        for q, o in zip(a.at("q"), a.at("o")):
            mean = (math.exp(q) - math.exp(o)) / (q - o)
            scores.append(mean**beta * abs(q - o))
        weights += keep([scores], share)
    if at_random:
        draws = b.draws("control", "kept")
        orders = [sorted(range(len(u)), key=lambda i, u=u: u[i]) for u in draws]
        weights = [[group[i] for i in order] for group, order in zip(weights, orders)]
    return {"main": weighted(b, policy_gradient, weights, kept=True)}, {"main": weights}


def ier(s: dict[str, Batch], share=0.01, k=8) -> Twin:
    """Squared mean over variance of a sampled token's gradient, in the metric of its own Fisher matrix."""
    b = s["student"]

    def score(a: Answer, t: int) -> float:
        support = list(dict.fromkeys([*top(a.o[t], k), a.y[t]]))
        mass = [math.exp(a.o[t, v].item()) for v in support]
        o = [m / math.fsum(mass) for m in mass]
        rho = [(a.o[t, v] - a.q[t, v]).item() for v in support]
        length = [1 / x - 1 for x in o]
        baseline = math.fsum(x * n * r for x, n, r in zip(o, length, rho)) / math.fsum(x * n for x, n in zip(o, length))
        mean = math.fsum(x * r for x, r in zip(o, rho))
        signal = math.fsum(x * (r - mean) ** 2 for x, r in zip(o, rho))
        return signal / (math.fsum(x * n * (r - baseline) ** 2 for x, n, r in zip(o, length, rho)) - signal)

    weights = keep(per_token(b, score), share)
    return {"main": weighted(b, policy_gradient, weights, kept=True)}, {"main": weights}


def res_opd(s: dict[str, Batch], k=8) -> Twin:
    def loss(a: Answer, t: int) -> Tensor:
        support, y = top(a.q[t], k), a.y[t]
        p, q = a.p[t].exp(), a.q[t].exp()
        tail_p, tail_q = 1 - p[support].sum(), 1 - q[support].sum()
        total = (p[support] * (a.p[t] - a.q[t])[support]).sum() + tail_p * (tail_p / tail_q).log()
        if y not in support:
            inside = ((p[y] / tail_p) / (q[y] / tail_q)).log().item()
            total = total + p[y] / a.o[t, y].exp() * inside
        return total

    return {"main": weighted(s["student"], loss)}, {}
