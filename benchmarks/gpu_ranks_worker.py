"""A short run of a small model, by one process or by ranks.

    python benchmarks/gpu_ranks_worker.py FOLDER OUT DEVICE

Started by gpu_ranks.py, once for each rank. Rank 0 writes OUT: the outcome of each case.
"""

import sys
from pathlib import Path
from typing import Any

import random_models
import torch
from training import Run

from driftgate.config import TrainConfig
from driftgate.ranks import joined
from driftgate.recipe import load_recipe
from driftgate.world import World

CASES = {
    "float64": {"dtype": "float64", "compute": None},
    "float32 weights, bfloat16 products": {"dtype": "float32", "compute": "bfloat16"},
}
VOCABULARY = 500
# where a gradient is 0 but for rounding, AdamW makes a step of lr out of the rounding unless eps is above it
OPTIMISER = ["optimizer.lr=0.01", "optimizer.eps=1e-6"]
STEPS = 2
Outcome = dict[str, Any]
"""`weights`, whole; `responses`, token ids of the last step; `share` of the parameters that a rank holds."""


def main(folder: str, out: str, device: str) -> None:
    with joined() as world:
        found = {name: trained(config_of(name, Path(folder), device), Path(out).parent / name, world) for name in CASES}
        if world.rank == 0:
            torch.save(found, out)


def make_inputs(folder: Path) -> None:
    sizes = {"student": (2, 64), "teacher": (2, 128)}
    roles = {role: random_models.qwen3(VOCABULARY, *size, kv_heads=1, seed=0) for role, size in sizes.items()}
    random_models.save_models(folder, roles, VOCABULARY)  # type: ignore[arg-type]
    random_models.write_prompts(folder / "prompts.jsonl", [8 + n % 8 for n in range(16)], VOCABULARY)


def config_of(case: str, folder: Path, device: str) -> TrainConfig:
    """Sampled-token OPD with gates, two passes; 4 prompts x 2 responses of 24 tokens."""
    changes = random_models.overrides_of(folder, VOCABULARY, 4, 2, 24, CASES[case])
    return load_recipe("qwen3/sampled_token_block64", [*changes, *OPTIMISER, f"device={device}", "gate.size=8"])


def trained(config: TrainConfig, out: Path, world: World | None = None, shard: bool = False) -> Outcome:
    """Two steps and a checkpoint. shard: the models of a world of one rank, which are not sharded by themselves."""
    run = Run(config, out, world)
    if shard:
        assert world is not None
        run.shard(world)
    for _ in range(STEPS):
        run.step()
    run.save()
    run.finish()
    rollouts = max((out / "rollouts").iterdir()).read_text() if world is None or world.rank == 0 else ""
    weights = run.weights()
    whole = sum(value.nbytes for value in weights.values())
    return {"weights": weights, "responses": rollouts, "share": run.held_bytes()["parameters"] / whole}


if __name__ == "__main__":
    main(*sys.argv[1:])
