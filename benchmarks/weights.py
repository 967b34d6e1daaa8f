"""What a weight costs: CPU-seconds of an optimiser update of each recipe against its base without weights, in one run.

    python benchmarks/weights.py [--repeats 7] [--quick]

Every recipe learns from one rollout batch of the embedded pair (16 prompts x 2 responses). The updates after the first,
on a drifted student, are timed, recipes in turn, and compared by the median ratio to the base of the same objective.
Writes benchmarks/results/weights.json.
"""

import tempfile
import time
from pathlib import Path

import measure
from rich.console import Console

from driftgate.recipe import load_recipe
from driftgate.stop import StopSignal
from driftgate.train import loop, setup
from driftgate.train.checkpoint import Position
from driftgate.train.portions import Portion, spans_of
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
        self.learner, self.number = parts.learner, 0
        self.portions = {
            stream: Portion(
                batch, range(len(batch.responses)), *spans_of(self.config, stream, batch, parts.newline_ids)
            )
            for stream, batch in streams.items()
        }

    def update(self) -> None:
        """The next one; the first, on a student that has not drifted yet, is the round that is not counted."""
        self.learner.update(self.portions, Moment(self.config.seed, 0, self.number))
        self.number += 1


def main() -> None:
    arguments, began = measure.parser(__doc__ or "").parse_args(), time.time()
    repeats = arguments.repeats or (1 if arguments.quick else 7)
    figures: measure.Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for base, others in RECIPES.items():
            names = (base, *others[: 2 if arguments.quick else None])
            timed = {name: Timed(name, Path(folder) / name) for name in names}
            seconds = measure.rounds({name: one.update for name, one in timed.items()}, repeats)
            figures |= measure.against(seconds, dict.fromkeys(names, base))
    columns = {"cpu_s": ".3f", "ratio": ".2f", "least": ".2f", "most": ".2f"}
    measure.table(figures, columns, "an update by recipe")
    measure.write("weights", began, arguments.quick, ["transformers"], seed=0, repeats=repeats, figures=figures)


if __name__ == "__main__":
    main()
