"""An output head: from hidden states to logits as the model makes them, and back to the gradients of its tensors.

Shapes: N tokens, H hidden size, V vocabulary, C tokens per chunk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .stop_group import merge_, spread_

Gradients = tuple[Tensor, Tensor, Tensor | None]
"""Of hidden states [N, H], weight [V, H] and bias [V], or None for it."""


@dataclass(frozen=True, eq=False)
class Head:
    """The logits of hidden states [N, H] are cap tanh(z / cap) with z = scale (hidden @ weight.T + bias).

    A plain head is its weight alone; every function that takes a `Head` takes the weight of a plain one too.
    """

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    """What the model multiplies its logits by, before the cap (Cohere, Granite, Falcon-H1)."""
    cap: float | None = None
    """What no logit exceeds in absolute value (Gemma); None for no cap."""
    group: tuple[int, ...] = ()
    """Ids that are one class in all probabilities, see `stop_group`; the first stands for all."""

    @classmethod
    def of(cls, head: "Tensor | Head") -> "Head":
        """The head itself, or the plain one with this weight."""
        return head if isinstance(head, Head) else cls(head)

    @property
    def is_plain(self) -> bool:
        """Whether the logits are hidden @ weight.T."""
        return self.bias is None and self.scale == 1 and self.cap is None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Head":
        """The head with its tensors changed."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def curve(self, temperature: float) -> "Curve":
        """What the head does with the products hidden @ weight.T."""
        return Curve(self.scale, self.cap, temperature, self.group)

    @property
    def classes(self) -> int:
        """Tokens that a probability may be of."""
        return len(self.weight) - max(len(self.group) - 1, 0)

    def finish_(self, products: Tensor, temperature: float = 1.0) -> Tensor:
        """In place: logits [N, V], divided by the temperature, from hidden @ weight.T. Without gradient. They are of
        single ids: the group is not merged."""
        return self.curve(temperature).apply_(products, self.bias)


class Curve(NamedTuple):
    """From products hidden @ weight.T to logits, and the slope on the way back.

    The temperature comes last: a sampler divides by it what the model says.
    """

    scale: float
    cap: float | None
    temperature: float
    group: tuple[int, ...] = ()
    """Ids whose classes `Chunked` merges."""

    def apply_(self, products: Tensor, bias: Tensor | None, slope: Tensor | None = None) -> Tensor:
        """In place. bias: [V], or the shape of the products. slope, where there is a cap: memory of the products'
        shape for the derivative of the cap, 1 - tanh^2."""
        if bias is not None:
            products.add_(bias)
        if self.scale != 1:
            products.mul_(self.scale)
        if self.cap is not None:
            products.div_(self.cap).tanh_()
            if slope is not None:
                torch.mul(products, products, out=slope).neg_().add_(1)
            products.mul_(self.cap)
        return products if self.temperature == 1.0 else products.div_(self.temperature)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of the products, but for the slope of a cap; `grad` is a factor of that of the logits."""
        grad = grad / self.temperature
        return grad if self.scale == 1 else grad * self.scale


class Chunked:
    """The logits of a head for a chunk of tokens at a time, in memory that all chunks use in turn. On a CPU, new memory
    costs more than the softmax."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, curve: Curve, chunk: int, back: bool = False
    ):
        """hidden, weight and bias: as `operands` gives them. back: whether `gradients` will be called."""
        self.hidden, self.weight, self.bias, self.curve, self.chunk = hidden, weight, bias, curve, chunk
        self.room = torch.empty(min(chunk, len(hidden)), len(weight), dtype=wide(hidden), device=hidden.device)
        self.slope = torch.empty_like(self.room) if back and curve.cap is not None else None
        self.group = torch.tensor(curve.group, device=hidden.device) if curve.group else None

    def logits(self, part: slice) -> Tensor:
        """Logits [C, V] in float32 (or float64), divided by the temperature. They overwrite those of the last call."""
        hidden = self.hidden[part]
        logits = self.room[: len(hidden)]
        with torch.autocast(hidden.device.type, enabled=False):
            if hidden.dtype == torch.bfloat16:
                torch.mm(hidden, self.weight.T, out_dtype=torch.float32, out=logits)  # pyright: ignore[reportCallIssue]
            else:
                torch.mm(hidden, self.weight.T, out=logits)
        self.curve.apply_(logits, self.bias, None if self.slope is None else self.slope[: len(hidden)])
        if self.group is not None:
            self.shares = merge_(logits, self.group)
        return logits

    def gradients(self, grad_logits: Callable[[slice], Tensor], wants_bias: bool) -> Gradients:
        """grad_logits(part): the gradient [C, V] of the logits of a chunk, passed through `Curve.back`. It has called
        `logits(part)`. Its memory is overwritten."""
        weight, hidden = self.weight, self.hidden
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=wide(weight))
        grad_bias = hidden.new_zeros(len(weight), dtype=wide(hidden)) if wants_bias else None
        for part in parts(len(hidden), self.chunk):
            grad = grad_logits(part)
            if self.group is not None:
                spread_(grad, self.group, self.shares)
            if self.slope is not None:
                grad.mul_(self.slope[: len(grad)])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight.dtype)
            torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight.dtype == weight.dtype:
                grad_weight.addmm_(grad.T, hidden[part])
            else:
                grad_weight += grad.T @ hidden[part]
        bias = None if grad_bias is None or self.bias is None else grad_bias.to(self.bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), bias


def operands(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states and weight in the dtype of the matrix product, and the bias as it is.

    On a GPU: autocast's dtype where autocast is on, else the weight's. On a CPU: float32 (or float64), because a CPU
    has no product of bfloat16 with a float32 result. The bias is added to logits in float32.
    """
    device, weight = hidden.device.type, head.weight
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    dtype = wide(weight) if device == "cpu" else dtype
    return hidden.to(dtype), weight.to(dtype), head.bias


def parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
