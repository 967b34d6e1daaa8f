"""Divergences over the whole vocabulary, from hidden states, without a [tokens x vocabulary] tensor.

Shapes: N tokens, H and H' the hidden sizes of student and teacher, V their shared vocabulary, C tokens per chunk.
Symbols: p the student (carries the gradient), q the teacher, m = beta q + (1 - beta) p.
"""

import math

import torch
from torch import Tensor

from .head import CHUNK, log_softmax_
from .logits import Chunked, Head, operands, parts, wide
from .objectives import Kind, check_kind


def vocabulary_divergence(
    hidden: Tensor,
    weight: Tensor | Head,
    hidden_q: Tensor,
    weight_q: Tensor | Head,
    kind: Kind,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """Divergence between student and teacher per position, in nats; differentiable in `hidden` and the student's head.

    "reverse_kl" KL(p || q); "forward_kl" KL(q || p); "jsd" beta KL(q || m) + (1 - beta) KL(p || m).

    hidden: [N, H]; weight: [V, H], or a `Head`; hidden_q: [N, H']; weight_q: [V, H'], or a `Head`. Logits are hidden @
    weight.T / temperature, with bias, scale and cap of a `Head` that has them. Returns float32 (float64 for float64
    input) [N]. The backward pass computes both sides' logits again, chunk by chunk. Raises ValueError naming the
    argument. Source: arXiv 2306.13649 (GKD).
    """
    check_kind(kind, beta)
    if len(hidden_q) != len(hidden):
        raise ValueError(f"hidden_q has {len(hidden_q)} positions but hidden has {len(hidden)}; give the same tokens")
    ours, theirs = Head.of(weight), Head.of(weight_q).map(Tensor.detach)
    if len(theirs.weight) != len(ours.weight):
        raise ValueError(
            f"weight_q has {len(theirs.weight)} tokens but weight has {len(ours.weight)}; cut both to the shared "
            f"vocabulary"
        )
    if theirs.group != ours.group:
        raise ValueError(f"weight_q has the group {theirs.group} but weight has {ours.group}; give both the same")
    teacher, curves = operands(hidden_q.detach(), theirs), (ours.curve(temperature), theirs.curve(temperature))
    return _VocabularyDivergence.apply(*operands(hidden, ours), *teacher, curves, kind, beta, chunk)  # type: ignore[no-any-return]


class _VocabularyDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, hidden_q, weight_q, bias_q, curves, kind, beta, chunk):
        result = torch.empty(len(hidden), dtype=wide(hidden), device=hidden.device)
        student = Chunked(hidden, weight, bias, curves[0], chunk)
        teacher = Chunked(hidden_q, weight_q, bias_q, curves[1], chunk)
        for part in parts(len(hidden), chunk):
            log_p, log_q = log_softmax_(student.logits(part)), log_softmax_(teacher.logits(part))
            result[part] = _value(log_p, log_q, kind, beta)
        ctx.save_for_backward(hidden, weight, bias, hidden_q, weight_q, bias_q)
        ctx.curves, ctx.kind, ctx.beta, ctx.chunk = curves, kind, beta, chunk
        return result

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, hidden_q, weight_q, bias_q = ctx.saved_tensors
        grad = ctx.curves[0].back(grad[:, None])
        student = Chunked(hidden, weight, bias, ctx.curves[0], ctx.chunk, back=True)
        teacher = Chunked(hidden_q, weight_q, bias_q, ctx.curves[1], ctx.chunk)

        def grad_logits(part: slice) -> Tensor:
            log_p, log_q = log_softmax_(student.logits(part)), log_softmax_(teacher.logits(part))
            return _slope(log_p, log_q, ctx.kind, ctx.beta).mul_(grad[part])

        return *student.gradients(grad_logits, ctx.needs_input_grad[2]), *[None] * 7


def _value(log_p: Tensor, log_q: Tensor, kind: Kind, beta: float) -> Tensor:
    """The divergence of each row of a chunk, [C].

    As `objectives.divergence`, but without its handling of absent classes. A head's logits are finite, and every
    further pass over [C, V] costs time.
    """
    if kind == "reverse_kl":
        return _kl(log_p, log_q)
    if kind == "forward_kl":
        return _kl(log_q, log_p)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_q, log_m) + (1 - beta) * _kl(log_p, log_m)


def _slope(log_p: Tensor, log_q: Tensor, kind: Kind, beta: float) -> Tensor:
    """d divergence / d logits of p, [C, V], in closed form.

    p - q for the forward KL, else p (g - sum of p g). g is d divergence / d p up to a constant: log p - log q for the
    reverse KL, (1 - beta) (log p - log m) for the JSD.
    """
    p = log_p.exp()
    if kind == "forward_kl":
        return p.sub_(log_q.exp_())
    gain = log_p - (log_q if kind == "reverse_kl" else _log_mixture(log_p, log_q, beta))
    if kind == "jsd":
        gain.mul_(1 - beta)
    return gain.sub_((p * gain).sum(-1, keepdim=True)).mul_(p)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a - log_b).mul_(log_a.exp()).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
