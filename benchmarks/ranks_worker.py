"""What one rank measures: updates at two sizes of the batch, a scoring pass, a rollout, a checkpoint.

    python benchmarks/ranks_worker.py FOLDER OUT full|quick

Started by ranks.py, once for each rank. Rank 0 writes OUT: a list with the figures of every rank.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import torch
from clock import clocked_places
from random_models import overrides_of
from training import UPDATE_PARTS, Run, random_batch

from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.ranks import joined
from driftgate.recipe import load_recipe
from driftgate.world import World

K = 32
PROMPT, RESPONSE = 16, 112
"""Tokens of a sequence."""
Figures = dict[str, dict[str, float]]
"""What each piece of work cost."""


@dataclass(frozen=True)
class Size:
    vocabulary: int
    few: int
    """Sequences of the smaller batch."""
    many: int
    """Sequences of the larger one. Each rank takes its share of either in one forward."""
    new: int
    """Tokens of each of 8 responses that are written."""

    def positions(self, sequences: int) -> int:
        return sequences * (PROMPT + RESPONSE)


SIZES = {"full": Size(49_152, few=2, many=32, new=16), "quick": Size(2048, few=2, many=4, new=4)}


def main(folder: str, out: str, size: str) -> None:
    torch.set_num_threads(1)
    with joined() as world:
        found = world.share(measured(Path(folder), SIZES[size], world))
        if world.rank == 0:
            Path(out).write_text(json.dumps(found))


def measured(folder: Path, size: Size, world: World) -> Figures:
    """Figures of this rank."""
    found: Figures = {"process": {"bare_mb": measure.memory_mb("VmRSS")}}
    out = folder / f"run-{world.size}"
    measure.forget_peak()
    run = Run(config_of(folder, size), out, world)
    found["loading"] = {"peak_mb": measure.memory_mb("VmHWM")}
    few, many = (batch_of(size, count) for count in (size.few, size.many))
    updated(run, few)  # makes the optimiser's state
    found["update, few"] = updated(run, few)["update"]
    found |= updated(run, many)
    found["held"] = {kind: count / 1e6 for kind, count in run.held_bytes().items()}
    found["scoring pass"] = costs(lambda: run.score(many, K))
    found["rollout"] = costs(lambda: run.rollout(0))
    found["checkpoint"] = saved(run, out / "checkpoints", world)
    return found


def config_of(folder: Path, size: Size) -> TrainConfig:
    """LSM with gates in float32, activations recomputed; 4 prompts x 2 responses."""
    changes = overrides_of(folder, size.vocabulary, 4, 2, size.new)
    return load_recipe("qwen3/lsm_block64", [*changes, "device=cpu", "student.gradient_checkpointing=true"])


def batch_of(size: Size, sequences: int) -> Experience:
    ids = torch.randint(size.vocabulary, (sequences, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(0))
    return random_batch(ids[:, :PROMPT], ids[:, PROMPT:], size.vocabulary, K)


def updated(run: Run, batch: Experience) -> Figures:
    """Costs of an update, and CPU-seconds of its parts."""
    portions = run.portions({"student": batch})
    with clocked_places(UPDATE_PARTS) as seconds:
        found = {"update": costs(lambda: run.update(portions, 1))}
    return found | {name: {"cpu_s": sum(each)} for name, each in seconds.items()}


def costs(work: Callable[[], object]) -> dict[str, float]:
    """CPU-seconds, memory at its most and what came on top of what was held (MB), and MB sent to other ranks."""
    gc.collect()
    measure.forget_peak()
    held, written, began = measure.memory_mb("VmRSS"), measure.written_mb(), time.process_time()
    work()
    spent, peak = time.process_time() - began, measure.memory_mb("VmHWM")
    return {"cpu_s": spent, "peak_mb": peak, "above_mb": peak - held, "sent_mb": measure.written_mb() - written}


def saved(run: Run, folder: Path, world: World) -> dict[str, float]:
    """Costs of a checkpoint; seconds until training may go on, and until it is whole; its size in MB."""
    seconds: list[float] = []

    def work() -> None:
        began = time.perf_counter()
        run.save()
        seconds.append(time.perf_counter() - began)
        run.finish()
        seconds.append(time.perf_counter() - began)

    found = costs(work)
    world.share(None)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    return found | {"waits_s": seconds[0], "whole_s": seconds[1], "size_mb": size}


if __name__ == "__main__":
    main(*sys.argv[1:])
