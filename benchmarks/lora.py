"""What a step, its memory and its checkpoint cost with LoRA, beside training all weights, in one run.

    python benchmarks/lora.py [--repeats 3] [--quick]

SmolLM2-135M's depth, width and vocabulary (30 layers x 576, 49,152 tokens) with random Qwen3 weights, on one thread.
A step is rollout, scores and two updates (LSM, 64-token gates) of 4 responses of 48 tokens. The teacher is the initial
student: a frozen copy for full training, the base with the adapter off for LoRA. LoRA has rank 16 on all linear layers.

Every way has a process of its own and makes one step at a time, in rounds; the first round is not counted. The peak is
that of the process before it saves its checkpoint. Writes benchmarks/results/lora.json.
"""

import os
import tempfile
import time
from pathlib import Path

# read at import; the processes of the ways inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import measure
import random_models
import torch
from clock import clocked_places
from step_ways import Setting
from step_workers import Step, Worker, WorkerEnd
from training import PHASES, Run

from driftgate.recipe import load_recipe

SHAPE = {False: (49_152, 30, 576, 3), True: (512, 2, 64, 1)}
"""Vocabulary, layers, hidden size, key-value heads; by `quick`."""
FULL = "full training"
WAYS = {
    FULL: [],
    "LoRA": ["student.lora={rank: 16}"],
    "LoRA, base in bfloat16": ["student.lora={rank: 16}", "student.dtype=bfloat16"],
}
PARTS = ("rollout", "behaviour", "teacher", "update")
COLUMNS = {"cpu_s": ".2f", "ratio": ".2f", "least": ".2f", "most": ".2f", "peak_mb": ".0f", "baseline_mb": ".0f"}
COLUMNS |= {"trained": ",.0f", "model_mb": ".1f", "checkpoint_mb": ".1f"} | dict.fromkeys(PARTS, ".2f")


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    repeats, quick = arguments.repeats or (1 if arguments.quick else 3), arguments.quick
    torch.set_num_threads(1)
    began, shape = time.time(), SHAPE[quick]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), shape[0], *((2, 16) if quick else (4, 48)))
        student = random_models.qwen3(*shape, seed=0)
        random_models.save_models(setting.folder, {"student": student}, shape[0])
        random_models.write_prompts(setting.folder / "prompts.jsonl", [16 + n % 16 for n in range(64)], shape[0])
        del student
        figures = compared(setting, repeats, quick)
    measure.table(figures, COLUMNS, f"over {FULL}")
    sizes = {"shape": shape, "responses": setting.prompts, "new_tokens": setting.tokens, "repeats": repeats}
    measure.write("lora", began, quick, ["transformers", "peft"], **sizes, figures=figures)


def compared(setting: Setting, repeats: int, quick: bool) -> measure.Figures:
    """Every way in rounds; medians, ratios to full training, memory and what a checkpoint holds."""
    workers = {name: Worker(name, serve, setting, quick) for name in WAYS}
    steps: dict[str, list[Step]] = {name: [] for name in WAYS}
    for number in range(repeats + 1):
        for name, worker in workers.items():
            step = worker.step(2)
            if number:
                steps[name].append(step)
    seconds = {name: [step["cpu_s"] for step in found] for name, found in steps.items()}
    figures = measure.against(seconds, dict.fromkeys(WAYS, FULL))
    for name, worker in workers.items():
        figures[name] |= {part: mean([sum(step["parts"].get(part, [])) for step in steps[name]]) for part in PARTS}
        figures[name] |= worker.close()
    return figures


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def serve(end: WorkerEnd, name: str, setting: Setting) -> None:
    """Steps of one way until there are no more orders; then a checkpoint."""
    torch.set_num_threads(1)
    shared = random_models.overrides_of(setting.folder, setting.vocabulary, setting.prompts, 1, setting.tokens)
    own = ["teacher={path: student}", *WAYS[name], "optimizer={lr: 1.0e-6}", "device=cpu", "steps=1000"]
    run = Run(load_recipe("qwen3/lsm_block64", [*shared, *own]), setting.folder / name)
    end.send_memory("baseline_mb", "VmRSS")
    while (passes := end.begin()) is not None:
        with clocked_places(PHASES) as spent:
            run.step(passes)
        end.parts.update(spent)
        end.end()
    peak = measure.memory_mb("VmHWM")
    run.made.save()
    [checkpoint] = (run.out / "checkpoints").iterdir()
    trained = sum(parameter.numel() for parameter in run.made.learner.parameters)
    sizes = {"model_mb": megabytes(checkpoint / "model"), "checkpoint_mb": megabytes(checkpoint)}
    end.pipe.send({"peak_mb": peak, "trained": trained} | sizes)


def megabytes(folder: Path) -> float:
    """Of all files in a folder, but for the tokenizer, which is the same for all ways."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and "token" not in f.name) / 2**20


if __name__ == "__main__":
    main()
