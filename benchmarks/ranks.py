"""What training by two ranks costs, beside one process, in one run: work, memory, what is sent, checkpoints.

    python benchmarks/ranks.py [--repeats 3] [--quick]

SmolLM2-135M's shape with random weights, student and teacher alike, in float32: LSM with gates, activations recomputed.
Sequences of 128 tokens: updates of 256 and of 4,096 tokens, a scoring pass by the teacher, a rollout, a checkpoint. In
each round one process does it all, then two ranks do, one thread each. The first update is not counted.

Seconds are CPU-seconds, but for a checkpoint's, which are by the clock. "rank" is the busiest rank; "all" is the ranks
together. A ratio is the rank's figure over the one process's: 0.5 is an even share. What is sent is counted by the
system, at the socket. Memory includes student and teacher. Writes benchmarks/results/ranks.json.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# inherited by the processes that are measured; large memory goes back to the system as soon as it is freed, so that a
# peak is of what is used and not of what glibc keeps for later
os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}

import measure
from profile_step import save_smol
from ranks_worker import SIZES, Size

from driftgate.launch import launch

WORKER = Path(__file__).with_name("ranks_worker.py")
RANKS = 2
Round = dict[int, list[dict[str, dict[str, float]]]]
"""By the number of ranks, what each of them measured."""
Pick = Callable[[dict[str, dict[str, float]]], float]
"""One figure of what a rank measured."""
WORK = ("forward and backward", "optimiser", "scoring pass", "rollout", "checkpoint")
"""Whose CPU-seconds are compared, beside whole updates. The first two are parts of the update of the larger batch."""
SENT = ("update", "scoring pass", "rollout")
SAVING = {"training waits, s": "waits_s", "until whole, s": "whole_s", "memory on top, MB": "above_mb"}
COLUMNS = {"ratio": ".3f", "least": ".3f", "most": ".3f", "total": ".2f", "one": ".2f", "rank": ".2f", "all": ".2f"}


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    quick, began, load = arguments.quick, time.time(), [os.getloadavg()[0]]
    repeats, name = arguments.repeats or (1 if quick else 3), "quick" if quick else "full"
    with tempfile.TemporaryDirectory() as folder:
        save_smol(Path(folder) / "models", quick)
        rounds = [measured(Path(folder), name) for _ in range(repeats)]
    load.append(os.getloadavg()[0])
    figures = figures_of(rounds, SIZES[name])
    for section, rows in figures.items():
        measure.table(rows, COLUMNS, section)
        print()
    about = {"seed": 0, "ranks": RANKS, "repeats": repeats, "load": load, "sizes": asdict(SIZES[name])}
    measure.write("ranks", began, quick, ["transformers"], **about, figures=figures)


def measured(folder: Path, size: str) -> Round:
    """One round: one process, then the ranks."""
    found: Round = {}
    for ranks in (1, RANKS):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            for part in (folder / "models").iterdir():
                (Path(own) / part.name).symlink_to(part)
            out = Path(own) / "found.json"
            if launch(ranks, [sys.executable, str(WORKER), own, str(out), size]):
                raise SystemExit(f"ranks_worker.py failed with {ranks} ranks; its own message is above")
            found[ranks] = json.loads(out.read_text())
    return found


def figures_of(rounds: list[Round], size: Size) -> dict[str, measure.Figures]:
    """Of each section and row: the rank's ratio to the one process with its range over rounds, and medians."""
    held = ("parameters", "gradients", "optimiser state")
    small, large = (f"update of {size.positions(count):,} tokens" for count in (size.few, size.many))
    work = {small: "update, few", large: "update"} | {name: name for name in WORK}
    sections: dict[str, dict[str, Pick]] = {
        "CPU-seconds": {row: lambda of, name=name: of[name]["cpu_s"] for row, name in work.items()},
        "MB of memory": {name: lambda of, name=name: of["held"][name] for name in held}
        | {"most while loading": lambda of: own_mb(of, "loading")}
        | {f"most in an {row}": lambda of, name=name: own_mb(of, name) for row, name in list(work.items())[:2]},
        "MB sent": {name: lambda of, name=name: of[name]["sent_mb"] for name in SENT},
        "checkpoint": {name: lambda of, key=key: of["checkpoint"][key] for name, key in SAVING.items()}
        | {"size, MB": lambda of: of["checkpoint"]["size_mb"]},
    }
    return {name: {row: compared(rounds, pick) for row, pick in rows.items()} for name, rows in sections.items()}


def own_mb(of: dict[str, dict[str, float]], work: str) -> float:
    """The most memory during a piece of work, without the interpreter and its libraries."""
    return of[work]["peak_mb"] - of["process"]["bare_mb"]


def compared(rounds: list[Round], pick: Pick) -> dict[str, Any]:
    """`one` process, the busiest `rank`, `all` ranks; `ratio`, `least` and `most` of the rank to the one process, and
    the `total` of all to it. Ratios are left out where the one process has next to nothing."""
    one = [pick(found[1][0]) for found in rounds]
    every = [[pick(of) for of in found[RANKS]] for found in rounds]
    rank, total = [max(each) for each in every], [sum(each) for each in every]
    medians = {"one": statistics.median(one), "rank": statistics.median(rank), "all": statistics.median(total)}
    if min(one) < 0.01 * min(rank):
        return medians
    return measure.ratio(rank, one) | {"total": measure.ratio(total, one)["ratio"]} | medians


if __name__ == "__main__":
    main()
