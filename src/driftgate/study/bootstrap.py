"""The paired hierarchical bootstrap: problems are drawn again, then training seeds, then samples."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..evaluate.passk import pass_at_k
from .cochran import quantile
from .two_way import TwoWayMean

_CELLS_AT_ONCE = 2**21


def bootstrap_differences(
    arm: Sequence[np.ndarray], base: Sequence[np.ndarray], ks: Sequence[int], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """float64 [draws]: the macro difference in pass@k, each time on problems, seeds and samples drawn with replacement.

    arm, base: a benchmark an entry, bool [seeds, problems, samples]; ks: k of each. The same problems, seeds and
    samples are drawn for both. One draw of seeds serves all problems and benchmarks, as a training seed shifts them
    together; drawn anew for each problem, that shift would average out and the interval be far too narrow. Each
    drawn pair of seed and problem draws its own samples.
    """
    seeds = base[0].shape[0]
    seed_rows = rng.integers(seeds, size=(draws, seeds))
    total = np.zeros(draws)
    for arm_part, base_part, k in zip(arm, base, ks):
        _, problems, samples = base_part.shape
        table = _difference_table(samples, k)
        codes = (arm_part.astype(np.int32) * (samples + 1) + base_part).ravel()
        rows = max(1, _CELLS_AT_ONCE // base_part.size)
        for start in range(0, draws, rows):
            chosen = seed_rows[start : start + rows]
            columns = rng.integers(problems, size=(len(chosen), 1, problems))
            cells = (chosen[:, :, None] * problems + columns) * samples
            picks = rng.integers(samples, size=(*cells.shape, samples), dtype=np.int32)
            counts = codes[cells[..., None] + picks].sum(axis=-1)
            total[start : start + rows] += table[counts].mean(axis=(1, 2))
    return total / len(base)


def corrected_interval(mean: TwoWayMean, differences: np.ndarray) -> tuple[float, float]:
    """95 % interval from bootstrap draws [draws], their distances from the mean stretched for few seeds.

    Drawing S seeds from S has (S - 1) / S of the variance between seeds, and its percentiles are those of a normal,
    not of a t distribution: hence sqrt(S / (S - 1)), and the ratio of the quantiles. Crossed resampling counts the
    noise of single answers several times (Owen 2007, Annals of Applied Statistics 1, 386), so that the interval is
    too wide where seeds differ little.
    """
    seeds = mean.df_seeds + 1
    stretch = math.sqrt(seeds / (seeds - 1)) * float(quantile(mean, 0.025)) / stats.norm.isf(0.025)
    low, high = np.quantile(differences, [0.025, 0.975]) - float(mean.mean)
    return float(mean.mean + stretch * low), float(mean.mean + stretch * high)


def _difference_table(samples: int, k: int) -> np.ndarray:
    """float64 [(samples + 1)^2]: pass@k of arm minus base at arm's count * (samples + 1) + base's count."""
    values = np.array([pass_at_k(c, samples, k) for c in range(samples + 1)])
    return (values[:, None] - values[None, :]).ravel()
