"""What a whole optimiser step costs, beside TRL's DistillationTrainer and beside plain full logits, in one run.

    python benchmarks/step.py [--repeats 3] [--quick]

Rollout, scoring and update of 8 prompts x 1 response of 128 tokens, float32, one thread. Student 4 layers x 256,
teacher 6 x 384: random Qwen3 weights, tied heads, of 8,192 and of 151,936 tokens. Nothing can end a response: the EOS
token's id lies one beyond the head, for all ways alike. All sample plainly (temperature 1, top-p 1).

Every way has a process of its own and makes one step at a time, in rounds. The first round is not counted. So its peak
is that of a fresh process. `baseline_mb` is what the process held with models loaded, before any step.

TRL steps as `DistillationConfig` has it (reverse KL over the vocabulary, fused AdamW), but in float32, without
activation checkpointing, logging and saving. Without TRL all ways are compared with driftgate's LSM. In a single pass
every gate is 1, so a recipe refuses it; it is timed here all the same. "full logits" rolls out and packs by driftgate's
code, but scores and learns from whole [tokens x vocabulary] logits under autograd.
Writes benchmarks/results/step.json.
"""

import math
import os
import statistics
import tempfile
import time
from pathlib import Path

# read at import; the processes of the ways inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import measure
import torch
from step_trl import has_trl, serve_trl
from step_ways import MODELS, RECIPES, K, Setting, make_inputs, serve_ours
from step_workers import Step, Worker

OURS = "driftgate, LSM"
MANY = "many passes"
PASSES = (2, 4, 8)
TWINS = {name.replace("full logits", "driftgate"): name for name in RECIPES if name.startswith("full logits")}
"""Ways that must find the same loss in their first step."""
HEADLINE = ("TRL", *TWINS)
"""Ways that step in every round. At the larger size the others step in the first counted round alone."""
TARGETS = {8_192: 0.6, 151_936: 0.35}
"""Most CPU-seconds of driftgate's gated step at one pass, as a share of TRL's, by vocabulary."""
PARTS = ("rollout", "behaviour", "teacher", "update", "kernel")
"""CPU-seconds of each. `kernel` is the system's share of all of them, mostly for handing out memory."""
COLUMNS = {"cpu_s": ".2f", "ratio": ".2f", "least": ".2f", "most": ".2f", "peak_mb": ".0f", "baseline_mb": ".0f"}
COLUMNS |= dict.fromkeys(PARTS, ".2f")


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    repeats, quick = arguments.repeats or (1 if arguments.quick else 3), arguments.quick
    torch.set_num_threads(1)
    began, figures = time.time(), {}
    size = (4, 16) if quick else (8, 128)
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in list(TARGETS)[: 1 if quick else None]:
            setting = Setting(Path(folder) / str(vocabulary), vocabulary, *size)
            figures[str(vocabulary)] = compared(setting, repeats, quick)
    packages = ["transformers", *(["trl", "accelerate", "datasets"] if has_trl() else [])]
    sizes = {"prompts": size[0], "new_tokens": size[1], "models": MODELS, "k": K, "repeats": repeats}
    measure.write("step", began, quick, packages, **sizes, figures=figures)


def compared(setting: Setting, repeats: int, quick: bool) -> measure.Figures:
    """Every way at one size, printed as a table."""
    make_inputs(setting)
    names = names_of(quick)
    workers = {name: Worker(name, serve_trl if name == "TRL" else serve_ours, setting, quick) for name in names}
    steps = in_rounds(workers, repeats + 1, sparing=setting.vocabulary > 100_000)
    peaks = {name: worker.close() for name, worker in workers.items()}
    check_twins({name: found[0]["loss"] for name, found in steps.items() if name in RECIPES})
    figures = figures_of(rows_of(steps), peaks, names[0])
    measure.table(figures, COLUMNS, f"V = {setting.vocabulary}, over {names[0]}")
    if names[0] == "TRL" and not quick:
        add_targets(figures, TARGETS[setting.vocabulary])
    print()
    return figures


def names_of(quick: bool) -> list[str]:
    """The ways. The first is what the others are compared with: TRL, if it is installed."""
    ours = [name for name in RECIPES if not quick or ("LSM" in name and "no gate" not in name)]
    if has_trl():
        return ["TRL", *ours]
    print(f"trl is not installed, so the steps are compared with {ours[0]} alone; pip install trl==1.16.0")
    return ours


def in_rounds(workers: dict[str, Worker], rounds: int, sparing: bool) -> dict[str, list[Step]]:
    """Steps of each way, the ways in turn. The first is to warm up. MANY are steps with the most passes."""
    steps: dict[str, list[Step]] = {name: [] for name in [*workers, MANY]}
    for number in range(rounds):
        for name, worker in workers.items():
            if number < 2 or not sparing or name in HEADLINE:
                steps[name].append(worker.step(1))
        if number == 1 or (number and not sparing):
            steps[MANY].append(workers[OURS].step(PASSES[-1]))
    return steps


def rows_of(steps: dict[str, list[Step]]) -> dict[str, list[dict[str, float]]]:
    """What each counted step cost, for one optimiser update, by row of the table."""
    rows = {name: [costs(step, 1) for step in found[1:]] for name, found in steps.items() if name != MANY}
    return rows | {f"{OURS}, {n} passes": [costs(step, n) for step in steps[MANY]] for n in PASSES}


def costs(step: Step, passes: int) -> dict[str, float]:
    """Costs of a step that ends after so many of its updates, divided by them."""
    spared = sum(step["parts"].get("update", [])[passes:])
    parts = {name: sum(seconds[:passes]) / passes for name, seconds in step["parts"].items()}
    whole = {"cpu_s": (step["cpu_s"] - spared) / passes}
    return whole | parts | ({"kernel": step["kernel"]} if passes == 1 else {})


def figures_of(
    rows: dict[str, list[dict[str, float]]], peaks: dict[str, dict[str, float]], base: str
) -> measure.Figures:
    """Medians of each row, and its ratios to the base. Rows of many passes share the memory of OURS."""
    seconds = {name: [one["cpu_s"] for one in row] for name, row in rows.items()}
    figures = measure.against(seconds, dict.fromkeys(rows, base))
    for name, row in rows.items():
        own = peaks.get(name, peaks[OURS])
        parts = {part: statistics.median(one[part] for one in row) for part in row[0] if part != "cpu_s"}
        figures[name] |= parts | own | {"memory_ratio": own["peak_mb"] / peaks[base]["peak_mb"], "rounds": len(row)}
    return figures


def check_twins(losses: dict[str, float]) -> None:
    """The full logits give the same loss on the same responses, so the costs are of the same work."""
    for ours, plain in TWINS.items():
        if plain in losses and not math.isclose(losses[ours], losses[plain], rel_tol=1e-3, abs_tol=1e-5):
            raise SystemExit(f"{ours} has a loss of {losses[ours]} in its first step, {plain} of {losses[plain]}")


def add_targets(figures: measure.Figures, most: float) -> None:
    """Print and note which targets are reached."""
    for name in TWINS:
        ratio = figures[name]["ratio"]
        figures[name] |= {"target": most, "reached": ratio <= most}
        print(f"{name}: {ratio:.2f} of TRL, target {most:.2f}: {'reached' if ratio <= most else 'missed'}")


if __name__ == "__main__":
    main()
