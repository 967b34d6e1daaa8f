"""Right answers of a study as counts [arm, seed, problem]: what a summary carries, so that anybody can fit it again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .scores import ScoreTable


def counts_of(scores: ScoreTable) -> dict[str, list[list[int]]]:
    """benchmark -> a row a training seed, of the right answers to each problem."""
    return {name: correct.sum(axis=2).tolist() for name, correct in scores.correct.items()}


def tables_of(summary: Mapping[str, Any]) -> dict[str, ScoreTable]:
    """arm -> its scores, from the counts in a study's summary, ready for `compare.compare_arms`.

    Everything follows from counts but which of a problem's answers were right: here the first so many. Only the
    bootstrap, which draws the same answers of both arms, depends on it, and comes out a little otherwise.
    Raises KeyError for a summary that was written before there were counts.
    """
    samples, problems = summary["samples"], {name: tuple(ids) for name, ids in summary["problem_ids"].items()}
    return {
        arm: ScoreTable(arm, problems, {name: _first(np.array(rows), samples) for name, rows in by_benchmark.items()})
        for arm, by_benchmark in summary["counts"].items()
    }


def _first(counts: np.ndarray, samples: int) -> np.ndarray:
    """bool [seeds, problems, samples] from int [seeds, problems]."""
    return np.arange(samples) < counts[..., None]
