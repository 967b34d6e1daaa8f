"""Whole steps of the embedded pair and of a model with a wide vocabulary: cost along passes, and the gate's share."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measure
import random_models
import torch
from clock import clocked, clocked_places
from growth import growth_of, print_growth
from scaling_shares import Record, gate_costs, passes_cost, spread_of, step_figures, ungated_figures
from scaling_sizes import Sizes
from training import GATE_PARTS, PHASES, Run

from driftgate.config import TrainConfig
from driftgate.data.tasks import training_problems
from driftgate.recipe import load_recipe

UNGATED = ("gate.spans=none", "log_drift=false")
"""Without a gate, and without the drift metric, which would need the gate's log-probabilities too."""
SHARPNESS = 20.0
"""Scale of the random model's logits. It is then as sure of the next token as a trained model. Else sampling would sort
the whole vocabulary for a nucleus."""


def step_costs(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """The passes, the block sizes within an update, and the gate's share of a step, on both models."""
    with tempfile.TemporaryDirectory() as folder:
        found = embedded_costs(Path(folder), sizes, repeats)
        found["gate_shares"]["wide model"] = wide_costs(Path(folder) / "wide", sizes, repeats)
    columns = {"of_step": ".3%", "of_step_least": ".3%", "of_step_most": ".3%", "of_update": ".3%"}
    for name, each in found["gate_shares"].items():
        measure.table(each["shares"], columns, name)
    return found


def embedded_costs(folder: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    changes = [*sizes.recipe, f"prompts.path={problem_file(folder, sizes.problems)}"]
    records = records_of(Run(config_of(*changes, f"passes={sizes.passes[-1]}"), folder / "gated"), repeats)
    found: dict[str, Any] = {"passes": passes_growth(records, sizes)}
    print_growth(found["passes"])
    found["blocks_in_update"] = blocks_in_update(folder, sizes, changes, repeats)
    ungated = Run(config_of(*changes, f"passes={sizes.passes[1]}", *UNGATED), folder / "ungated")
    shares = step_figures(records, sizes.passes[1]) | ungated_figures(records_of(ungated, repeats))
    return found | {"gate_shares": {"embedded pair": shares}}


def wide_costs(folder: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """A student and a teacher of random weights with a real vocabulary."""
    changes = [*wide_inputs(folder, sizes), f"passes={sizes.passes[1]}"]
    records = records_of(Run(config_of(*changes), folder / "gated"), repeats)
    ungated = records_of(Run(config_of(*changes, *UNGATED), folder / "ungated"), repeats)
    return step_figures(records, sizes.passes[1]) | ungated_figures(ungated)


def wide_inputs(folder: Path, sizes: Sizes) -> list[str]:
    """Models and prompts in `folder`, and the changes to the recipe that use them."""
    vocabulary, heads = sizes.wide_vocabulary, max(sizes.width // 64, 1)
    roles: dict[str, Any] = {}
    for seed, role in enumerate(("student", "teacher")):
        roles[role] = random_models.qwen3(vocabulary, sizes.layers, sizes.width, heads, seed)
        torch.nn.init.constant_(roles[role].model.norm.weight, SHARPNESS)
    random_models.save_models(folder, roles, vocabulary)
    random_models.write_prompts(folder / "prompts.jsonl", [sizes.wide_prompt] * sizes.wide_responses, vocabulary)
    shared = random_models.overrides_of(folder, vocabulary, sizes.wide_responses, 1, sizes.wide_response)
    return [*shared, "rollout.top_p=0.9", f"objective.k={min(32, vocabulary)}", "optimizer.lr=1e-5"]


def config_of(*changes: str) -> TrainConfig:
    return load_recipe("sandbox/lsm_block64", ["threads=1", "diagnostics.every=0", "optimizer.warmup=0", *changes])


def problem_file(folder: Path, count: int) -> Path:
    """A few of the embedded problems. Making and encoding all of them takes seconds."""
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(asdict(problem)) + "\n" for problem in training_problems(count)))
    return path


def records_of(run: Run, repeats: int) -> list[Record]:
    """CPU-seconds of the parts of each step, after one to warm up."""
    records = []
    for _ in range(repeats + 1):
        with clocked_places(PHASES | GATE_PARTS) as seconds:
            seconds["step"] = []
            with clocked(seconds["step"]):
                run.step()
        records.append(seconds)
    return records[1:]


def passes_growth(records: Sequence[Record], sizes: Sizes) -> dict[str, Any]:
    """CPU-seconds of a step and of each of its optimiser updates, along the passes. Steps of fewer passes are those of
    the most passes without the last ones, which come after all else."""
    costs = {count: [passes_cost(record, count) for record in records] for count in sizes.passes}
    each = {count: [cost / count for cost in costs[count]] for count in sizes.passes}
    return {"cpu_s": {"a rollout batch": growth_of(costs), "an optimiser update": growth_of(each)}}


def blocks_in_update(folder: Path, sizes: Sizes, changes: Sequence[str], repeats: int) -> dict[str, Any]:
    """The gate's arithmetic within updates of the embedded pair, by block size, as a share of the update."""
    found = {}
    for size in sizes.blocks:
        gate = "gate.spans=sequence" if size is None else f"gate.size={size}"
        run = Run(config_of(*changes, gate), folder / f"block {size}")
        found[str(size or "whole")] = spread_of(block_shares(run, repeats), "of_update", "")
    return found


def block_shares(run: Run, repeats: int) -> list[float]:
    """Of each update after the first, spans included."""
    streams, shares = run.collect(), []
    for number in range(repeats + 1):
        with clocked_places(GATE_PARTS) as seconds:
            given, seconds["update"] = run.portions(streams), []
            with clocked(seconds["update"]):
                run.update(given, number)
        once, each = gate_costs(seconds)
        shares.append((once + each) / seconds["update"][0])
    return shares[1:]
