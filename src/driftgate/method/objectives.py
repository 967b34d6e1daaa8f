"""Per-token distillation losses. No loss normalises: the caller divides by the tokens of the whole optimiser batch.

Shapes: N valid response tokens, K tokens in the support of a position, C classes.
Symbols: p current student (carries the gradient), o behaviour student, q teacher, y_t the sampled token, S the support.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from . import check
from .gates import widen

Advantage = Literal["frozen", "recomputed"]
Ratio = Literal["behaviour", "current"]
Kind = Literal["reverse_kl", "forward_kl", "jsd"]
Mass = Literal["renormalised", "tail", "raw"]

# exp of this, times any advantage, is finite in float32. So a clipped token has gradient 0 and not inf * 0.
LARGEST_LOG_RATIO = 40.0


def sampled_token_loss(
    logp: Tensor,
    logp_behaviour: Tensor,
    logp_teacher: Tensor,
    advantage: Advantage = "frozen",
    clip: float | None = 0.2,
    dual_clip: float | None = 3.0,
    ratio: Ratio = "behaviour",
) -> Tensor:
    """Sampled-token OPD: a clipped policy-gradient loss whose reward is the teacher's log-ratio.

    l_t = -min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t) with r_t = p(y_t) / o(y_t). Where A_t < 0, l_t is at most
    -dual_clip A_t. None for `clip` or `dual_clip` leaves that bound out.
    A_t = log q(y_t) - log p_A(y_t), detached. p_A is the behaviour student ("frozen", public code of arXiv 2603.25562)
    or the current student ("recomputed", verl; advised under staleness by arXiv 2606.24143).
    `ratio` "current" uses r_t = p / sg(p), with the value 1. Then no bound ever binds, and the gradient is that of the
    score function, -A_t grad log p(y_t).

    logp, logp_behaviour, logp_teacher: float [N], in nats, all at the sampling temperature; gradient flows through
    `logp` only. Returns [N]. Raises ValueError naming the argument.
    """
    gain = log_ratio(logp, logp_behaviour, logp_teacher, advantage)
    return policy_gradient_loss(logp, logp_behaviour, gain, clip, dual_clip, ratio)


def policy_gradient_loss(
    logp: Tensor,
    logp_behaviour: Tensor,
    gain: Tensor,
    clip: float | None = 0.2,
    dual_clip: float | None = 3.0,
    ratio: Ratio = "behaviour",
) -> Tensor:
    """The loss of `sampled_token_loss` for any advantage A_t: `gain`, float [N], which carries no gradient. Returns
    [N]. Raises ValueError naming the argument."""
    r = _ratio(logp, logp_behaviour, gain, clip, dual_clip, ratio)
    return _policy_gradient(r, widen(gain.detach()), clip, dual_clip)


@torch.no_grad()
def clipped_tokens(
    logp: Tensor,
    logp_behaviour: Tensor,
    gain: Tensor,
    clip: float | None = 0.2,
    dual_clip: float | None = 3.0,
    ratio: Ratio = "behaviour",
) -> Tensor:
    """Where a bound (clip or dual clip) sets the gradient of `policy_gradient_loss` to zero: bool [N]. Same
    arguments."""
    r, gain = _ratio(logp, logp_behaviour, gain, clip, dual_clip, ratio), widen(gain)
    return _policy_gradient(r, gain, clip, dual_clip) != _policy_gradient(r, gain, None, None)


def log_ratio(logp: Tensor, logp_behaviour: Tensor, logp_teacher: Tensor, advantage: Advantage = "frozen") -> Tensor:
    """log q(y_t) - log p_A(y_t), float [N], in nats, without gradient: see `sampled_token_loss`. Raises ValueError
    naming the argument."""
    check.same_length(logp=logp, logp_behaviour=logp_behaviour, logp_teacher=logp_teacher)
    if advantage not in get_args(Advantage):
        raise ValueError(f"advantage must be frozen or recomputed, not {advantage!r}")
    return widen(logp_teacher.detach()) - widen((logp_behaviour if advantage == "frozen" else logp).detach())


def candidate_loss(
    logp: Tensor,
    logp_behaviour: Tensor,
    logp_teacher: Tensor,
    clip: float | None = 0.2,
    dual_clip: float | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """The policy-gradient loss of `sampled_token_loss`, averaged over K candidate tokens by the student's probability.

    l_t = sum over v in S of w_v l_v, with w_v = sg(p(v) / sum over S of p). l_v is the clipped loss of candidate v with
    r_v = p(v) / o(v) and A_v = sg(log q(v) - log p(v)).

    logp, logp_behaviour, logp_teacher: float [N, K], log-probabilities in the whole vocabulary, in nats; gradient flows
    through `logp` only. present: bool [N, K], False for a slot without a token; such a slot contributes 0. Returns [N].
    Raises ValueError naming the argument. Source: the public code of arXiv 2604.13016.
    """
    _check_supports(present, logp=logp, logp_behaviour=logp_behaviour, logp_teacher=logp_teacher)
    _check_clips(clip, dual_clip)
    present = torch.ones_like(logp, dtype=torch.bool) if present is None else present
    weight = widen(logp.detach()).masked_fill(~present, -math.inf).softmax(-1).masked_fill(~present, 0.0)
    logp, behaviour, teacher = (widen(x).masked_fill(~present, 0.0) for x in (logp, logp_behaviour, logp_teacher))
    loss = _policy_gradient(bounded_ratio(logp, behaviour), (teacher - logp).detach(), clip, dual_clip)
    return (weight * loss).sum(-1)


def divergence(log_p: Tensor, log_q: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """The divergence between two rows of log-masses, over the last dimension, in nats.

    "reverse_kl" sum of p (log p - log q); "forward_kl" sum of q (log q - log p);
    "jsd" beta sum of q (log q - log m) + (1 - beta) sum of p (log p - log m), m = beta q + (1 - beta) p.
    A class without mass (log-mass -inf, or so low that exp gives 0) counts as 0 log 0 = 0, in value and gradient. Where
    the first side of a KL has mass and the second is -inf, the KL is inf.

    log_p, log_q: float [..., C], used as given, not normalised; gradient flows through `log_p` only. Returns float32
    (float64 for float64 input) [...]. Raises ValueError naming the argument. Source: arXiv 2306.13649 (GKD).
    """
    check_kind(kind, beta)
    _check_shape("log_q", log_q, "log_p", log_p)
    log_p, log_q = widen(log_p), widen(log_q.detach())
    if kind == "reverse_kl":
        return _kl(log_p, log_q)
    if kind == "forward_kl":
        return _kl(log_q, log_p)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_q, log_m) + (1 - beta) * _kl(log_p, log_m)


def support_divergence(
    log_p: Tensor, log_q: Tensor, kind: Kind, mass: Mass, beta: float = 0.5, present: Tensor | None = None
) -> Tensor:
    """`divergence` over K tokens per position. `mass` says how the mass outside of them is treated.

    "renormalised": both sides are normalised inside the support (local support matching). So a constant per position
    may be missing from either side. Fewer than 2 present tokens give exactly 0.
    "tail": the mass outside the support is one more class. The result is a lower bound of the divergence over the
    vocabulary. The tail counts as at least the dtype's eps, because below that, 1 - mass is rounding error.
    "raw": the support's terms of the sum over the vocabulary. The result may be negative.

    log_p, log_q: float [N, K], log-masses in nats, in the whole vocabulary unless renormalised; gradient flows through
    `log_p` only. present: bool [N, K], False for a slot without a token. Returns [N].
    Raises ValueError naming the argument. Sources: arXiv 2603.25562 (renormalised), 2604.13016 (supports).
    """
    check_kind(kind, beta)
    _check_supports(present, log_p=log_p, log_q=log_q)
    if mass not in get_args(Mass):
        raise ValueError(f"mass must be one of {', '.join(get_args(Mass))}, not {mass!r}")
    if mass == "renormalised":
        return _renormalised(log_p, log_q, kind, beta, present)
    log_p, log_q = _present(log_p, present), _present(log_q.detach(), present)
    if mass == "tail":
        log_p, log_q = (torch.cat([x, tail_mass(x)[:, None]], dim=-1) for x in (log_p, log_q))
    return divergence(log_p, log_q, kind, beta)


def tail_mass(log_mass: Tensor, present: Tensor | None = None) -> Tensor:
    """log(1 - sum of the masses), where 1 - sum counts as at least the dtype's eps: float [N].

    log_mass: float [N, K]; present: bool [N, K], False for a slot without a token.
    """
    inside = _present(log_mass, present).logsumexp(-1).clamp(max=-torch.finfo(widen(log_mass).dtype).eps)
    # Each of the two forms is exact where it is used. The clamp keeps the gradient of the other form finite too.
    return torch.where(inside > -math.log(2), (-inside.expm1()).log(), (-inside.exp()).log1p())


def topk_reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Local support matching: reverse KL inside the teacher's K most probable tokens, both sides renormalised there.

    l_t = sum over v of p~(v) (log p~(v) - log q~(v)). p~ and q~ are the softmax over the K given logits. The gradient
    flows directly through the student's logits. A constant per position may be missing from the logits, as it cancels,
    but they must be at the sampling temperature.

    student_logits, teacher_logits: float [N, K], K >= 2, on the same support. Returns [N], in nats.
    Raises ValueError naming the argument. Source: arXiv 2603.25562 (K = 32).
    """
    _check_two("student_logits", student_logits)
    _check_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    return support_divergence(student_logits, teacher_logits, "reverse_kl", "renormalised")


