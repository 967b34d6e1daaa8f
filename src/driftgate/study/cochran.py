"""The distribution of (mean - truth) / se where se^2 is a sum of two estimates of unequal quality.

Cochran (1964, Biometrics 20, 191): the quantile is the mean of the two t quantiles, weighted by the estimates' shares,

    t(q) = share * t(q; df_seeds) + (1 - share) * t(q; df_problems).

It is exact where either share is 1. Satterthwaite's single t is narrower and covers too rarely with 3 seeds, because
a seed variance that came out small by chance then also counts as well known (figures in docs/statistics.md).
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from .two_way import TwoWayMean


def quantile(mean: TwoWayMean, tail: float | np.ndarray) -> np.ndarray:
    """[...]: the point that is exceeded with chance `tail`, above 0 and at most 0.5."""
    return mean.seed_share * stats.t.isf(tail, mean.df_seeds) + (1 - mean.seed_share) * stats.t.isf(
        tail, mean.df_problems
    )


def upper_tail(mean: TwoWayMean, point: np.ndarray) -> np.ndarray:
    """[...]: the chance to exceed `point`; the inverse of `quantile`, by bisection. Chances below 1e-100 read so."""
    distance = np.abs(point)
    scores = bisect(lambda z: quantile(mean, stats.norm.sf(z)) - distance, np.zeros_like(distance), 21.0)
    tail = stats.norm.sf(scores)
    return np.where(point >= 0, tail, 1 - tail)


def effective_df(mean: TwoWayMean) -> np.ndarray:
    """[...]: degrees of freedom of the one t distribution with the same 97.5 % point."""
    point = quantile(mean, 0.025)
    inverse = bisect(lambda x: stats.t.isf(0.025, 1 / x) - point, np.full_like(point, 1e-9), 1.0)
    return 1 / inverse


def bisect(
    rising: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: float | np.ndarray, steps: int = 60
) -> np.ndarray:
    """[...]: where each entry of a rising function crosses 0 between low and high; the nearer end where it does not."""
    high = np.full_like(low, high)
    for _ in range(steps):
        middle = (low + high) / 2
        above = rising(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
