"""Hidden states to log-probabilities without a [tokens x vocabulary] tensor, in the forward and the backward pass.

Shapes: N tokens, H hidden size, V vocabulary, K tokens per position, C tokens per chunk. Memory is C x V, whatever N.
Logits are hidden @ weight.T / temperature. They are float32 also for bfloat16 operands: rounded to bfloat16, a logit of
20 is off by up to 0.06 nats, more than the drift that a gate measures.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

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


def token_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """log softmax(logits)[ids]: the log-probability, in nats, of one token or K tokens per position; differentiable.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N] or [N, K], each from 0 to V - 1. Returns float32 (float64 for float64
    input) of the shape of `ids`. The backward pass computes the logits again, chunk by chunk.
    Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 1, 2)
    columns = ids if ids.dim() == 2 else ids[:, None]
    return _TokenLogprobs.apply(*operands(hidden, weight), columns, temperature, chunk).view(ids.shape)  # type: ignore[no-any-return]


def weighted_loss(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    token_weight: Tensor,
    loss_of: Callable[[slice, Tensor], Tensor],
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_t w_t l(log p(y_t)), for weights w_t that are known before the forward pass.

    The gradient is computed in the forward pass, while a chunk's logits are in memory. That takes three matrix
    products; `token_logprobs` takes four.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N]; token_weight: float [N], without gradient; loss_of(part, logp): the
    losses [C] of the tokens `part` from their log-probabilities [C], token by token. Returns the sum [], differentiable
    once in `hidden` and `weight`, then the losses and the log-probabilities, float32 (or float64) [N], without
    gradient. Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 1)
    return _WeightedLoss.apply(*operands(hidden, weight), ids, token_weight, loss_of, temperature, chunk)  # type: ignore[no-any-return]


