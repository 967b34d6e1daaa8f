"""Scores of a rollout batch on a GPU: the teacher's log-probabilities and top K, the student's own log-probabilities.

    python benchmarks/gpu_scoring.py [--repeats 5] [--quick --device cpu]

Models of the sizes of Qwen3-1.7B and Qwen3-4B, with random weights; 8 responses of 1,024 tokens behind prompts of 64.
"share" is of the peak, and counts one forward and one product with the vocabulary.
Writes benchmarks/results/gpu_scoring.json.
"""

from collections.abc import Callable

import torch
from gpu_bench import Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_sizes import K, batch_of, model_of
from training import student_logp, teacher_scores

from driftgate.estimate.shapes import Shape
from driftgate.models.policy import Policy

COLUMNS = {"ms": ".1f", "least": ".1f", "most": ".1f", "tokens_per_s": ".0f", "share": ".3f", "peak_gb": ".1f"}


def measure_scoring(bench: Bench, figures: Figures) -> None:
    attempt(figures, "teacher, bfloat16, top K", lambda: teacher_row(bench))
    attempt(figures, "behaviour, float32 weights", lambda: behaviour_row(bench, torch.float32, "bfloat16"))
    attempt(figures, "behaviour, bfloat16 weights", lambda: behaviour_row(bench, torch.bfloat16, None))
    print_table(figures, COLUMNS, "scoring, one forward")


def teacher_row(bench: Bench) -> Figures:
    policy = Policy(model_of(bench.size.teacher, torch.bfloat16, bench.device))
    batch, budget = batch_of(bench.size), max(bench.size.budgets)
    return scored(bench, bench.size.teacher, lambda: teacher_scores(policy, batch, budget, K))


def behaviour_row(bench: Bench, dtype: torch.dtype, compute: str | None) -> Figures:
    policy = Policy(model_of(bench.size.student, dtype, bench.device), compute)
    batch, budget = batch_of(bench.size), max(bench.size.budgets)
    return scored(bench, bench.size.student, lambda: student_logp(policy, batch, budget))


def scored(bench: Bench, shape: Shape, way: Callable[[], object]) -> Figures:
    size = bench.size
    with deterministic(True):
        found = bench.costs(way, bench.held())
    operations = size.body_operations(shape) + size.head_operations(shape, 1)
    return found | {"share": bench.share(operations, found["ms"]), "tokens_per_s": size.tokens / (found["ms"] * 1e-3)}


if __name__ == "__main__":
    run_program("scoring", __doc__ or "", measure_scoring)
