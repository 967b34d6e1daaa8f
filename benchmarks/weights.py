"""What a weight costs: CPU-seconds of an update of each recipe against its base without weights, in one run.

    python benchmarks/weights.py [--repeats 7] [--quick]

Every recipe learns from one rollout batch of the embedded pair (16 prompts x 2 responses). The updates after the first,
on a drifted student, are timed, recipes in turn. A recipe is compared by the median ratio to the base of its objective.
Writes benchmarks/results/weights.json.
"""

import tempfile
import time
from pathlib import Path

import measure
from training import Run

from driftgate.recipe import load_recipe

RECIPES = {  # by their base
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


class Updates:
    """Updates of a recipe on one rollout batch."""

    def __init__(self, name: str, out: Path):
        config = load_recipe(name, ["threads=1", "diagnostics.every=0", "optimizer.warmup=0"])
        self.run, self.number = Run(config, out), 0
        self.portions = self.run.portions(self.run.collect())

    def update(self) -> None:
        """The next one. The first, on a student that has not drifted yet, is the round that is not counted."""
        self.run.update(self.portions, self.number)
        self.number += 1


def main() -> None:
    arguments, began = measure.parser(__doc__ or "").parse_args(), time.time()
    repeats = arguments.repeats or (1 if arguments.quick else 7)
    figures: measure.Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for base, others in RECIPES.items():
            names = (base, *others[: 2 if arguments.quick else None])
            updates = {name: Updates(name, Path(folder) / name) for name in names}
            seconds = measure.rounds({name: each.update for name, each in updates.items()}, repeats)
            figures |= measure.against(seconds, dict.fromkeys(names, base))
    columns = {"cpu_s": ".3f", "ratio": ".2f", "least": ".2f", "most": ".2f"}
    measure.table(figures, columns, "an update by recipe")
    measure.write("weights", began, arguments.quick, ["transformers"], seed=0, repeats=repeats, figures=figures)


if __name__ == "__main__":
    main()