@torch.no_grad()
def summary(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    top: int = 0,
    entropy: bool = False,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Summary:
    """Log-probabilities at K ids, the entropy and the `top` most probable tokens, from one chunk of logits at a time.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N, K], each from 0 to V - 1. Values at `ids` equal those of
    `token_logprobs`, bit for bit. Raises ValueError naming the argument.
    """
    _check_ids(hidden, ids, 2)
    if not 0 <= top <= len(weight):
        raise ValueError(f"top must be from 0 to the {len(weight)} tokens of the vocabulary, not {top}")
    hidden, weight = operands(hidden, weight)
    new = hidden.new_empty
    result = Summary(
        new(ids.shape, dtype=wide(hidden)),
        new(len(hidden), dtype=wide(hidden)) if entropy else None,
        new(len(hidden), top, dtype=torch.int64) if top else None,
        new(len(hidden), top, dtype=wide(hidden)) if top else None,
    )
    room = chunk_room(hidden, weight, chunk)
    for part in parts(len(hidden), chunk):
        _summarise(chunk_logits(hidden[part], weight, temperature, room), ids[part], part, result)
    return result


def support_logits(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """logits[ids] for K tokens per position, from those K rows of the head only; differentiable.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N, K]. Returns float32 (or float64) [N, K], not normalised.
    """
    return _SupportLogits.apply(*operands(hidden, weight), ids, temperature, chunk)  # type: ignore[no-any-return]


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
    def forward(ctx, hidden, weight, ids, temperature, chunk):
        logp = torch.empty(ids.shape, dtype=wide(hidden), device=hidden.device)
        room = chunk_room(hidden, weight, chunk)
        for part in parts(len(hidden), chunk):
            logits = chunk_logits(hidden[part], weight, temperature, room)
            logp[part] = log_softmax_(logits).gather(1, ids[part])
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        """d logp / d logits = onehot(id) - softmax, summed over a position's K ids; logits are computed again."""
        hidden, weight, ids = ctx.saved_tensors
        grad = grad / ctx.temperature
        room = chunk_room(hidden, weight, ctx.chunk)

        def grad_logits(part: slice) -> Tensor:
            softmax = softmax_(chunk_logits(hidden[part], weight, ctx.temperature, room))
            # scatter_add_, because an id that stands twice in a position counts twice
            return softmax.mul_(-grad[part].sum(1, keepdim=True)).scatter_add_(1, ids[part], grad[part])

        return *head_gradients(hidden, weight, ctx.chunk, grad_logits), None, None, None


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, token_weight, loss_of, temperature, chunk):
        losses, logp = (torch.empty(len(hidden), dtype=wide(hidden), device=hidden.device) for _ in range(2))
        room = chunk_room(hidden, weight, chunk)

        def grad_logits(part: slice) -> Tensor:
            log_softmax = log_softmax_(chunk_logits(hidden[part], weight, temperature, room))
            logp[part] = log_softmax.gather(1, ids[part, None])[:, 0]
            with torch.enable_grad():
                own = logp[part].detach().requires_grad_()
                found = loss_of(part, own)
            losses[part] = found.detach()
            slope = torch.autograd.grad(found, own, token_weight[part].to(found))[0][:, None] / temperature
            return log_softmax.exp_().mul_(-slope).scatter_add_(1, ids[part, None], slope)

        ctx.gradients = head_gradients(hidden, weight, chunk, grad_logits)
        ctx.mark_non_differentiable(losses, logp)
        return (token_weight * losses).sum(), losses, logp

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.gradients
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None, None, None, None


class _SupportLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, chunk):
        logits = torch.empty(ids.shape, dtype=wide(hidden), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):  # autocast would round operands and product
            for part in parts(len(hidden), chunk):
                rows = weight[ids[part]].to(logits.dtype)
                logits[part] = torch.bmm(rows, hidden[part, :, None].to(logits.dtype))[..., 0] / temperature
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logits

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=wide(weight))
        grad = (grad / ctx.temperature).to(weight.dtype)
        for part in parts(len(hidden), ctx.chunk):
            grad_hidden[part] = torch.bmm(grad[part, None, :], weight[ids[part]])[:, 0]
            outer = grad[part, :, None] * hidden[part, None, :]
            grad_weight.index_add_(0, ids[part].flatten(), outer.flatten(0, 1).to(grad_weight.dtype))
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def head_gradients(
    hidden: Tensor, weight: Tensor, chunk: int, grad_logits: Callable[[slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, H] and weight [V, H]; `grad_logits(part)` [C, V] is that of hidden[part] @ weight.T."""
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=wide(weight))
    for part in parts(len(hidden), chunk):
        grad = grad_logits(part).to(weight.dtype)
        torch.mm(grad, weight, out=grad_hidden[part])
        if grad_weight.dtype == weight.dtype:
            grad_weight.addmm_(grad.T, hidden[part])
        else:
            grad_weight += grad.T @ hidden[part]
    return grad_hidden, grad_weight.to(weight.dtype)


def operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and weight in the dtype of the matrix product.

    On a GPU: autocast's dtype where autocast is on, else the weight's. On a CPU: float32 (or float64), because a CPU
    has no product of bfloat16 with a float32 result.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    dtype = wide(weight) if device == "cpu" else dtype
    return hidden.to(dtype), weight.to(dtype)


def chunk_room(hidden: Tensor, weight: Tensor, chunk: int) -> Tensor:
    """Memory [C, V] that the logits of all chunks use in turn. On a CPU, new memory costs more than the softmax."""
    return torch.empty(min(chunk, len(hidden)), len(weight), dtype=wide(hidden), device=hidden.device)


def chunk_logits(hidden: Tensor, weight: Tensor, temperature: float, room: Tensor) -> Tensor:
    """Logits [C, V] in float32 (or float64), divided by the temperature. Overwrites `room` [at least C, V]."""
    logits = room[: len(hidden)]
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.dtype == torch.bfloat16:
            torch.mm(hidden, weight.T, out_dtype=torch.float32, out=logits)  # pyright: ignore[reportCallIssue]
        else:
            torch.mm(hidden, weight.T, out=logits)
    return logits if temperature == 1.0 else logits.div_(temperature)


def log_softmax_(logits: Tensor) -> Tensor:
    """In place, over the last dimension, without a second [C, V]."""
    return torch.log_softmax(logits, -1, out=logits)  # type: ignore[call-overload]


def softmax_(logits: Tensor) -> Tensor:
    """In place, over the last dimension."""
    return torch.softmax(logits, -1, out=logits)  # type: ignore[call-overload]


def parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _check_ids(hidden: Tensor, ids: Tensor, *dims: int) -> None:
    shapes = " or ".join({1: "[N]", 2: "[N, K]"}[dim] for dim in dims)
    if ids.dtype != torch.int64 or ids.dim() not in dims:
        raise ValueError(f"ids must be int64 {shapes}, not {ids.dtype} {list(ids.shape)}")
    if len(ids) != len(hidden):
        raise ValueError(f"ids has {len(ids)} positions but hidden has {len(hidden)}; give one row of ids per position")
