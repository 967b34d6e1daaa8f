"""The part of a reverse KL that a support of K tokens leaves out, from one sampled token (arXiv 2610.04882).

KL(p || q) over the vocabulary = KL over the support with all other tokens as one class + P KL(p~ || q~). P is the
student's mass outside the support, p~ and q~ are the two distributions inside that tail. The first part is exact
(`support_divergence`, mass "tail"), the second is estimated here.

Shapes: N valid response tokens, K tokens in the support of a position.
Symbols: p current student (carries the gradient), o behaviour student, q teacher, y_t the sampled token, S the support.
"""

from torch import Tensor

from . import check
from .gates import widen
from .objectives import bounded_ratio


def tail_residual(
    logp: Tensor, logp_behaviour: Tensor, logp_teacher: Tensor, tail: Tensor, tail_teacher: Tensor, outside: Tensor
) -> Tensor:
    """l_t = r_t (log p(y_t) / P - log q(y_t) / Q), r_t = p(y_t) / o(y_t), where y_t is not in S; else 0.

    The bracket carries no gradient. Over y_t drawn from o, with a support that does not depend on y_t, value and
    gradient of l_t have those of P KL(p~ || q~) as their mean: the bracket's own gradient has mean 0.

    logp, logp_behaviour, logp_teacher: float [N], of y_t, in nats; tail, tail_teacher: float [N], log P and log Q;
    outside: bool [N]. Returns [N]. Raises ValueError naming the argument.
    """
    named = {"logp_behaviour": logp_behaviour, "logp_teacher": logp_teacher, "tail": tail, "tail_teacher": tail_teacher}
    check.same_length(logp=logp, **named, outside=outside)
    ours = widen(logp)
    gain = ours - widen(tail) - widen(logp_teacher) + widen(tail_teacher)
    return (bounded_ratio(ours, widen(logp_behaviour)) * gain.detach()).masked_fill(~outside, 0.0)
