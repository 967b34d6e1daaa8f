"""The chunked head against logits -> log_softmax -> gather, side by side in one run: CPU-seconds and peak memory.

    python benchmarks/head.py [--tokens 4096] [--hidden 256] [--vocabulary 151936] [--repeats 2] [--quick]

Forward and backward of each way, the ways in turn; their peak memory in a process of its own each, above that of one
that only makes the inputs and a gradient of the head; of our ways also at 1,024 and at 16,384 tokens.
Writes benchmarks/results/head.json.
"""

import time
from collections.abc import Callable
from functools import partial

import measure
import torch
from torch import Tensor

from driftgate.method import head, objectives
from driftgate.method.vocabulary import vocabulary_divergence

K = 32


def full_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, ids[:, :1])[:, 0]


def chunked_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return head.token_logprobs(hidden, weight, ids[:, 0])


def fused_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    ones = torch.ones(len(ids))
    return head.weighted_loss(hidden, weight, ids[:, 0], ones, lambda part, logp: -logp)[0]


def torch_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """torch's own chunked cross-entropy, from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=head.CHUNK)
    how = {"reduction": "none", "options": options}
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids[:, 0], **how)


def full_lsm(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    logits = hidden @ weight.T
    logits.detach().log_softmax(-1).gather(1, ids[:, :1])  # the gate's log-probability
    return objectives.topk_reverse_kl(logits.gather(1, ids), torch.zeros(ids.shape))


def chunked_lsm(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    losses = objectives.topk_reverse_kl(head.support_logits(hidden, weight, ids), torch.zeros(ids.shape))
    with torch.no_grad():
        head.token_logprobs(hidden, weight, ids[:, 0])
    return losses


def chunked_lsm_ungated(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return objectives.topk_reverse_kl(head.support_logits(hidden, weight, ids), torch.zeros(ids.shape))


def full_divergence(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    log_p, log_q = ((states @ weight.T).log_softmax(-1) for states in (hidden, hidden.detach().flip(0)))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def chunked_divergence(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return vocabulary_divergence(hidden, weight, hidden.detach().flip(0), weight.detach(), "reverse_kl")


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sampled token, full logits": full_sampled,
    "sampled token, chunked": chunked_sampled,
    "sampled token, weights known before": fused_sampled,
    "sampled token, torch's chunked": torch_sampled,
    "LSM with gate, full logits": full_lsm,
    "LSM with gate, chunked": chunked_lsm,
    "LSM without gate, chunked": chunked_lsm_ungated,
    "KL over the vocabulary, full logits": full_divergence,
    "KL over the vocabulary, chunked": chunked_divergence,
}
TARGETS = {"sampled token, chunked": (1.35, 0.1), "LSM with gate, chunked": (0.55, 0.1)}
"""Most of the time and of the peak memory of full logits."""
TOKENS = (1024, 16_384)
"""Between which the memory is to stay flat."""
Shape = tuple[int, int, int]
"""Tokens, hidden size, vocabulary."""


def inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    tokens, size, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator).div_(size**0.5).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens, K), generator=generator)


def learn(name: str, hidden: Tensor, weight: Tensor, ids: Tensor) -> None:
    hidden.grad = weight.grad = None
    WAYS[name](hidden, weight, ids).sum().backward()


def once(name: str | None, shape: Shape) -> None:
    """In a fresh process, for its memory; None for what every way needs before it begins."""
    hidden, weight, ids = inputs(shape)
    if name is None:
        (hidden.sum() + weight.sum() * 0).backward()
    else:
        learn(name, hidden, weight, ids)


def bases(names: list[str]) -> dict[str, str]:
    """The full logits of each way's objective."""
    return {name: next(full for full in names if full.startswith(name.split()[0]) and "full" in full) for name in names}


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=None)
    arguments, began = parser.parse_args(), time.time()
    quick = arguments.quick
    shape = (
        arguments.tokens or (512 if quick else 4096),
        arguments.hidden,
        arguments.vocabulary or (20_000 if quick else 151_936),
    )
    ways = [name for name in WAYS if "torch's" not in name or hasattr(torch.nn, "LinearCrossEntropyOptions")]
    figures = timed(ways, shape, arguments.repeats or (1 if quick else 2))
    if not quick:
        add_memory(figures, ways, shape)
    flat = {} if quick else flatness(shape)
    columns = {"cpu_s": ".2f", "ratio": ".2f", "least": ".2f", "most": ".2f", "peak_mb": ".0f", "memory_ratio": ".3f"}
    measure.table(figures, columns, f"head, {shape[0]} tokens, H = {shape[1]}, V = {shape[2]}")
    if not quick:
        tell_targets(figures)
    sizes = dict(zip(("tokens", "hidden", "vocabulary"), shape)) | {"support": K, "seed": 0}
    measure.write("head", began, quick, **sizes, figures=figures, peak_mb_by_tokens=flat)


def timed(ways: list[str], shape: Shape, repeats: int) -> measure.Figures:
    tensors = inputs(shape)
    return measure.against(
        measure.rounds({name: partial(learn, name, *tensors) for name in ways}, repeats), bases(ways)
    )


def add_memory(figures: measure.Figures, ways: list[str], shape: Shape) -> None:
    """`peak_mb` above the inputs, and its ratio to full logits."""
    base = measure.peak_mb(once, None, shape)
    for name in ways:
        figures[name]["peak_mb"] = measure.peak_mb(once, name, shape) - base
    for name, full in bases(ways).items():
        figures[name]["memory_ratio"] = figures[name]["peak_mb"] / figures[full]["peak_mb"]


def flatness(shape: Shape) -> dict[str, dict[int, float]]:
    """Peak memory above the inputs, by tokens, of the ways whose memory shall not grow with them."""
    found: dict[str, dict[int, float]] = {name: {} for name in TARGETS}
    for tokens in TOKENS:
        base = measure.peak_mb(once, None, (tokens, *shape[1:]))
        for name, row in found.items():
            row[tokens] = measure.peak_mb(once, name, (tokens, *shape[1:])) - base
    for name, row in found.items():
        print(f"{name}: " + ", ".join(f"{peak:.0f} MB at {tokens:,} tokens" for tokens, peak in row.items()))
    return found


def tell_targets(figures: measure.Figures) -> None:
    for name, (time_, memory) in TARGETS.items():
        figure = figures[name]
        reached = figure["ratio"] <= time_ and figure["memory_ratio"] <= memory
        figure |= {"target": [time_, memory], "reached": reached}
        print(f"{name}: {time_} of the time and {memory} of the memory {'reached' if reached else 'missed'}")


if __name__ == "__main__":
    main()
