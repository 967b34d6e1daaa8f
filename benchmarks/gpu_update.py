"""One optimiser update by the package's learner on a GPU: float32 weights, products in bfloat16.

    python benchmarks/gpu_update.py [--repeats 5] [--quick --device cpu]

The student is of Qwen3-1.7B's sizes, with random weights; 8 responses of 1,024 tokens behind prompts of 64. "share" is
of the peak, and counts the operations that the model needs: forward and both gradients of the body, the head's three
products (LSM: one, for the gate). Recomputed ones are not counted. Memory includes the model. "estimate_gb" is what
`driftgate study --dry-run` expects of the same update. Writes benchmarks/results/gpu_update.json.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from gpu_bench import Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_sizes import RECIPES, batch_of, config_of, model_of
from training import learner_of, micro_batches, portions_of, update

from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.estimate.assumptions import Assumptions
from driftgate.estimate.memory import memory_of
from driftgate.estimate.shapes import Shape
from driftgate.estimate.workload import Workload
from driftgate.models.policy import Policy

HEAD_PRODUCTS = {"LSM": (1, 3), "sampled token": (3, 0)}
"""Products that an update needs of hidden states with the vocabulary, and with K rows of the head."""
COLUMNS = {"ms": ".1f", "least": ".1f", "most": ".1f", "tokens_per_s": ".0f", "share": ".3f", "forwards": "d"}
COLUMNS |= {"peak_gb": ".1f", "estimate_gb": ".1f"}


@dataclass(frozen=True)
class Case:
    """How an update is made."""

    objective: str
    recompute: bool
    """Gradient checkpointing."""
    budget: int
    """Most tokens of one forward."""
    prepared: bool = True
    """Deterministic operations, as the package sets torch."""

    def __str__(self) -> str:
        kept = "recomputed" if self.recompute else "activations kept"
        return f"{self.objective}, {kept}, {self.budget}" + ("" if self.prepared else ", any order")


def measure_update(bench: Bench, figures: Figures) -> None:
    budgets = bench.size.budgets
    cases = [Case(*settings) for settings in product(RECIPES, (True, False), budgets)]
    cases += [Case(objective, True, budgets[-1], prepared=False) for objective in RECIPES]
    for case in cases:
        with deterministic(case.prepared):
            attempt(figures, str(case), lambda case=case: row_of(bench, case))
    print_table(figures, COLUMNS, "update of the student")


def row_of(bench: Bench, case: Case) -> Figures:
    before, batch, size = bench.held(), batch_of(bench.size), bench.size
    config = update_config(bench, case)
    learner = make_learner(bench, config, size.student)
    portions = whole(config, batch)
    metrics: dict[str, float] = {}
    found = bench.costs(lambda: metrics.update(update(learner, portions, 1)), before)
    operations = 3 * size.body_operations(size.student)
    operations += size.head_operations(size.student, *HEAD_PRODUCTS[case.objective])
    parts = expected_gb(bench, config)
    return found | {
        "tokens_per_s": size.tokens / (found["ms"] * 1e-3),
        "share": bench.share(operations, found["ms"]),
        "forwards": len(micro_batches(batch, case.budget, bench.device)),
        "estimate_gb": sum(parts.values()),
        "estimated_parts_gb": parts,
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
    }


def update_config(bench: Bench, case: Case) -> TrainConfig:
    """The recipe with one response to each prompt."""
    size, recompute = bench.size, "true" if case.recompute else "false"
    overrides = [f"microbatch_tokens={case.budget}", f"device={bench.device.type}"]
    overrides += [f"prompts.per_step={size.sequences}", "rollout.samples=1", f"rollout.max_new_tokens={size.response}"]
    overrides += ["student.compute=bfloat16", f"student.gradient_checkpointing={recompute}"]
    return config_of(case.objective, overrides)


def make_learner(bench: Bench, config: TrainConfig, shape: Shape) -> Any:
    """As a run makes it."""
    policy = Policy(model_of(shape, torch.float32, bench.device), compute="bfloat16")
    if config.student.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable()  # type: ignore[operator]
    return learner_of(config, policy)


def whole(config: TrainConfig, batch: Experience) -> Any:
    """All of the batch. The gate is on blocks, so no token needs to be known as the end of a line."""
    return portions_of(config, {"student": batch}, torch.zeros(int(batch.ids.max()) + 1, dtype=torch.bool))


def expected_gb(bench: Bench, config: TrainConfig) -> dict[str, float]:
    """The package's estimate, by component, without teacher and CUDA context."""
    assumed = Assumptions(1.0, prompt_tokens=bench.size.prompt)
    memory = memory_of(Workload(config, bench.size.student, {"teacher": bench.size.teacher}, 0, 0, None, assumed))
    resident = {name: memory.resident[name] for name in ("student", "AdamW")}
    parts = resident | {f"{name}, update": count for name, count in memory.update.items()}
    return {name: count / 1e9 for name, count in parts.items()}


if __name__ == "__main__":
    run_program("update", __doc__ or "", measure_update)
