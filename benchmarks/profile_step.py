"""Where the time of one training step goes, and how far each phase is above its floor.

    python benchmarks/profile_step.py [--quick]

A step of the embedded pair (recipe sandbox/lsm_block64: 16 prompts x 2 responses, two passes, float32), and one of the
135M shape (SmolLM2's, random weights, student and teacher alike, bfloat16 products: 4 prompts x 4 responses of 128
tokens, recipe qwen3/lsm_block64).

The floor of a phase is the larger of its arithmetic at the rate of a large matrix product, and of its traffic (weights
and key-value cache, once a decoding step) at the rate of reading a large tensor, both measured here in the same run.
Writes benchmarks/results/profile.json.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from rich.console import Console
from step import make_tokenizer
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from driftgate.config import TrainConfig
from driftgate.recipe import load_recipe
from driftgate.stop import StopSignal
from driftgate.train import loop, setup
from driftgate.train.tracking import Display, Metrics

PHASES = {
    "sample_responses": "rollout",
    "behaviour_scores": "behaviour",
    "target_scores": "teacher",
    "timed_update": "update",
}
TOP = 8
"""Operations shown of a phase."""
SMOL = {
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
    size = 1536
    a, b, big = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype), torch.zeros(64_000_000)
    product = min(measure.rounds({"mm": lambda: a @ b}, 5)["mm"])
    read = min(measure.rounds({"read": lambda: big.sum()}, 5)["read"])
    return Rates(2 * size**3 / product, 4 * big.numel() / read)


class Profiled:
    """A run whose every step tells its phases' CPU-seconds, or their operations."""

    def __init__(self, config: TrainConfig, out: Path):
        self.config, self.out = config, out
        out.mkdir(parents=True)
        self.parts = setup.set_up(config, out)
        self.state = loop.State(self.parts.position, self.parts.pending)
        self.metrics = Metrics(out / "metrics.jsonl", self.state.position)
        self.display = Display(Console(quiet=True), config.steps, 0)

    def step(self, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        """One step; `around(phase, call)` makes each phase's call."""
        kept = {name: getattr(loop, name) for name in PHASES}

        def wrapped(name: str) -> Callable[..., Any]:
            return lambda *arguments: around(PHASES[name], lambda: kept[name](*arguments))

        try:
            for name in PHASES:
                setattr(loop, name, wrapped(name))
            loop.one_step(self.config, self.parts, self.state, self.metrics, self.out, self.display, StopSignal())
        finally:
            for name, function in kept.items():
                setattr(loop, name, function)

    def seconds(self, steps: int) -> dict[str, float]:
        """Median CPU-seconds of each phase over steps after the first; `all` for the whole step."""
        found: list[dict[str, float]] = []
        for _ in range(steps + 1):
            found.append(dict.fromkeys(PHASES.values(), 0.0))

            def clocked(phase: str, call: Callable[[], Any], own: dict[str, float] = found[-1]) -> Any:
                began = time.process_time()
                result = call()
                own[phase] += time.process_time() - began
                return result

            began = time.process_time()
            self.step(clocked)
            found[-1]["all"] = time.process_time() - began
        return {name: statistics.median(one[name] for one in found[1:]) for name in found[0]}

    def operations(self) -> dict[str, list[tuple[str, float, int]]]:
        """Of each phase of one step: its operations by their own CPU-seconds, and how often they were called."""
        found: dict[str, dict[str, list[float]]] = {}

        def watched(phase: str, call: Callable[[], Any]) -> Any:
            with profile(activities=[ProfilerActivity.CPU]) as watch:
                result = call()
            for row in watch.key_averages():
                entry = found.setdefault(phase, {}).setdefault(row.key, [0.0, 0])
                entry[0], entry[1] = entry[0] + row.self_cpu_time_total / 1e6, entry[1] + row.count
            return result

        self.step(watched)
        return {
            phase: [(name, *own) for name, own in sorted(rows.items(), key=lambda r: -r[1][0])[:TOP]]  # type: ignore[misc]
            for phase, rows in found.items()
        }

    def work(self) -> dict[str, float]:
        """Sizes of the last rollout."""
        rows = [json.loads(line) for line in sorted((self.out / "rollouts").iterdir())[-1].read_text().splitlines()]
        lengths = [len(row["ids"]) for row in rows]
        prompts = [len(prompt.ids) for prompt in self.parts.prompts]
        mean = statistics.mean(prompts)
        return {
            "tokens": sum(lengths),
            "steps": max(lengths),
            "positions": sum(lengths) + mean * len(lengths),
            "looked_at": sum(n * mean + n * n / 2 for n in lengths),
        }


def floors(run: Profiled, speed: Rates) -> dict[str, float]:
    """Least seconds of each phase, by its products and by what it must read; attention's own products left out."""
    done, width = run.work(), 2 if run.config.student.compute == "bfloat16" else 4
    student, teacher = (sum(p.numel() for p in m.parameters()) for m in (run.parts.policy.model, teacher_of(run)))
    config: Any = run.parts.policy.model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * size * width
    read = done["steps"] * student * width + done["looked_at"] * cache
    return {
        "rollout": max(2 * student * done["tokens"] / speed.flops, read / speed.bytes),
        "behaviour": 0.0,
        "teacher": 2 * teacher * done["positions"] / speed.flops,
        "update": run.config.passes * 6 * student * done["positions"] / speed.flops,
    }


def teacher_of(run: Profiled) -> torch.nn.Module:
    return run.parts.targets["teacher"].policy.model


def smol(folder: Path, quick: bool) -> TrainConfig:
    """The 135M shape with random weights, prompts of 60 tokens, and no end to a response but the limit."""
    small = SMOL | ({"num_hidden_layers": 2, "vocab_size": 2048} if quick else {})
    tokenizer = make_tokenizer(small["vocab_size"])
    for role, seed in (("student", 0), ("teacher", 1)):
        torch.manual_seed(seed)
        config = LlamaConfig(**small, eos_token_id=None, bos_token_id=None, pad_token_id=0)
        LlamaForCausalLM(config).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    lines = [json.dumps({"problem": " ".join(f"w{1 + n * 61 + place}" for place in range(60))}) for n in range(30)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    model = {"compute": "bfloat16"}
    changes = {
        "student": model | {"path": str(folder / "student")},
        "teacher": model | {"path": str(folder / "teacher")},
        "prompts": {"path": str(folder / "prompts.jsonl"), "per_step": 4},
        "rollout": {"samples": 4, "max_new_tokens": 16 if quick else 128, "allow_truncated": True, "top_p": 1.0}
        | {"stop_ids": [small["vocab_size"]]},
        "diagnostics": {"every": 0},
        "threads": 1,
    }
    return load_recipe("qwen3/lsm_block64", [f"{name}={json.dumps(value)}" for name, value in changes.items()])


def profiled(config: TrainConfig, out: Path, steps: int) -> dict[str, Any]:
    """Seconds, floor and operations of each phase."""
    speed = rates(torch.bfloat16 if config.student.compute == "bfloat16" else torch.float32)
    run = Profiled(config, out)
    seconds, least = run.seconds(steps), floors(run, speed)
    return {
        "rates": {"gflops": speed.flops / 1e9, "gb_per_s": speed.bytes / 1e9},
        "work": run.work(),
        "step_cpu_s": seconds["all"],
        "phases": {name: {"cpu_s": seconds[name], "floor_s": least[name]} for name in least},
        "operations": run.operations(),
    }


def show(name: str, found: dict[str, Any]) -> None:
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
        show(name, found)
    measure.write("profile", began, quick, ["transformers"], figures=figures)


if __name__ == "__main__":
    main()
