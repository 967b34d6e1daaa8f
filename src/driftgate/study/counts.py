"""The counts of right responses by arm, seed and problem, with which anybody can fit the comparison again.

from driftgate.study.compare import compare_arms
from driftgate.study.counts import arms_of

arms = arms_of(json.loads(Path("runs/quick/summary.json").read_text()))
print(compare_arms(arms, "none"))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .scores import ScoreTable


def counts_of(scores: Mapping[str, ScoreTable], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each arm, seed and benchmark: how many samples of each problem are right, in the order of
    problem_ids."""
    return [
        {"arm": arm, "seed": seed, "benchmark": name, "right": correct[place].sum(axis=1).tolist()}
        for arm, each in scores.items()
        for place, seed in enumerate(seeds)
        for name, correct in each.correct.items()
    ]


def arms_of(summary: Mapping[str, Any]) -> dict[str, ScoreTable]:
    """arm -> its graded responses, from a study's summary: the same ones up to the order of a problem's samples, which
    no measure depends on. Raises InputError for a summary without counts."""
    if not summary.get("counts"):
        raise InputError("summary: has no counts; it was made by an earlier version, so run the study again")
    samples = range(summary["samples"])
    rows: dict[str, dict[str, list[list[int]]]] = {}
    for row in summary["counts"]:
        rows.setdefault(row["arm"], {}).setdefault(row["benchmark"], []).append(row["right"])
    problems = {name: tuple(ids) for name, ids in summary["problem_ids"].items()}
    return {
        arm: ScoreTable(arm, problems, {name: np.array(right)[:, :, None] > samples for name, right in found.items()})
        for arm, found in rows.items()
    }
