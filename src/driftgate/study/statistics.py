"""Interval, tests and power of a two-way mean, and Holm's correction over several."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .cochran import bisect, effective_df, quantile, upper_tail
from .two_way import TwoWayMean

POWER = 0.8
LEVEL = 0.05


def interval(mean: TwoWayMean, tail: float = LEVEL / 2) -> tuple[np.ndarray, np.ndarray]:
    """([...], [...]): the ends of the interval that leaves out `tail` on either side; 95 % unless told otherwise."""
    half = quantile(mean, tail) * mean.se
    return mean.mean - half, mean.mean + half


def equivalence_interval(mean: TwoWayMean) -> tuple[np.ndarray, np.ndarray]:
    """([...], [...]): the ends of the 90 % interval; within the margin exactly where `p_equivalence` is below 0.05.

    90 and not 95 %, because each of the two one-sided tests leaves out 5 % on its own side (Schuirmann 1987).
    """
    return interval(mean, LEVEL)


def p_two_sided(mean: TwoWayMean) -> np.ndarray:
    """[...]: of the hypothesis that the mean is 0; below 0.05 exactly where `interval` excludes 0. Needs se > 0."""
    return np.minimum(1.0, 2 * upper_tail(mean, np.abs(mean.mean) / mean.se))


def p_equivalence(mean: TwoWayMean, margin: float) -> np.ndarray:
    """[...]: of the hypothesis that the mean lies margin or more away from 0, on either side; needs se > 0.

    Two one-sided tests, the larger p of both (Schuirmann 1987, J. Pharmacokin. Biopharm. 15, 657).
    """
    return upper_tail(mean, (margin - np.abs(mean.mean)) / mean.se)


def smallest_detectable(mean: TwoWayMean) -> np.ndarray:
    """[...]: the true difference that the two-sided 5 % test finds in 80 % of studies of this design.

    By the noncentral t distribution, with se and `effective_df` as estimated: itself an estimate, and with 3 seeds
    a rough one.
    """
    df, critical = effective_df(mean), quantile(mean, LEVEL / 2)

    def surplus_power(shift: np.ndarray) -> np.ndarray:
        return stats.nct.sf(critical, df, shift) - POWER

    return bisect(surplus_power, np.zeros_like(critical), critical + 10.0) * mean.se


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Adjusted for testing all of them: the chance of any false positive stays below the level each is read at.

    tests: how many were planned, where some could not be made; those count as if they had found nothing.

    Holm (1979, Scandinavian Journal of Statistics 6, 65); valid under any dependence, such as a shared base.
    """
    order = np.argsort(p_values)
    planned = len(order) if tests is None else tests
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(planned, planned - len(order), -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()
