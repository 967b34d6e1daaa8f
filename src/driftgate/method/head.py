"""Hidden states to log-probabilities without a [tokens x vocabulary] tensor, forward or backward.

Shapes: N tokens, H hidden size, V vocabulary, K support, C tokens a chunk (memory is C x V, flat in N).
Logits are hidden @ weight.T / temperature, in float32 also for bfloat16 operands: rounded to bfloat16, a logit of 20 is
off by up to 0.06 nats, more than the drift that a gate is to see.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 256


def token_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """log softmax(logits)[ids]: the log-probability, in nats, of one token per position; differentiable.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N]. Returns float32 (float64 for float64 input) [N].
    Keeps logsumexp [N] and recomputes the logits of a chunk in the backward pass.
    """
    return _TokenLogprobs.apply(*_operands(hidden, weight), ids, temperature, chunk)  # type: ignore[no-any-return]


def support_logits(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """logits[ids] for K tokens per position, from those K rows of the head alone; differentiable.

    hidden: [N, H]; weight: [V, H]; ids: int64 [N, K]. Returns float32 (or float64) [N, K], not normalised.
    """
    return _SupportLogits.apply(*_operands(hidden, weight), ids, temperature, chunk)  # type: ignore[no-any-return]


@torch.no_grad()
def top_k(
    hidden: Tensor, weight: Tensor, k: int, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The k most probable tokens per position, most probable first: ids int64 [N, k], logits float32 [N, k]."""
    hidden, weight = _operands(hidden, weight)
    ids = torch.empty(len(hidden), k, dtype=torch.int64, device=hidden.device)
    logits = torch.empty(len(hidden), k, dtype=_wide(hidden), device=hidden.device)
    for part in _parts(len(hidden), chunk):
        logits[part], ids[part] = _logits(hidden[part], weight, temperature).topk(k, dim=-1)
    return ids, logits


@torch.no_grad()
def reverse_kl(
    hidden: Tensor,
    weight: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """KL(p || q) over the whole vocabulary, per position, in nats; for evaluation, without gradient.

    hidden, weight: [N, H], [V, H] of p; hidden_q, weight_q: [N, H'], [V, H'] of q. Returns [N].
    """
    hidden, weight = _operands(hidden, weight)
    hidden_q, weight_q = _operands(hidden_q, weight_q)
    divergence = torch.empty(len(hidden), dtype=_wide(hidden), device=hidden.device)
    for part in _parts(len(hidden), chunk):
        log_p = _logits(hidden[part], weight, temperature).log_softmax(-1)
        log_q = _logits(hidden_q[part], weight_q, temperature).log_softmax(-1)
        divergence[part] = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, chunk):
        logp = torch.empty(len(hidden), dtype=_wide(hidden), device=hidden.device)
        logsumexp = torch.empty_like(logp)
        for part in _parts(len(hidden), chunk):
            logits = _logits(hidden[part], weight, temperature)
            logsumexp[part] = logits.logsumexp(-1)
            logp[part] = logits.gather(1, ids[part, None])[:, 0] - logsumexp[part]
        ctx.save_for_backward(hidden, weight, ids, logsumexp)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        """d logp / d logits = onehot(id) - softmax, recomputed chunk by chunk."""
        hidden, weight, ids, logsumexp = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight))
        grad = grad / ctx.temperature
        for part in _parts(len(hidden), ctx.chunk):
            logits = _logits(hidden[part], weight, ctx.temperature)
            grad_logits = logits.sub_(logsumexp[part, None]).exp_().mul_(-grad[part, None])
            grad_logits.scatter_add_(1, ids[part, None], grad[part, None])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            grad_weight += grad_logits.T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


class _SupportLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, chunk):
        logits = torch.empty(ids.shape, dtype=_wide(hidden), device=hidden.device)
        for part in _parts(len(hidden), chunk):
            rows = weight[ids[part]].to(logits.dtype)
            logits[part] = torch.bmm(rows, hidden[part, :, None].to(logits.dtype))[..., 0] / temperature
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logits

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight))
        grad = (grad / ctx.temperature).to(weight.dtype)
        for part in _parts(len(hidden), ctx.chunk):
            grad_hidden[part] = torch.bmm(grad[part, None, :], weight[ids[part]])[:, 0]
            outer = grad[part, :, None] * hidden[part, None, :]
            grad_weight.index_add_(0, ids[part].flatten(), outer.flatten(0, 1).to(grad_weight.dtype))
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that the product takes: on a GPU autocast's where it is on, else the weight's; on a CPU, which
    has no product of bfloat16 with a float32 result, float32 (or float64)."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    dtype = _wide(weight) if device == "cpu" else dtype
    return hidden.to(dtype), weight.to(dtype)


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[C, V] in float32 (or float64), at the temperature."""
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.dtype == torch.bfloat16:
            logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        else:
            logits = hidden @ weight.T
    return logits if temperature == 1.0 else logits.div_(temperature)


def _parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
