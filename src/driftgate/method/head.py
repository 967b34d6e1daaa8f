"""Hidden states to log-probabilities without a [tokens x vocabulary] tensor, in the forward and the backward pass.

Shapes: N tokens, H hidden size, V vocabulary, K tokens per position, C tokens per chunk. Memory is C x V, whatever N.
Logits are hidden @ weight.T / temperature, with the bias, the scale and the cap of a `Head` that has them. They are
float32 also for bfloat16 operands: rounded to bfloat16, a logit of 20 is off by up to 0.06 nats, more than the drift
that a gate measures.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .logits import Chunked, Head, operands, parts, wide
from .stop_group import class_of

CHUNK = 256
"""Default number of tokens per chunk."""
ENTROPY_ROWS = 8
"""Rows [V] whose entropy is computed at once. So few fit a processor's cache."""


class Summary(NamedTuple):
    """Figures of a distribution per position, in nats, from one pass over the vocabulary; without gradient.

    logp: float [N, K] at the given ids; entropy: float [N]; top_ids int64 and top_logp float [N, top]: the most
    probable tokens, most probable first, and their log-probabilities in the whole vocabulary. None if not requested.
    """

    logp: Tensor
    entropy: Tensor | None
    top_ids: Tensor | None
    top_logp: Tensor | None


def token_logprobs(
    hidden: Tensor, weight: Tensor | Head, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """log softmax(logits)[ids]: the log-probability, in nats, of one token or K tokens per position; differentiable.

    hidden: [N, H]; weight: [V, H], or a `Head`; ids: int64 [N] or [N, K], each from 0 to V - 1. Returns float32
    (float64 for float64 input) of the shape of `ids`. Here and below an id of a head's `group` is its whole class. The
    backward pass computes the logits again, chunk by chunk.
    Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 1, 2)
    head = Head.of(weight)
    columns = class_of(ids if ids.dim() == 2 else ids[:, None], head.group)
    found = _TokenLogprobs.apply(*operands(hidden, head), columns, head.curve(temperature), chunk)
    return found.view(ids.shape)  # type: ignore[no-any-return, union-attr]


def weighted_loss(
    hidden: Tensor,
    weight: Tensor | Head,
    ids: Tensor,
    token_weight: Tensor,
    loss_of: Callable[[slice, Tensor], Tensor],
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_t w_t l(log p(y_t)), for weights w_t that are known before the forward pass.

    The gradient is computed in the forward pass, while a chunk's logits are in memory. That takes three matrix
    products; `token_logprobs` takes four.

    hidden: [N, H]; weight: [V, H], or a `Head`; ids: int64 [N]; token_weight: float [N], without gradient;
    loss_of(part, logp): the losses [C] of the tokens `part` from their log-probabilities [C], token by token. Returns
    the sum [], differentiable once in `hidden` and the head, then the losses and the log-probabilities, float32 (or
    float64) [N], without gradient. Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 1)
    head = Head.of(weight)
    ids, how = class_of(ids, head.group), (head.curve(temperature), chunk)
    return _WeightedLoss.apply(*operands(hidden, head), ids, token_weight, loss_of, *how)  # type: ignore[no-any-return]


@torch.no_grad()
def summary(
    hidden: Tensor,
    weight: Tensor | Head,
    ids: Tensor,
    top: int = 0,
    entropy: bool = False,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Summary:
    """Log-probabilities at K ids, the entropy and the `top` most probable tokens, from one chunk of logits at a time.

    hidden: [N, H]; weight: [V, H], or a `Head`; ids: int64 [N, K], each from 0 to V - 1. Values at `ids` equal those of
    `token_logprobs`, bit for bit. Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 2)
    head = Head.of(weight)
    if not 0 <= top <= head.classes:
        raise ValueError(f"top must be from 0 to the {head.classes} tokens of the vocabulary, not {top}")
    ids = class_of(ids, head.group)
    hidden, *rest = operands(hidden, head)
    new = hidden.new_empty
    result = Summary(
        new(ids.shape, dtype=wide(hidden)),
        new(len(hidden), dtype=wide(hidden)) if entropy else None,
        new(len(hidden), top, dtype=torch.int64) if top else None,
        new(len(hidden), top, dtype=wide(hidden)) if top else None,
    )
    chunked = Chunked(hidden, *rest, head.curve(temperature), chunk)  # type: ignore[arg-type]
    for part in parts(len(hidden), chunk):
        _summarise(chunked.logits(part), ids[part], part, result)
    return result


