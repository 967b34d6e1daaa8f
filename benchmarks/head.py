"""The chunked head against logits -> log_softmax -> gather, side by side in one run: CPU-seconds and peak memory.

    python benchmarks/head.py [--tokens 4096] [--hidden 256] [--vocabulary 151936] [--repeats 2] [--quick]

Forward and backward of each way, the ways in turn. Peak memory is measured in a process of its own for each way, above
a process that only makes the inputs and a gradient of the head. For our ways it is also measured at 1,024 and at 16,384
tokens. Writes benchmarks/results/head.json.
"""

import time
from functools import partial

import measure
import torch
from head_ways import WAYS
from torch import Tensor

from driftgate.method.head import CHUNK

K = 32
TARGETS = {"sampled token, chunked": (1.35, 0.1), "LSM with gate, chunked": (0.55, 0.1)}
"""Most of the time and of the peak memory, as shares of the full logits'."""
TOKENS = (1024, 16_384)
"""Memory should be the same at both."""
COLUMNS = {"cpu_s": ".2f", "ratio": ".2f", "least": ".2f", "most": ".2f", "peak_mb": ".0f", "memory_ratio": ".3f"}
Shape = tuple[int, int, int]
"""Tokens, hidden size, vocabulary."""


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=None)
    arguments, began = parser.parse_args(), time.time()
    quick = arguments.quick
    tokens, vocabulary = (512, 20_000) if quick else (4096, 151_936)
    shape = (arguments.tokens or tokens, arguments.hidden, arguments.vocabulary or vocabulary)
    figures = timed(shape, arguments.repeats or (1 if quick else 2))
    by_tokens: dict[str, dict[int, float]] = {}
    if not quick:
        add_memory(figures, shape)
        by_tokens = memory_by_tokens(shape)
    measure.table(figures, COLUMNS, f"head, {shape[0]} tokens, H = {shape[1]}, V = {shape[2]}")
    if not quick:
        add_targets(figures)
    sizes = dict(zip(("tokens", "hidden", "vocabulary"), shape)) | {"support": K, "seed": 0}
    measure.write("head", began, quick, **sizes, figures=figures, peak_mb_by_tokens=by_tokens)


def inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, H], weight [V, H], ids int64 [N, K]."""
    tokens, size, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator).div_(size**0.5).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens, K), generator=generator)


def learn(name: str, hidden: Tensor, weight: Tensor, ids: Tensor) -> None:
    """Forward and backward."""
    hidden.grad = weight.grad = None
    WAYS[name].run(hidden, weight, ids, CHUNK).sum().backward()


def learn_once(name: str | None, shape: Shape) -> None:
    """For a process of its own. None: the inputs and their gradients, which every way needs."""
    hidden, weight, ids = inputs(shape)
    if name is None:
        (hidden.sum() + weight.sum() * 0).backward()
    else:
        learn(name, hidden, weight, ids)


def timed(shape: Shape, repeats: int) -> measure.Figures:
    tensors = inputs(shape)
    seconds = measure.rounds({name: partial(learn, name, *tensors) for name in WAYS}, repeats)
    return measure.against(seconds, {name: way.base for name, way in WAYS.items()})


def add_memory(figures: measure.Figures, shape: Shape) -> None:
    """`peak_mb` above the inputs, and its ratio to full logits."""
    base = measure.peak_mb(learn_once, None, shape)
    for name in WAYS:
        figures[name]["peak_mb"] = measure.peak_mb(learn_once, name, shape) - base
    for name, way in WAYS.items():
        figures[name]["memory_ratio"] = figures[name]["peak_mb"] / figures[way.base]["peak_mb"]


def memory_by_tokens(shape: Shape) -> dict[str, dict[int, float]]:
    """Peak memory above the inputs, by tokens, of the ways whose memory should not grow with them."""
    found: dict[str, dict[int, float]] = {name: {} for name in TARGETS}
    for tokens in TOKENS:
        base = measure.peak_mb(learn_once, None, (tokens, *shape[1:]))
        for name, row in found.items():
            row[tokens] = measure.peak_mb(learn_once, name, (tokens, *shape[1:])) - base
    for name, row in found.items():
        print(f"{name}: " + ", ".join(f"{peak:.0f} MB at {tokens:,} tokens" for tokens, peak in row.items()))
    return found


def add_targets(figures: measure.Figures) -> None:
    """Print and note which targets are reached."""
    for name, (most_time, most_memory) in TARGETS.items():
        figure = figures[name]
        reached = figure["ratio"] <= most_time and figure["memory_ratio"] <= most_memory
        figure |= {"target": [most_time, most_memory], "reached": reached}
        print(f"{name}: {most_time} of the time and {most_memory} of the memory {'reached' if reached else 'missed'}")


if __name__ == "__main__":
    main()
