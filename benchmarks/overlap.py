"""What rollouts that servers write ahead save: wall seconds of a step with `rollout.lag` 0, 1 and 2.

    python benchmarks/overlap.py [--repeats 3] [--quick]

The server is simulated: it takes no time of this machine's cores, as GPUs elsewhere would, and answers with random
tokens after a given time. That time is three times what the rest of a step takes at lag 0, so that decoding is three
quarters of a step. It is given the student's weights after each step, as a file. Everything else is real: the thread
that waits for it, the copy of the weights, scoring by that copy, the updates (two passes, LSM, 64-token gates).

Rounds of all lags in turn, in one process, one thread; the first round is not counted. Writes
benchmarks/results/overlap.json.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import measure
import random_models
import torch
from rich.console import Console
from safetensors.torch import save_file

from driftgate import keyed
from driftgate.data.response import Response
from driftgate.models.save import plain_weights
from driftgate.recipe import load_recipe
from driftgate.report.plots import read_metrics
from driftgate.train import build
from driftgate.train.command import run

SHAPE = {False: (2_048, 4, 192, 3), True: (512, 2, 64, 1)}
"""Vocabulary, layers, hidden size, key-value heads; by `quick`."""
LAGS = (0, 1, 2)
DECODING = 3.0
"""Seconds of decoding for each second of the rest of a step."""
COLUMNS = {"step_s": ".2f", "ratio": ".2f", "least": ".2f", "most": ".2f", "waited_s": ".2f", "drift": ".4f"}


class SimulatedServer:
    """Answers with random tokens after `seconds`, and asks every 50 ms whether it is still wanted."""

    concurrent = True
    seconds = 0.0

    def __init__(self, folder: Path, vocabulary: int):
        self.file, self.vocabulary, self.version = folder / "weights.safetensors", vocabulary, 0

    def load(self, policy, version):
        save_file({name: value.contiguous() for name, value in plain_weights(policy).items()}, self.file)
        self.version = version

    def generate(self, requests, sampling, advance=None):
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(0.05, left))
            if advance is not None:
                advance(0)
        return [[self._response(key, sampling) for key in request.keys] for request in requests]

    def _response(self, key, sampling) -> Response:
        ids = keyed.generator(*key).integers(self.vocabulary, size=sampling.max_new_tokens).tolist()
        return Response(tuple(ids), (0.0,) * len(ids), finished=False, version=self.version)


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    quick, repeats = arguments.quick, arguments.repeats or (1 if arguments.quick else 3)
    torch.set_num_threads(1)
    began, shape = time.time(), SHAPE[quick]
    responses, tokens, steps = (2, 16, 5) if quick else (8, 128, 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"student": random_models.qwen3(*shape, seed=0), "teacher": random_models.qwen3(*shape, seed=1)}
        random_models.save_models(folder, models, shape[0])
        random_models.write_prompts(folder / "prompts.jsonl", [16 + n % 16 for n in range(64)], shape[0])
        del models
        build.student_engine = lambda *_: SimulatedServer(folder, shape[0])  # type: ignore[assignment]
        overrides = [*random_models.overrides_of(folder, shape[0], responses, 1, tokens), f"steps={steps}"]
        overrides += ["rollout.engine={kind: vllm, urls: [http://localhost:1]}", "checkpoint.every=1000", "threads=1"]
        figures = compared(folder, overrides, repeats)
    measure.table(figures, COLUMNS, "over lag 0")
    sizes = {"shape": shape, "responses": responses, "new_tokens": tokens, "steps": steps, "repeats": repeats}
    measure.write("overlap", began, quick, ["transformers"], **sizes, decoding=SimulatedServer.seconds, figures=figures)


def compared(folder: Path, overrides: list[str], repeats: int) -> measure.Figures:
    """Every lag in rounds: median seconds of a step, ratios to lag 0, seconds waited for rollouts, drift at the first
    update of a batch."""
    step_of(folder / "warm", overrides, 0)
    SimulatedServer.seconds = DECODING * step_of(folder / "calibration", overrides, 0)["step_s"]
    found: dict[int, list[dict[str, float]]] = {lag: [] for lag in LAGS}
    for number in range(repeats + 1):
        for lag in LAGS:
            step = step_of(folder / f"{number}-{lag}", overrides, lag)
            if number:
                found[lag].append(step)
    seconds = {lag: [step["step_s"] for step in steps] for lag, steps in found.items()}
    figures: measure.Figures = {}
    for lag, steps in found.items():
        medians = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
        figures[f"lag {lag}"] = medians | measure.ratio(seconds[lag], seconds[0])
    return figures


def step_of(out: Path, overrides: list[str], lag: int) -> dict[str, float]:
    """A run's mean seconds a step, without the first, which also writes the batches ahead, and without the last
    two, which have none to write."""
    ends: list[float] = []
    config = load_recipe("qwen3/lsm_block64", [*overrides, f"rollout.lag={lag}"])
    run(config, out, Console(quiet=True), lambda steps: ends.append(time.perf_counter()))
    counted = range(2, config.steps - 1)
    rollouts = [row for row in read_metrics(out, "rollout") if row["step"] in counted]
    updates = [row for row in read_metrics(out, "update") if row["step"] in counted and row["update"] == 1]
    return {
        "step_s": (ends[counted[-1]] - ends[1]) / len(counted),
        "waited_s": statistics.mean(row.get("seconds_waited", row["seconds_rollout"]) for row in rollouts),
        "drift": statistics.mean(row["drift_abs"] for row in updates),
    }


if __name__ == "__main__":
    main()