def support_logits(
    hidden: Tensor, weight: Tensor | Head, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """logits[ids] for K tokens per position, from those K rows of the head only; differentiable.

    hidden: [N, H]; weight: [V, H], or a `Head`; ids: int64 [N, K]. Returns float32 (or float64) [N, K], not normalised.
    """
    head = Head.of(weight)
    inputs, curve = operands(hidden, head), head.curve(temperature)
    if not head.group:
        return _SupportLogits.apply(*inputs, ids, curve, chunk)  # type: ignore[no-any-return]
    members = torch.tensor(head.group, device=ids.device).expand(len(ids), -1)
    found = _SupportLogits.apply(*inputs, torch.cat([ids, members], 1), curve, chunk)
    own, theirs = found.split([ids.shape[1], len(head.group)], 1)  # type: ignore[union-attr]
    return torch.where(torch.isin(ids, members[:1]), theirs.logsumexp(1, keepdim=True), own)


def _summarise(logits: Tensor, ids: Tensor, part: slice, result: Summary) -> None:
    """Fill the rows `part` of `result`. Overwrites `logits` [C, V]. ids: int64 [C, K]."""
    logp = log_softmax_(logits)
    result.logp[part] = logp.gather(1, ids)
    if result.top_ids is not None and result.top_logp is not None:
        result.top_logp[part], result.top_ids[part] = logp.topk(result.top_ids.shape[1], dim=-1)
    if result.entropy is not None:
        # a few rows at a time, so that intermediate results stay in the processor's cache
        result.entropy[part] = torch.cat([-(rows.exp() * rows).sum(-1) for rows in logp.split(ENTROPY_ROWS)])


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, curve, chunk):
        logp = torch.empty(ids.shape, dtype=wide(hidden), device=hidden.device)
        chunked = Chunked(hidden, weight, bias, curve, chunk)
        for part in parts(len(hidden), chunk):
            logp[part] = log_softmax_(chunked.logits(part)).gather(1, ids[part])
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.curve, ctx.chunk = curve, chunk
        return logp

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        """d logp / d logits = onehot(id) - softmax, summed over a position's K ids; logits are computed again."""
        hidden, weight, bias, ids = ctx.saved_tensors
        grad = ctx.curve.back(grad)
        chunked = Chunked(hidden, weight, bias, ctx.curve, ctx.chunk, back=True)

        def grad_logits(part: slice) -> Tensor:
            softmax = softmax_(chunked.logits(part))
            # scatter_add_, because an id that stands twice in a position counts twice
            return softmax.mul_(-grad[part].sum(1, keepdim=True)).scatter_add_(1, ids[part], grad[part])

        return *chunked.gradients(grad_logits, ctx.needs_input_grad[2]), None, None, None


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, token_weight, loss_of, curve, chunk):
        losses, logp = (torch.empty(len(hidden), dtype=wide(hidden), device=hidden.device) for _ in range(2))
        chunked = Chunked(hidden, weight, bias, curve, chunk, back=True)

        def grad_logits(part: slice) -> Tensor:
            log_softmax = log_softmax_(chunked.logits(part))
            logp[part] = log_softmax.gather(1, ids[part, None])[:, 0]
            with torch.enable_grad():
                own = logp[part].detach().requires_grad_()
                found = loss_of(part, own)
            losses[part] = found.detach()
            slope = curve.back(torch.autograd.grad(found, own, token_weight[part].to(found))[0][:, None])
            return log_softmax.exp_().mul_(-slope).scatter_add_(1, ids[part, None], slope)

        ctx.gradients = chunked.gradients(grad_logits, ctx.needs_input_grad[2])
        ctx.mark_non_differentiable(losses, logp)
        return (token_weight * losses).sum(), losses, logp

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if each is None else each.mul_(grad) for each in ctx.gradients), None, None, None, None, None


class _SupportLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, curve, chunk):
        logits = torch.empty(ids.shape, dtype=wide(hidden), device=hidden.device)
        slope = None if curve.cap is None else torch.empty_like(logits)
        with torch.autocast(hidden.device.type, enabled=False):  # autocast would round operands and product
            for part in parts(len(hidden), chunk):
                rows = weight[ids[part]].to(logits.dtype)
                logits[part] = torch.bmm(rows, hidden[part, :, None].to(logits.dtype))[..., 0]
        ctx.save_for_backward(hidden, weight, bias, ids, slope)
        ctx.curve, ctx.chunk = curve, chunk
        return curve.apply_(logits, None if bias is None else bias[ids], slope)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, ids, slope = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=wide(weight))
        grad = ctx.curve.back(grad) if slope is None else ctx.curve.back(grad).mul_(slope)
        grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad.new_zeros(len(bias)).index_add_(0, ids.flatten(), grad.flatten()).to(bias.dtype)
        grad = grad.to(weight.dtype)
        for part in parts(len(hidden), ctx.chunk):
            grad_hidden[part] = torch.bmm(grad[part, None, :], weight[ids[part]])[:, 0]
            outer = grad[part, :, None] * hidden[part, None, :]
            grad_weight.index_add_(0, ids[part].flatten(), outer.flatten(0, 1).to(grad_weight.dtype))
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None, None, None


def log_softmax_(logits: Tensor) -> Tensor:
    """In place, over the last dimension, without a second [C, V]."""
    return torch.log_softmax(logits, -1, out=logits)  # type: ignore[call-overload]


def softmax_(logits: Tensor) -> Tensor:
    """In place, over the last dimension."""
    return torch.softmax(logits, -1, out=logits)  # type: ignore[call-overload]


def _check_ids(hidden: Tensor, ids: Tensor, *dims: int) -> None:
    shapes = " or ".join({1: "[N]", 2: "[N, K]"}[dim] for dim in dims)
    if ids.dtype != torch.int64 or ids.dim() not in dims:
        raise ValueError(f"ids must be int64 {shapes}, not {ids.dtype} {list(ids.shape)}")
    if len(ids) != len(hidden):
        raise ValueError(f"ids has {len(ids)} positions but hidden has {len(hidden)}; give one row of ids per position")
