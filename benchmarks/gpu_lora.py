"""An optimiser update of LoRA adapters beside one of all weights, by the package's learner on a GPU.

    python benchmarks/gpu_lora.py [--repeats 5] [--quick --device cpu]

The student is of Qwen3-1.7B's sizes, with random weights, loaded as a run loads it; 8 responses of 1,024 tokens behind
prompts of 64, activations recomputed, products in bfloat16. Adapters of rank 16 on all linear layers. The teacher has
two layers, so that memory is the student's. "trained" is the number of trained weights.
Writes benchmarks/results/gpu_lora.json.
"""

import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import random_models
import torch
from gpu_bench import Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_sizes import batch_of, config_of, model_of
from training import Run

from driftgate.config import TrainConfig
from driftgate.config.models import StudentSettings

LORA = "student.lora={rank: 16, alpha: 32, targets: all-linear}"
WAYS = {
    "all weights": [],
    "LoRA": [LORA],
    "LoRA, base in bfloat16": [LORA, "student.dtype=bfloat16", "student.compute=null"],
}
COLUMNS = {"ms": ".1f", "least": ".1f", "most": ".1f", "peak_gb": ".1f", "trained": ",d", "state_gb": ".2f"}


def measure_lora(bench: Bench, figures: Figures) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(bench, folder)
        for way, changes in WAYS.items():
            if changes and (missing := missing_for_lora()):
                print(f"{way}: left out, {missing}", flush=True)
                figures[way] = {"skipped": missing}
                continue
            out = folder / way
            attempt(
                figures, way, lambda changes=changes, out=out: row_of(bench, run_config(bench, folder, changes), out)
            )
    print_table(figures, COLUMNS, "update of the student")


def missing_for_lora() -> str:
    """What is not there; empty where nothing is missing."""
    if "lora" not in StudentSettings.model_fields:
        return "this version of driftgate has no setting student.lora"
    return "" if find_spec("peft") else "peft is not installed; pip install 'driftgate[lora]'"


def make_inputs(bench: Bench, folder: Path) -> None:
    """The student and a shallow teacher in bfloat16, their tokenizer and prompts."""
    shapes = {"student": bench.size.student, "teacher": replace(bench.size.student, layers=2)}
    for role, shape in shapes.items():
        model = model_of(shape, torch.bfloat16, bench.device)
        random_models.save_models(folder, {role: model}, bench.size.vocabulary)
    random_models.write_prompts(folder / "prompts.jsonl", [bench.size.prompt] * 8, bench.size.vocabulary)


def run_config(bench: Bench, folder: Path, changes: list[str]) -> TrainConfig:
    size = bench.size
    shared = random_models.overrides_of(
        folder, size.vocabulary, size.sequences, 1, size.response, {"compute": "bfloat16"}
    )
    own = [f"device={bench.device.type}", f"microbatch_tokens={size.budgets[0]}", "student.gradient_checkpointing=true"]
    return config_of("LSM", [*shared, *own, *changes])


def row_of(bench: Bench, config: TrainConfig, out: Path) -> Figures:
    before = bench.held()
    with deterministic(True):
        run, metrics = Run(config, out), {}
        portions = run.portions({"student": batch_of(bench.size)})
        found = bench.costs(lambda: metrics.update(run.update(portions, 1)), before)
    held = run.held_bytes()
    trained = sum(parameter.numel() for parameter in run.made.learner.parameters)
    return found | {
        "trained": trained,
        "state_gb": (held["gradients"] + held["optimiser state"]) / 1e9,
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
    }


if __name__ == "__main__":
    run_program("lora", __doc__ or "", measure_lora)
