"""What driftgate costs on one GPU, part by part, at the size of Qwen3-1.7B learning from Qwen3-4B.

    python benchmarks/gpu.py [--long] [--repeats 5] [--quick]

Runs these programs one after the other, each in a process of its own, with the same options:

gpu_head.py        forward and backward of each objective's head, chunked, against full logits
gpu_update.py      one optimiser update by the package's learner
gpu_scoring.py     the teacher's log-probabilities and top K, the student's own log-probabilities
gpu_exactness.py   the head against float64, decoding against the trainer's own forward, updates made twice
gpu_decoding.py    the package's engine, transformers' `generate`, one step as a CUDA graph
gpu_ranks.py       a run by ranks over NCCL against one process; a sharded update against a plain one
gpu_lora.py        an update of adapters against one of all weights

A way that fails leaves its error's text in its place. A program that fails does not stop the next. Each can be run
alone. Models have random weights made on the device, so nothing is downloaded. --quick runs everything small, on a CPU
too. Each program writes benchmarks/results/gpu_NAME.json, with --quick under results/quick/.
"""

import subprocess
import sys
from pathlib import Path

from gpu_bench import parsed

PROGRAMS = ("head", "update", "scoring", "exactness", "decoding", "ranks", "lora")


def main() -> None:
    parsed(__doc__ or "")  # refuses wrong options, and a machine without a GPU, before anything is run
    failed = [name for name in PROGRAMS if not succeeds(name)]
    print(f"failed, in part or as a whole: {', '.join(failed)}" if failed else "all programs succeeded")
    raise SystemExit(1 if failed else 0)


def succeeds(name: str) -> bool:
    program = Path(__file__).with_name(f"gpu_{name}.py")
    print(f"\n{program.name}", flush=True)
    return subprocess.run([sys.executable, program, *sys.argv[1:]]).returncode == 0


if __name__ == "__main__":
    main()
