"""What a weight costs: CPU-seconds of an optimiser update of each recipe against its base without weights, in one run.

    python benchmarks/weights.py [--repeats 7]

Every recipe learns from one rollout batch of the embedded pair (16 prompts x 2 responses). The updates after the first,
on a drifted student, are timed, recipes in turn, and compared by the median ratio to the base of the same objective.
Writes benchmarks/results/weights.json.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from driftgate.recipe import load_recipe
from driftgate.train import loop, setup
from driftgate.train.checkpoint import Position
from driftgate.train.portions import Portion, spans_of
from driftgate.train.stop import StopSignal
from driftgate.train.tracking import Display, Metrics
from driftgate.train.weighing import Moment

BASES = {"sandbox/lsm_none": "LSM", "sandbox/sampled_token_none": "sampled token"}
RECIPES = {
    "sandbox/lsm_none": [
        "sandbox/lsm_block64",
        "sandbox/lsm_newline",
        "controls/token",
        "controls/shuffle_across",
        "ours/changepoint",
        "ours/target_ess",
        "ours/changepoint_target_ess",
        "repairs/tip",
        "repairs/rethinking_opd",
        "repairs/gkd_reverse_kl",
    ],
    "sandbox/sampled_token_none": [
        "sandbox/sampled_token_block64",
        "repairs/iw_opd",
        "repairs/eopd",
        "repairs/tropd",
        "repairs/stable_opd",
    ],
}


class Timed:
    """A recipe with a rollout batch, ready to be updated."""

    def __init__(self, name: str, out: Path):
        self.config = load_recipe(name, ["threads=1", "diagnostics.every=0", "optimizer.warmup=0"])
        out.mkdir(parents=True)
        parts = setup.set_up(self.config, out)
        position = Position()
        display = Display(Console(quiet=True), self.config.steps, 0)
        streams = loop.collect(
            self.config, parts, position, Metrics(out / "metrics.jsonl", position), out, display, StopSignal()
        )
        self.learner, self.seconds = parts.learner, []
        self.portions = {
            stream: Portion(
                batch, range(len(batch.responses)), *spans_of(self.config, stream, batch, parts.newline_ids)
            )
            for stream, batch in streams.items()
        }

    def update(self, number: int) -> None:
        began = time.process_time()
        self.learner.update(self.portions, Moment(self.config.seed, 0, number))
        if number:
            self.seconds.append(time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    began, figures = time.time(), {}
    with tempfile.TemporaryDirectory() as folder:
        for base, others in RECIPES.items():
            timed = {name: Timed(name, Path(folder) / name) for name in (base, *others)}
            for number in range(repeats + 1):
                for each in timed.values():
                    each.update(number)
            for name, each in timed.items():
                ratios = sorted(one / two for one, two in zip(each.seconds, timed[base].seconds))
                figures[name] = {
                    "cpu_s": statistics.median(each.seconds),
                    "ratio": statistics.median(ratios),
                    "least": ratios[0],
                    "most": ratios[-1],
                }
    print(f"{'recipe':34}{'CPU-s an update':>16}{'ratio':>8}   least to most")
    for name, figure in figures.items():
        print(f"{name:34}{figure['cpu_s']:16.3f}{figure['ratio']:8.2f}   {figure['least']:.2f} to {figure['most']:.2f}")
    result = {
        "command": " ".join(["python", "benchmarks/weights.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": f"{platform.machine()}, 1 thread",
        "seed": 0,
        "seconds": round(time.time() - began),
        "figures": figures,
    }
    out = Path(__file__).parent / "results" / "weights.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