def check_kind(kind: str, beta: float) -> None:
    """Require a known divergence and 0 < beta < 1. Raises ValueError naming the argument."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if not 0 < beta < 1:
        raise ValueError(f"beta must be above 0 and below 1, not {beta}; at the ends use kind forward_kl or reverse_kl")


def _ratio(
    logp: Tensor, logp_behaviour: Tensor, gain: Tensor, clip: float | None, dual_clip: float | None, ratio: Ratio
) -> Tensor:
    """r_t with gradient, [N]; the arguments of `policy_gradient_loss`, checked."""
    check.same_length(logp=logp, logp_behaviour=logp_behaviour, gain=gain)
    _check_clips(clip, dual_clip)
    if ratio not in get_args(Ratio):
        raise ValueError(f"ratio must be behaviour or current, not {ratio!r}")
    logp = widen(logp)
    return bounded_ratio(logp, widen(logp_behaviour.detach()) if ratio == "behaviour" else logp)


def bounded_ratio(logp: Tensor, base: Tensor) -> Tensor:
    """p / base, at most exp(LARGEST_LOG_RATIO), from log-probabilities of any one shape; gradient through `logp`."""
    return torch.exp((logp - base.detach()).clamp(max=LARGEST_LOG_RATIO))


def _policy_gradient(ratio: Tensor, gain: Tensor, clip: float | None, dual_clip: float | None) -> Tensor:
    """-ratio * gain, within the given bounds. Any shape."""
    reward = ratio * gain
    if clip is not None:
        reward = torch.minimum(reward, ratio.clamp(1 - clip, 1 + clip) * gain)
    loss = -reward
    if dual_clip is not None:
        loss = torch.where(gain < 0, torch.minimum(loss, -dual_clip * gain), loss)
    return loss


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum of a (log a - log b) over the last dimension; 0 for a class without mass in a, whatever its mass in b."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0.0)).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta q + (1 - beta) p); -inf, without a gradient of NaN, where both sides are -inf."""
    absent = (log_p == -math.inf) & (log_q == -math.inf)
    log_p, log_q = log_p.masked_fill(absent, 0.0), log_q.masked_fill(absent, 0.0)
    return torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta)).masked_fill(absent, -math.inf)


