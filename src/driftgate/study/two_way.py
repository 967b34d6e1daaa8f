"""A mean over training seeds and problems with its error: two crossed random effects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TwoWayMean:
    """Each entry is a float64 array of the leading shape [...] of the values, [] for one table."""

    mean: np.ndarray
    se: np.ndarray
    """Standard error over fresh seeds, fresh problems of the same kind, and fresh samples."""
    seed_share: np.ndarray
    """Which part of the two terms of se^2 is known from the seeds alone, 0 to 1."""
    df_seeds: float
    """Degrees of freedom of that share: seeds - 1."""
    df_problems: np.ndarray
    """Those of the rest (Satterthwaite over benchmarks)."""


def two_way_mean(values: Sequence[np.ndarray]) -> TwoWayMean:
    """The mean over benchmarks of the mean over problems and seeds, from values[b] float64 [..., seeds, problems_b].

    Model: v[s, p] = mean_b + seed effect(s, b) + problem effect(p) + rest(s, p), all random and independent between
    seeds and between problems; the rest holds seed x problem and the randomness of the samples; a seed's effects on
    several benchmarks may go together. With B benchmarks and m_s the macro mean of seed s,

        Var(mean) = Var_s(m_s) / S  +  max(0, sum_b (Var_p(mean over s) - MSE_b / S) / (P_b B^2)).

    The first term is unbiased for what seeds, rest and samples add, the second for what the choice of problems
    adds; MSE_b is the mean square of the rest of benchmark b in the two-way analysis of variance (Searle, Casella
    and McCulloch 1992, Variance Components, ch. 4). The sum is never taken as less than what the rest alone adds,
    sum_b MSE_b / (S P_b B^2), which is well known: a few seeds that happen to agree are no proof that seeds do.
    Needs at least 2 seeds and 2 problems a benchmark.
    """
    seeds, benchmarks = values[0].shape[-2], len(values)
    per_seed = seed_means(values)
    problems = [v.shape[-1] * benchmarks**2 for v in values]
    spread = [v.mean(axis=-2).var(axis=-1, ddof=1) / p for v, p in zip(values, problems)]
    noise = [_rest_mean_square(v) / (seeds * p) for v, p in zip(values, problems)]
    from_seeds = per_seed.var(axis=-1, ddof=1) / seeds
    from_problems = np.maximum(0.0, sum(spread) - sum(noise))
    variance = from_seeds + from_problems
    share = np.divide(from_seeds, variance, out=np.ones_like(variance), where=variance > 0)
    weighed = np.asarray(sum(s**2 / (v.shape[-1] - 1) for s, v in zip(spread, values)))
    least = float(min(v.shape[-1] - 1 for v in values))
    df_problems = np.divide(sum(spread) ** 2, weighed, out=np.full_like(variance, least), where=weighed > 0)
    se = np.sqrt(np.maximum(variance, sum(noise)))
    return TwoWayMean(per_seed.mean(axis=-1), se, share, seeds - 1.0, df_problems)


def seed_means(values: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [..., seeds]: each seed's mean over benchmarks of its means over problems."""
    return np.asarray(sum(v.mean(axis=-1) for v in values)) / len(values)


def _rest_mean_square(values: np.ndarray) -> np.ndarray:
    """[...]: what neither seed nor problem explains in [..., seeds, problems], per degree of freedom."""
    seeds, problems = values.shape[-2:]
    rows, columns = values.mean(axis=-1, keepdims=True), values.mean(axis=-2, keepdims=True)
    rest = values - rows - columns + rows.mean(axis=-2, keepdims=True)
    return (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (problems - 1))
