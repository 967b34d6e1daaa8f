"""Arms against a base, by measure: the difference with everything a verdict needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..evaluate.passk import MeanWithInterval, bootstrap_interval
from ..keyed import generator
from .bootstrap import bootstrap_differences, corrected_interval
from .cochran import effective_df
from .permutation import sign_flip_p
from .scores import ScoreTable, require_same_problems, samples_needed, values_of
from .statistics import equivalence_interval, holm, interval, p_equivalence, p_two_sided, smallest_detectable
from .two_way import TwoWayMean, seed_means, two_way_mean

BOOTSTRAP_DRAWS = 2_000
_NO_VARIATION = 1e-12
"""A standard error that is a rounding error."""


@dataclass(frozen=True)
class Comparison:
    """Arm minus base in one measure, as fractions of 1, macro mean over benchmarks.

    Where there is one training seed, or no variation at all, low and high cover the choice of problems only and
    everything about tests is None.
    """

    arm: str
    against: str
    measure: str
    difference: float
    low: float
    """95 % interval over training seeds, problems and samples."""
    high: float
    margin: float
    per_seed: list[float]
    p: float | None = None
    """Two-sided, of "no difference"; below 0.05 exactly where the interval excludes 0."""
    p_holm: float | None = None
    """The same, adjusted for all that are compared together in the same measure."""
    p_permutation: float | None = None
    least_p_permutation: float | None = None
    """What the permutation test cannot go below with so few seeds."""
    p_equivalence: float | None = None
    """Of "the difference is margin or more"; below 0.05 exactly where the 90 % interval lies within the margin."""
    p_equivalence_holm: float | None = None
    """The same, adjusted as p_holm is; below 0.05 shows equivalence."""
    low_90: float | None = None
    """90 % interval, the one that goes with p_equivalence."""
    high_90: float | None = None
    detectable: float | None = None
    """The true difference that this design finds in 4 of 5 studies."""
    se: float | None = None
    df: float | None = None
    bootstrap_low: float | None = None
    """95 % interval of the paired hierarchical bootstrap, corrected for few seeds, pass@1 only; decides nothing."""
    bootstrap_high: float | None = None


def compare_arms(
    arms: Mapping[str, ScoreTable],
    against: str,
    measures: Sequence[str] = ("pass@1", "pass@8"),
    margin: float = 0.02,
    seed: int = 0,
) -> list[Comparison]:
    """Every other arm minus `against`, a Comparison for each measure and arm, in that order.

    Seeds are paired in their order: give every arm the same training seeds. Raises InputError for arms whose seeds,
    problems or samples differ, a measure that cannot be had, a base that is not among the arms, and a margin out of
    range. `seed` keys the bootstrap, and the permutation test where it is drawn.
    """
    _check(arms, against, measures, margin)
    others = [arm for arm in arms if arm != against]
    return with_holm([_compare(arms, arm, against, measure, margin, seed) for measure in measures for arm in others])


def with_holm(comparisons: Sequence[Comparison], planned: int | None = None) -> list[Comparison]:
    """The same with p_holm and p_equivalence_holm: adjusted for all that are given together, within each measure.

    Tests of difference and tests of equivalence are two families, each adjusted by itself.
    planned: comparisons in each measure, if not all that were planned are given.
    """
    difference = _adjusted([(c.measure, c.p) for c in comparisons], planned)
    equivalence = _adjusted([(c.measure, c.p_equivalence) for c in comparisons], planned)
    return [
        replace(c, p_holm=p, p_equivalence_holm=p_equivalence)
        for c, p, p_equivalence in zip(comparisons, difference, equivalence)
    ]


def _adjusted(tests: Sequence[tuple[str, float | None]], planned: int | None) -> list[float | None]:
    """Each (measure, p) adjusted by Holm within its measure; None stays."""
    families: dict[str, list[float]] = {}
    for measure, p in tests:
        if p is not None:
            families.setdefault(measure, []).append(p)
    adjusted = {measure: iter(holm(p_values, planned)) for measure, p_values in families.items()}
    return [None if p is None else next(adjusted[measure]) for measure, p in tests]


def arm_scores(scores: ScoreTable, measure: str) -> dict[str, MeanWithInterval]:
    """A measure of one arm by benchmark, and under "mean" over benchmarks, with 95 % intervals over seeds and problems.

    Never narrower than `bootstrap_interval` over problems alone, which also serves where there is one seed.
    """
    values = values_of(scores, measure)
    return {name: _estimate({name: part}) for name, part in values.items()} | {"mean": _estimate(values)}


def _check(arms: Mapping[str, ScoreTable], against: str, measures: Sequence[str], margin: float) -> None:
    if against not in arms or len(arms) < 2:
        raise InputError(f"against={against}, arms {', '.join(arms)}: give a base and at least one arm beside it")
    if not measures or len(set(measures)) < len(measures):
        raise InputError(f"--measure {', '.join(measures)}: give at least one, and none twice")
    if not 0 < margin < 1:
        raise InputError(f"--margin {margin}: give a difference as a fraction of 1, such as 0.02 for 2 points")
    base = arms[against]
    for scores in arms.values():
        require_same_problems(scores, base)
        if scores.seeds != base.seeds:
            raise InputError(
                f"{scores.name}: {scores.seeds} training seeds, {base.seeds} in {base.name}; seeds are compared in "
                "pairs, so give those that both have"
            )
        for measure in measures:
            values_of(scores, measure)


def _compare(
    arms: Mapping[str, ScoreTable], arm: str, against: str, measure: str, margin: float, seed: int
) -> Comparison:
    ours, theirs = values_of(arms[arm], measure), values_of(arms[against], measure)
    differences = {name: ours[name] - theirs[name] for name in sorted(ours)}
    tables = list(differences.values())
    per_seed = seed_means(tables)
    mean = two_way_mean(tables) if len(per_seed) > 1 else None
    if mean is None or mean.se <= _NO_VARIATION:
        low, high = bootstrap_interval({n: d.mean(axis=0).tolist() for n, d in differences.items()}, bounds=(-1, 1))
        difference = float(per_seed.mean())
        return Comparison(arm, against, measure, difference, low, high, margin, per_seed.tolist())
    (low, high), (low_90, high_90) = interval(mean), equivalence_interval(mean)
    p_permutation, least = sign_flip_p(per_seed, seed)
    bootstrap = _bootstrap(arms[arm], arms[against], measure, mean, seed)
    return Comparison(
        arm=arm,
        against=against,
        measure=measure,
        difference=float(mean.mean),
        low=float(low),
        high=float(high),
        p=float(p_two_sided(mean)),
        p_permutation=p_permutation,
        least_p_permutation=least,
        p_equivalence=float(p_equivalence(mean, margin)),
        low_90=float(low_90),
        high_90=float(high_90),
        margin=margin,
        detectable=float(smallest_detectable(mean)),
        se=float(mean.se),
        df=float(effective_df(mean)),
        per_seed=per_seed.tolist(),
        bootstrap_low=bootstrap[0],
        bootstrap_high=bootstrap[1],
    )


def _bootstrap(
    arm: ScoreTable, base: ScoreTable, measure: str, mean: TwoWayMean, seed: int
) -> tuple[float | None, float | None]:
    """For pass@1 only: samples drawn again from few hold fewer different ones, which biases pass@k."""
    names = sorted(base.correct)
    ks = [samples_needed(measure, base.correct[name].shape[2], name) for name in names]
    if max(ks) > 1:
        return None, None
    draws = bootstrap_differences(
        [arm.correct[name] for name in names],
        [base.correct[name] for name in names],
        ks,
        BOOTSTRAP_DRAWS,
        generator(seed, "compare", "bootstrap"),
    )
    return corrected_interval(mean, draws)


def _estimate(values: Mapping[str, np.ndarray]) -> MeanWithInterval:
    """The macro mean of float64 [seeds, problems] per benchmark, its ends within 0 and 1."""
    tables = list(values.values())
    mean = float(seed_means(tables).mean())
    low, high = bootstrap_interval({name: _clipped(part.mean(axis=0)) for name, part in values.items()})
    if len(tables[0]) > 1:
        ends = interval(two_way_mean(tables))
        low, high = min(low, max(0.0, float(ends[0]))), max(high, min(1.0, float(ends[1])))
    return MeanWithInterval(mean, min(low, mean), max(high, mean))


def _clipped(values: np.ndarray) -> list[float]:
    """A mean of ones can come out a rounding above 1."""
    return np.clip(values, 0.0, 1.0).tolist()
