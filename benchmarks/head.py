"""The chunked head against logits -> log_softmax -> gather, side by side in one run: CPU-seconds and peak memory.

    python benchmarks/head.py [--tokens 2048] [--hidden 256] [--vocabulary 151936] [--repeats 3]

Each way runs in a process of its own (so that its peak memory is its own), forward and backward, and is compared by
its ratio to full logits. Writes benchmarks/results/head.json.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from driftgate.method import head, objectives

K = 32


def full_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, ids[:, :1])[:, 0]


def chunked_sampled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return head.token_logprobs(hidden, weight, ids[:, 0])


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


def nothing(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """What every process needs before it begins: inputs and the head's gradient."""
    return hidden.sum() + weight.sum() * 0


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "nothing": nothing,
    "sampled token, full logits": full_sampled,
    "sampled token, chunked": chunked_sampled,
    "sampled token, torch's chunked": torch_sampled,
    "LSM with gate, full logits": full_lsm,
    "LSM with gate, chunked": chunked_lsm,
    "LSM without gate, chunked": chunked_lsm_ungated,
}


def measure(name: str, shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """CPU-seconds (median, after one warm-up) and peak memory in MB of one way; run in a fresh process."""
    torch.set_num_threads(1)
    tokens, size, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator).div_(size**0.5).requires_grad_()
    ids = torch.randint(vocabulary, (tokens, K), generator=generator)
    seconds = []
    for _ in range(repeats + 1):
        hidden.grad = weight.grad = None
        began = time.process_time()
        WAYS[name](hidden, weight, ids).sum().backward()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": statistics.median(seconds[1:]), "spread_s": max(seconds[1:]) - min(seconds[1:]), "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shape = (arguments.tokens, arguments.hidden, arguments.vocabulary)
    began = time.time()
    figures = {}
    ways = [name for name in WAYS if "torch's" not in name or hasattr(torch.nn, "LinearCrossEntropyOptions")]
    context = multiprocessing.get_context("spawn")
    for name in ways:
        with context.Pool(1) as pool:
            figures[name] = pool.apply(measure, (name, shape, arguments.repeats))
    base = figures.pop("nothing")["peak_mb"]
    print(f"{'way':32}{'CPU-s':>9}{'spread':>9}{'time ratio':>12}{'peak MB':>10}{'memory ratio':>14}")
    for name, figure in figures.items():
        full = figures["sampled token, full logits" if name.startswith("sampled") else "LSM with gate, full logits"]
        figure["time_ratio"] = figure["cpu_s"] / full["cpu_s"]
        figure["memory_ratio"] = (figure["peak_mb"] - base) / (full["peak_mb"] - base)
        print(
            f"{name:32}{figure['cpu_s']:9.2f}{figure['spread_s']:9.2f}{figure['time_ratio']:12.2f}"
            f"{figure['peak_mb'] - base:10.0f}{figure['memory_ratio']:14.2f}"
        )
    result = {
        "command": " ".join(["python", "benchmarks/head.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": f"{platform.machine()}, 1 thread",
        "tokens": shape[0],
        "hidden": shape[1],
        "vocabulary": shape[2],
        "support": K,
        "seed": 0,
        "seconds": round(time.time() - began),
        "base_mb": base,
        "figures": figures,
    }
    out = Path(__file__).parent / "results" / "head.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