def _renormalised(log_p: Tensor, log_q: Tensor, kind: Kind, beta: float, present: Tensor | None) -> Tensor:
    _check_two("log_p", log_p)
    if present is None:
        return divergence(widen(log_p).log_softmax(-1), widen(log_q).log_softmax(-1), kind, beta)
    # The softmax of no tokens is NaN. So a position of fewer than two tokens first becomes uniform; its loss is then 0.
    few = present.sum(-1) < 2
    log_p, log_q = (_present(x, present).masked_fill(few[:, None], 0.0).log_softmax(-1) for x in (log_p, log_q))
    return divergence(log_p, log_q, kind, beta).masked_fill(few, 0.0)


def _present(log_mass: Tensor, present: Tensor | None) -> Tensor:
    return widen(log_mass) if present is None else widen(log_mass).masked_fill(~present, -math.inf)


def _check_clips(clip: float | None, dual_clip: float | None) -> None:
    if clip is not None:
        check.positive("clip", clip)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, not {dual_clip}; None leaves it out")


def _check_two(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} must be [N, K] with K at least 2 (a renormalised support of one token has no loss); "
            f"its shape is {list(logits.shape)}"
        )


def _check_shape(name: str, values: Tensor, like: str, other: Tensor) -> None:
    if values.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {like}, {list(other.shape)}, not {list(values.shape)}")


def _check_supports(present: Tensor | None, **log_masses: Tensor) -> None:
    """Require [N, K] tensors of one shape, and `present` bool of that shape or None."""
    like, *names = log_masses
    if log_masses[like].dim() != 2:
        raise ValueError(f"{like} must be [N, K], K tokens per position; its shape is {list(log_masses[like].shape)}")
    for name in names:
        _check_shape(name, log_masses[name], like, log_masses[like])
    if present is not None:
        _check_shape("present", present, like, log_masses[like])
        if present.dtype != torch.bool:
            raise ValueError(f"present must be bool, not {present.dtype}; pass ids >= 0")
