"""Whether ranks on GPUs compute what one process computes, and what sharding costs an update.

    python benchmarks/gpu_ranks.py [--repeats 5] [--quick --device cpu]

A small model is trained for two steps, with rollouts and a checkpoint: by one process; by one rank over NCCL, its
weights sharded by FSDP2; and by two ranks where there are two GPUs, as NCCL wants one for each. "weights_off" is the
largest difference of a weight from the one process's. In float64 only the order of sums differs, so more than 1e-9 is
an error. With bfloat16 products rounding alone can change what is sampled, so there the difference is only reported.
Then one update of a model of Qwen3-1.7B's sizes, plain and sharded over one rank. On a CPU the ranks talk by gloo.
Writes benchmarks/results/gpu_ranks.json.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from gpu_bench import Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_ranks_worker import CASES, Outcome, config_of, make_inputs, trained
from gpu_sizes import batch_of
from gpu_update import Case, make_learner, update_config, whole
from training import learner_of, update
from transformers import AutoModelForCausalLM

from driftgate.launch import launch
from driftgate.models.shard import all_ranks, shard
from driftgate.ranks import Ranks

WORKER = Path(__file__).with_name("gpu_ranks_worker.py")
MOST = 1e-9
"""Largest difference of a float64 weight that rounding explains."""
COLUMNS = {
    "weights_off": ".1e",
    "share": ".3f",
    "same_responses": "",
    "saved_off": ".1e",
    "ms": ".1f",
    "peak_gb": ".1f",
}


def measure_ranks(bench: Bench, figures: Figures) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        alone = {case: trained(config_of(case, folder, bench.device.type), folder / "alone" / case) for case in CASES}
        with one_rank() as world:
            for case, one in alone.items():
                out = folder / "one" / case

                def single(case: str = case, one: Outcome = one, out: Path = out) -> Figures:
                    config = config_of(case, folder, bench.device.type)
                    return compared(case, one, trained(config, out, world, shard=True), out)

                attempt(figures, f"{case}, one rank", single)
            for name, sharded in {"update, plain": False, "update, sharded over one rank": True}.items():
                attempt(figures, name, lambda sharded=sharded: update_costs(bench, sharded))
        attempt(figures, "two ranks", lambda: two_ranks(bench, folder, alone))
    rows = {name: row for name, row in figures.items() if name != "two ranks"}
    print_table(rows | figures["two ranks"].get("cases", {}), COLUMNS, "ranks")


@contextmanager
def one_rank() -> Iterator[Ranks]:
    """A group of one rank, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
        world = Ranks()
        try:
            yield world
        finally:
            world.close()


def two_ranks(bench: Bench, folder: Path, alone: dict[str, Outcome]) -> Figures:
    if bench.cuda and torch.cuda.device_count() < 2:
        print("two ranks: left out, NCCL wants a GPU for each rank and there is one", flush=True)
        return {"skipped": "one GPU"}
    out = folder / "two" / "found.pt"
    out.parent.mkdir()
    if launch(2, [sys.executable, str(WORKER), str(folder), str(out), bench.device.type]):
        raise RuntimeError("gpu_ranks_worker.py failed; its own message is above")
    found = torch.load(out, weights_only=False)
    return {
        "cases": {f"{case}, two ranks": compared(case, alone[case], found[case], out.parent / case) for case in CASES}
    }


def compared(case: str, one: Outcome, other: Outcome, out: Path) -> Figures:
    """other: the outcome of ranks that trained in the folder `out`."""
    model = AutoModelForCausalLM.from_pretrained(max((out / "checkpoints").iterdir()) / "model")
    saved = {name: value.detach() for name, value in model.named_parameters()}
    found: Figures = {"weights_off": off(one["weights"], other["weights"]), "share": other["share"]}
    found |= {"same_responses": one["responses"] == other["responses"], "saved_off": off(other["weights"], saved)}
    if case == "float64" and (found["weights_off"] > MOST or not found["same_responses"]):
        found["error"] = "ranks trained something else than one process"
    return found | ({"error": "the checkpoint holds other weights"} if found["saved_off"] else {})


def off(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of a weight."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def update_costs(bench: Bench, sharded: bool) -> Figures:
    """An update of the student, as gpu_update.py has it."""
    case = Case("LSM", recompute=True, budget=bench.size.budgets[0])
    with deterministic(True):
        before, config, batch = bench.held(), update_config(bench, case), batch_of(bench.size)
        learner = make_learner(bench, config, bench.size.student)
        if sharded:
            shard(learner.policy, all_ranks(bench.device))
            learner = learner_of(config, learner.policy)
        portions, metrics = whole(config, batch), {}
        found = bench.costs(lambda: metrics.update(update(learner, portions, 1)), before)
    return found | {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}


if __name__ == "__main__":
    run_program("ranks", __doc__ or "", measure_ranks)
