"""Forward and backward of each objective's head on a GPU: the package's chunks against full logits.

    python benchmarks/gpu_head.py [--repeats 5] [--quick --device cpu]

8 x 1,024 response tokens, Qwen3-1.7B's hidden size and vocabulary, operands in bfloat16. "share" is of the peak, and
counts the products that the way takes, recomputed ones too. Writes benchmarks/results/gpu_head.json.
"""

import torch
from gpu_bench import PREPARED, Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_sizes import K, random_ids
from head_ways import WAYS, Way
from torch import Tensor

COLUMNS = {"ms": ".2f", "least": ".2f", "most": ".2f", "ratio": ".2f", "share": ".2f", "peak_gb": ".2f"}
COLUMNS |= {"memory_ratio": ".3f"}
Operands = tuple[Tensor, Tensor, Tensor]
"""hidden [N, H] and weight [V, H] in bfloat16, ids int64 [N, K]."""


def measure_head(bench: Bench, figures: Figures) -> None:
    for mode, on in PREPARED.items():
        figures[mode] = {}
        add_ways(bench, figures[mode], on)
        print_table(figures[mode], COLUMNS, f"head, {bench.size.tokens} tokens, {mode}")


def add_ways(bench: Bench, figures: Figures, on: bool) -> None:
    """Every way at every size of chunk. on: deterministic operations."""
    operands, before = operands_of(bench), bench.held()
    for name, way in WAYS.items():
        for chunk in bench.size.chunks if way.chunked else (0,):
            row = f"{name}, {chunk}" if chunk else name
            with deterministic(on):
                attempt(figures, row, lambda way=way, chunk=chunk: row_of(bench, way, chunk, operands, before))
            operands[0].grad = operands[1].grad = None
            add_ratio(figures, row, way.base)


def operands_of(bench: Bench) -> Operands:
    size, width = bench.size, bench.size.student.hidden
    torch.manual_seed(0)
    hidden = torch.randn(size.tokens, width, device=bench.device).bfloat16().requires_grad_()
    weight = torch.randn(size.vocabulary, width, device=bench.device).div_(width**0.5).bfloat16().requires_grad_()
    return hidden, weight, random_ids(size.vocabulary, size.tokens, K).to(bench.device)


def row_of(bench: Bench, way: Way, chunk: int, operands: Operands, before: int) -> Figures:
    hidden, weight, ids = operands

    def learn() -> None:
        hidden.grad = weight.grad = None
        way.run(hidden, weight, ids, chunk).sum().backward()

    found = bench.costs(learn, before)
    if way.products is not None:
        operations = bench.size.head_operations(bench.size.student, way.products, way.gathers)
        found["share"] = bench.share(operations, found["ms"])
    return found


def add_ratio(figures: Figures, name: str, base: str) -> None:
    """Ratios of time and memory to those of `base`, where both are there."""
    own, other = figures[name], figures.get(base, {})
    for key, ratio in {"ms": "ratio", "peak_gb": "memory_ratio"}.items():
        if key in own and other.get(key):
            own[ratio] = own[key] / other[key]


if __name__ == "__main__":
    run_program("head", __doc__ or "", measure_head)
