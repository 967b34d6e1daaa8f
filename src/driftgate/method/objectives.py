"""Per-token distillation losses. None normalises: whoever calls divides by the tokens of the whole optimiser batch.

Shapes: N valid response tokens, K tokens in the support of a position.
Symbols: p current student (carries the gradient), o behaviour student, q teacher, y_t the sampled token.
"""

from typing import Literal

import torch
from torch import Tensor

from . import check
from .gates import widen

Advantage = Literal["frozen", "recomputed"]


def sampled_token_loss(
    logp: Tensor,
    logp_behaviour: Tensor,
    logp_teacher: Tensor,
    advantage: Advantage = "frozen",
    clip: float = 0.2,
    dual_clip: float = 3.0,
) -> Tensor:
    """Sampled-token OPD: a clipped policy-gradient loss whose reward is the teacher's log-ratio.

    l_t = -min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t) with r_t = p(y_t) / o(y_t), and where A_t < 0 never above
    -dual_clip A_t. A_t = log q(y_t) - log p_A(y_t), detached, with p_A the behaviour student ("frozen", public code of
    arXiv 2603.25562) or the current one ("recomputed", verl; advised under staleness by arXiv 2606.24143).

    logp, logp_behaviour, logp_teacher: float [N], in nats, all at the sampling temperature; gradient flows through
    `logp` alone. Returns [N]. Raises ValueError naming the argument.
    """
    check.same_length(logp=logp, logp_behaviour=logp_behaviour, logp_teacher=logp_teacher)
    check.positive("clip", clip)
    if dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, not {dual_clip}")
    if advantage not in ("frozen", "recomputed"):
        raise ValueError(f"advantage must be frozen or recomputed, not {advantage!r}")
    logp, behaviour, teacher = widen(logp), widen(logp_behaviour.detach()), widen(logp_teacher.detach())
    gain = teacher - (behaviour if advantage == "frozen" else logp.detach())
    ratio = torch.exp(logp - behaviour)
    loss = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return torch.where(gain < 0, torch.minimum(loss, -dual_clip * gain), loss)


def topk_reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Local support matching: reverse KL inside the teacher's K most probable tokens, both sides renormalised there.

    l_t = sum over v of p~(v) (log p~(v) - log q~(v)), p~ and q~ the softmax over the K given logits; direct gradient
    through the student. Logits may lack any per-position constant (logsumexp cancels), but must be at the sampling
    temperature.

    student_logits, teacher_logits: float [N, K], K >= 2, on the same support. Returns [N], in nats.
    Raises ValueError naming the argument. Source: arXiv 2603.25562 (K = 32).
    """
    if student_logits.dim() != 2 or student_logits.shape[1] < 2:
        raise ValueError(
            f"student_logits must be [N, K] with K at least 2 (a renormalised support of one token has no loss); "
            f"its shape is {list(student_logits.shape)}"
        )
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits, {list(student_logits.shape)}, "
            f"not {list(teacher_logits.shape)}"
        )
    log_student = widen(student_logits).log_softmax(-1)
    log_teacher = widen(teacher_logits.detach()).log_softmax(-1)
    return (log_student.exp() * (log_student - log_teacher)).sum(-1)
