"""Slow twins of shaped advantages, of verdicts as advantages, and of both: see `repair_twins`."""

import math
from statistics import fmean, stdev

from twin_batch import Answer, Batch, Twin, gain_loss, score_loss, weighted


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
