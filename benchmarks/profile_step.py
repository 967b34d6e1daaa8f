"""Where the time of one training step goes, and how far each phase is above its floor.

    python benchmarks/profile_step.py [--quick]

A step of the embedded pair (recipe sandbox/lsm_block64: 16 prompts x 2 responses, two passes, float32), and one of the
135M shape (SmolLM2's, random weights, student and teacher alike, bfloat16 products: 4 prompts x 4 responses of 128
tokens, recipe qwen3/lsm_block64).

A phase has two lower bounds: its products at the rate of a large matrix product, and its reading (weights and key-value
cache, once a decoding step) at the rate of a large tensor. Both rates are measured in the same run. The larger bound is
the floor.
Writes benchmarks/results/profile.json.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import random_models
import torch
from clock import clocked, clocked_places, wrapped
from torch.profiler import ProfilerActivity, profile
from training import PHASES, Run
from transformers import LlamaConfig, LlamaForCausalLM

from driftgate.config import TrainConfig
from driftgate.estimate.precision import product_width
from driftgate.estimate.shapes import shape_of
from driftgate.recipe import load_recipe

TOP = 8
"""Operations shown of a phase."""
SMOL: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}


@dataclass
class Rates:
    """What this processor does on one thread."""

    flops: float
    """Floating-point operations a second of a large product."""
    bytes: float
    """Read a second from a large tensor."""


def rates(dtype: torch.dtype) -> Rates:
    """Measured with operands of `dtype`; the tensor that is read is float32."""
    size = 1536
    a, b, big = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype), torch.zeros(64_000_000)
    product = min(measure.rounds({"mm": lambda: a @ b}, 5)["mm"])
    read = min(measure.rounds({"read": lambda: big.sum()}, 5)["read"])
    return Rates(2 * size**3 / product, 4 * big.numel() / read)


def seconds_of(run: Run, steps: int) -> dict[str, float]:
    """Median CPU-seconds of each phase over steps after the first; `all` for the whole step."""
    found: list[dict[str, float]] = []
    for _ in range(steps + 1):
        whole: list[float] = []
        with clocked_places(PHASES) as seconds, clocked(whole):
            run.step()
        found.append({name: sum(each) for name, each in seconds.items()} | {"all": whole[0]})
    return {name: statistics.median(one[name] for one in found[1:]) for name in found[0]}


def operations_of(run: Run) -> dict[str, list[tuple[str, float, int]]]:
    """For each phase of one step, its operations by their own CPU-seconds, and how often they were called."""
    found: dict[str, dict[str, list[float]]] = {}

    def watched(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with profile(activities=[ProfilerActivity.CPU]) as watch:
                result = function(*arguments)
            for row in watch.key_averages():
                entry = found.setdefault(phase, {}).setdefault(row.key, [0.0, 0])
                entry[0], entry[1] = entry[0] + row.self_cpu_time_total / 1e6, entry[1] + row.count
            return result

        return call

    with wrapped(PHASES, watched):
        run.step()
    return {
        phase: [(name, *own) for name, own in sorted(rows.items(), key=lambda r: -r[1][0])[:TOP]]  # type: ignore[misc]
        for phase, rows in found.items()
    }


def work_of(run: Run) -> dict[str, float]:
    """Sizes of the last rollout. `positions`: prompts too; `looked_at`: pairs of a token and a position before it."""
    lengths, prompt = run.last_lengths(), statistics.mean(len(prompt.ids) for prompt in run.prompts)
    return {
        "tokens": sum(lengths),
        "steps": max(lengths),
        "positions": sum(lengths) + prompt * len(lengths),
        "looked_at": sum(n * prompt + n * n / 2 for n in lengths),
    }


def floors(run: Run, speed: Rates) -> dict[str, float]:
    """Least seconds of each phase, by its products and by what it must read. Attention's own products are left out."""
    done, settings = work_of(run), run.config.student
    student, teacher = (sum(p.numel() for p in policy.model.parameters()) for policy in (run.student, run.teacher))
    width = product_width(settings)
    read = done["steps"] * student * width + done["looked_at"] * shape_of(settings.path, "student").kv_bytes(width)
    return {
        "rollout": max(2 * student * done["tokens"] / speed.flops, read / speed.bytes),
        "behaviour": 0.0,
        "teacher": 2 * teacher * done["positions"] / speed.flops,
        "update": run.config.passes * 6 * student * done["positions"] / speed.flops,
    }


def smol(folder: Path, quick: bool) -> TrainConfig:
    """The 135M shape with random weights, prompts of 60 tokens, and no end to a response but the limit."""
    vocabulary = save_smol(folder, quick)
    model: dict[str, object] = {"compute": "bfloat16"}
    changes = random_models.overrides_of(folder, vocabulary, 4, 4, 16 if quick else 128, model)
    return load_recipe("qwen3/lsm_block64", changes)


def save_smol(folder: Path, quick: bool) -> int:
    """Student and teacher of the 135M shape, and 30 prompts of 60 tokens, in a folder. Returns the vocabulary."""
    small = SMOL | ({"num_hidden_layers": 2, "vocab_size": 2048} if quick else {})
    vocabulary, roles = small["vocab_size"], {}
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        config = LlamaConfig(**small, eos_token_id=None, bos_token_id=None, pad_token_id=0)
        roles[role] = LlamaForCausalLM(config)
    random_models.save_models(folder, roles, vocabulary)
    random_models.write_prompts(folder / "prompts.jsonl", [60] * 30, vocabulary)
    return vocabulary


def profiled(config: TrainConfig, out: Path, steps: int) -> dict[str, Any]:
    """Seconds, floor and operations of each phase."""
    speed = rates(torch.bfloat16 if config.student.compute == "bfloat16" else torch.float32)
    run = Run(config, out)
    seconds, least = seconds_of(run, steps), floors(run, speed)
    return {
        "rates": {"gflops": speed.flops / 1e9, "gb_per_s": speed.bytes / 1e9},
        "work": work_of(run),
        "step_cpu_s": seconds["all"],
        "phases": {name: {"cpu_s": seconds[name], "floor_s": least[name]} for name in least},
        "operations": operations_of(run),
    }


def print_profile(name: str, found: dict[str, Any]) -> None:
    speed, phases = found["rates"], found["phases"]
    print(f"{name}: {speed['gflops']:.0f} GFLOP/s, {speed['gb_per_s']:.1f} GB/s, step {found['step_cpu_s']:.3f} CPU-s")
    for one in phases.values():
        one |= {"times": one["cpu_s"] / one["floor_s"]} if one["floor_s"] else {}
    measure.table(phases, {"cpu_s": ".3f", "floor_s": ".3f", "times": ".1f"}, "phase")
    for phase, rows in found["operations"].items():
        print(f"{phase}: " + ", ".join(f"{op.removeprefix('aten::')} {seconds:.3f}" for op, seconds, _ in rows))


def main() -> None:
    arguments, began = measure.parser(__doc__ or "").parse_args(), time.time()
    quick = arguments.quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        embedded = load_recipe("sandbox/lsm_block64", ["threads=1", "diagnostics.every=0"])
        figures = {"embedded pair": profiled(embedded, Path(folder) / "embedded", 1 if quick else 5)}
        config = smol(Path(folder), quick)
        figures["135M shape"] = profiled(config, Path(folder) / "run", 1 if quick else 2)
    for name, found in figures.items():
        print_profile(name, found)
    measure.write("profile", began, quick, ["transformers"], figures=figures)


if __name__ == "__main__":
    main()
