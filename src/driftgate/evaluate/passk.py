"""pass@k from counts of correct samples, and intervals that stay honest on thirty problems."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from driftgate.errors import InputError

_CELLS_AT_ONCE = 2**20
"""Random numbers held at a time (8 MiB), whatever the number of draws and problems."""


@dataclass(frozen=True)
class MeanInterval:
    """A mean, as a fraction of 1, with the ends of its interval; low <= mean <= high."""

    mean: float
    low: float
    high: float


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples hold one (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    Computed in whole numbers with one rounding at the end, so neither large nor small values lose digits.
    Raises InputError unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    if not 0 <= correct <= samples:
        raise InputError(f"correct={correct} of samples={samples}: give a count between 0 and samples")
    if not 1 <= k <= samples:
        raise InputError(f"pass@{k} from samples={samples} a problem: give k between 1 and samples")
    subsets = math.comb(samples, k)
    return (subsets - math.comb(samples - correct, k)) / subsets


def bootstrap_interval(
    values_by_benchmark: Mapping[str, Sequence[float]],
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Interval of the mean over benchmarks of their means over problems; one value a problem, within bounds.

    The Bayesian bootstrap over problems (Rubin 1981), separately in each benchmark: problems get Dirichlet
    weights in place of resampled counts. One pseudo-problem is added, half of it at either bound, shared
    out evenly between the benchmarks. With one benchmark and values of 0 and 1 this is exactly the interval
    of Jeffreys, which Brown, Cai and DasGupta (2001, Statistical Science 16) recommend for small n; as
    there, the ends are moved out to the plain mean where they would exclude it.

    Why not the percentile bootstrap: it has zero width when every value is the same (0 of 30 is no proof
    of 0 %), and it covers too rarely for shares near 0 or 1: on 30 problems of 0 and 1, averaged over all
    true shares, 88 % instead of 95 % and at worst 14 %; this interval has 95 % and at worst 89 %. A t
    interval and BCa share the first fault; Clopper-Pearson knows neither fractional values nor several
    benchmarks.

    The problems count as a sample of their kind, so the interval holds both the choice of problems and the
    randomness of the answers. It says nothing of training again with another seed. For differences
    between two models on the same problems give the differences and bounds=(-1, 1).

    Equal values share one weight, which has the same distribution and makes the cost follow the number of
    distinct values. The result depends on neither the order of problems nor that of benchmarks' entries.
    Raises InputError for no benchmarks, an empty one, values out of bounds, or draws or level out of range.
    """
    _check_interval_input(values_by_benchmark, draws, level, bounds)
    rng = np.random.default_rng(seed)
    pseudo = 0.5 / len(values_by_benchmark)
    per_benchmark = [
        _posterior_means(np.asarray(values_by_benchmark[name], dtype=np.float64), bounds, pseudo, draws, rng)
        for name in sorted(values_by_benchmark)
    ]
    low, high = np.quantile(np.mean(per_benchmark, axis=0), [(1 - level) / 2, (1 + level) / 2])
    mean = _macro_mean(values_by_benchmark)
    return min(float(low), mean), max(float(high), mean)


def summarise(
    counts: Mapping[str, Sequence[tuple[int, int]]],
    ks: Sequence[int] = (1, 8),
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, dict[str, float]]]:
    """Every pass@k of every benchmark, and under "mean" of their unweighted mean, ready for JSON.

    `counts` holds (correct, samples) for each problem of each benchmark. The result reads
    {"math500": {"pass@1": {"mean": 0.7, "low": 0.66, "high": 0.74}, ...}, ..., "mean": {...}}, as fractions
    of 1 with the intervals of `bootstrap_interval`. Raises InputError where a k exceeds a problem's samples,
    for a benchmark without problems, and for one named "mean".
    """
    values = {f"pass@{k}": {b: [pass_at_k(c, n, k) for c, n in part] for b, part in counts.items()} for k in ks}
    return estimates(values, draws, seed, level)


def estimates(
    values: Mapping[str, Mapping[str, Sequence[float]]], draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, dict[str, float]]]:
    """measure -> benchmark -> one value a problem, to benchmark or "mean" -> measure -> {"mean", "low", "high"}.

    Intervals and errors as of `summarise`, which does this for counts of correct samples.
    """
    benchmarks = list(next(iter(values.values())))
    if "mean" in benchmarks:
        raise InputError('a benchmark is named "mean", which names the mean over benchmarks: rename it')
    groups = {name: [name] for name in benchmarks} | {"mean": benchmarks}
    summary: dict[str, dict[str, dict[str, float]]] = {group: {} for group in groups}
    for measure, by_benchmark in values.items():
        for group, names in groups.items():
            chosen = {name: by_benchmark[name] for name in names}
            low, high = bootstrap_interval(chosen, draws, seed, level)
            summary[group][measure] = asdict(MeanInterval(_macro_mean(chosen), low, high))
    return summary


def _macro_mean(values_by_benchmark: Mapping[str, Sequence[float]]) -> float:
    """The plain mean over benchmarks of their means over problems."""
    return math.fsum(math.fsum(v) / len(v) for v in values_by_benchmark.values()) / len(values_by_benchmark)


def _posterior_means(
    values: np.ndarray, bounds: tuple[float, float], pseudo: float, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """[draws] means of one benchmark under Dirichlet weights, `pseudo` of a problem added at either bound."""
    atoms, weights = np.unique(np.concatenate([bounds, values]), return_counts=True)
    shapes = weights.astype(np.float64)
    shapes[[0, -1]] += pseudo - 1.0  # the bounds are the first and last atom; each was counted once too often
    means = np.empty(draws)
    rows = max(1, _CELLS_AT_ONCE // len(atoms))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        gammas = rng.standard_gamma(shapes, size=(count, len(atoms)))
        means[start : start + count] = gammas @ atoms / gammas.sum(axis=1)
    return means


def _check_interval_input(
    values_by_benchmark: Mapping[str, Sequence[float]], draws: int, level: float, bounds: tuple[float, float]
) -> None:
    """Raise InputError for what `bootstrap_interval` cannot take."""
    if not values_by_benchmark:
        raise InputError("no benchmarks to take an interval over: give at least one")
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"draws={draws}, level={level}: give draws of at least 1 and a level within (0, 1)")
    if not bounds[0] < bounds[1]:
        raise InputError(f"bounds={bounds}: give the lower bound first")
    for name, values in values_by_benchmark.items():
        if len(values) == 0:
            raise InputError(f"benchmark {name!r} has no problems: leave it out")
        if not all(bounds[0] <= value <= bounds[1] for value in values):  # also false for nan
            raise InputError(f"benchmark {name!r} has values outside {bounds}: give the right bounds")
