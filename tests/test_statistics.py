"""The statistics of a comparison against slow twins in plain loops, and against a truth that is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from driftgate.study.bootstrap import bootstrap_differences, corrected_interval
from driftgate.study.cochran import effective_df, quantile, upper_tail
from driftgate.study.permutation import sign_flip_p
from driftgate.study.statistics import (
    equivalence_interval,
    holm,
    interval,
    p_equivalence,
    p_two_sided,
    smallest_detectable,
)
from driftgate.study.two_way import TwoWayMean, two_way_mean


def tables(rng, seeds, problems=(6, 9), seed_sd=0.1, problem_sd=0.2, rest_sd=0.3, studies=()):
    """A table a benchmark, [..., seeds, problems], the seeds' effects shared by the benchmarks."""
    shift = seed_sd * rng.standard_normal((*studies, seeds, 1))
    return [
        shift
        + problem_sd * rng.standard_normal((*studies, 1, count))
        + rest_sd * rng.standard_normal((*studies, seeds, count))
        for count in problems
    ]


def slow_two_way(values):
    """(mean, variance, share of the seeds) by the sums of squares of the analysis of variance, in loops."""
    seeds, benchmarks = len(values[0]), len(values)
    macro = [sum(sum(table[s]) / len(table[s]) for table in values) / benchmarks for s in range(seeds)]
    mean = sum(macro) / seeds
    from_seeds = sum((m - mean) ** 2 for m in macro) / (seeds - 1) / seeds
    from_problems = rest = 0.0
    for table in values:
        problems = len(table[0])
        rows = [sum(row) / problems for row in table]
        columns = [sum(table[s][p] for s in range(seeds)) / seeds for p in range(problems)]
        grand = sum(rows) / seeds
        total = sum((table[s][p] - grand) ** 2 for s in range(seeds) for p in range(problems))
        by_row = problems * sum((r - grand) ** 2 for r in rows)
        by_column = seeds * sum((c - grand) ** 2 for c in columns)
        error = (total - by_row - by_column) / ((seeds - 1) * (problems - 1))
        component = (by_column / (problems - 1) - error) / seeds  # E[MS columns] = error + seeds * component
        from_problems += component / (problems * benchmarks**2)
        rest += error / (seeds * problems * benchmarks**2)
    both = from_seeds + max(0.0, from_problems)
    return mean, max(both, rest), from_seeds / both


@pytest.mark.parametrize("seeds", [2, 3, 7])
@pytest.mark.parametrize("problem_sd", [0.0, 0.5])
def test_the_two_way_mean_is_that_of_the_analysis_of_variance(seeds, problem_sd):
    for key in range(10):
        values = tables(np.random.default_rng(key), seeds, problem_sd=problem_sd)
        fast, (mean, variance, share) = two_way_mean(values), slow_two_way([v.tolist() for v in values])
        assert fast.mean == pytest.approx(mean, abs=1e-12)
        assert fast.se**2 == pytest.approx(variance, rel=1e-9)
        assert fast.seed_share == pytest.approx(share, rel=1e-9)


def test_seeds_that_agree_by_chance_do_not_make_a_narrow_interval():
    noisy = np.random.default_rng(0).standard_normal((3, 50))
    noisy -= noisy.mean(axis=1, keepdims=True)  # every seed's mean is 0, so their spread is too
    assert two_way_mean([noisy]).se > 0.8 / math.sqrt(3 * 50)


def test_its_variance_is_unbiased():
    rng, problems = np.random.default_rng(0), (20, 30)
    mean = two_way_mean(tables(rng, 4, problems, 0.1, 0.4, 0.3, studies=(20_000,)))
    each = (0.4**2 + 0.3**2 / 4) * sum(1 / p for p in problems) / 4
    assert np.mean(mean.se**2) == pytest.approx(0.1**2 / 4 + each, rel=0.02)
    assert np.var(mean.mean) == pytest.approx(0.1**2 / 4 + each, rel=0.04)


def test_many_studies_at_once_are_each_study_alone():
    values = tables(np.random.default_rng(1), 3, studies=(5,))
    together = two_way_mean(values)
    p, detectable = p_two_sided(together), smallest_detectable(together)
    for i in range(5):
        alone = two_way_mean([v[i] for v in values])
        assert alone.se == together.se[i]
        assert p_two_sided(alone) == pytest.approx(p[i], rel=1e-12)
        assert smallest_detectable(alone) == pytest.approx(detectable[i], rel=1e-12)


def test_order_of_seeds_problems_and_benchmarks_is_nothing():
    rng = np.random.default_rng(2)
    values = tables(rng, 4)
    seeds = rng.permutation(4)
    moved = [v[seeds][:, rng.permutation(v.shape[1])] for v in values][::-1]
    for look in (interval, p_two_sided, effective_df, smallest_detectable):
        assert look(two_way_mean(moved)) == pytest.approx(look(two_way_mean(values)), rel=1e-9)


def test_adding_a_constant_moves_the_interval_and_keeps_its_width():
    values = tables(np.random.default_rng(3), 3)
    before, after = interval(two_way_mean(values)), interval(two_way_mean([v + 0.25 for v in values]))
    assert np.subtract(after, before) == pytest.approx([0.25, 0.25], abs=1e-9)


def t_test(values, *args, **options):
    """The p of scipy's t test of one sample."""
    return np.asarray(stats.ttest_1samp(values, *args, **options))[1]


def test_without_spread_between_problems_it_is_the_t_test_over_seeds():
    """All problems alike in a seed: only seeds count, so scipy's t tests on the seeds' means are the twin."""
    per_seed = np.array([0.05, 0.01, 0.04, -0.01])
    mean = two_way_mean([np.repeat(per_seed[:, None], 10, axis=1)])
    assert p_two_sided(mean) == pytest.approx(t_test(per_seed, 0.0), rel=1e-9)
    ends = stats.ttest_1samp(per_seed, 0.0).confidence_interval(0.95)
    assert interval(mean) == pytest.approx([ends.low, ends.high], rel=1e-9)
    assert effective_df(mean) == pytest.approx(3, rel=1e-6)
    for margin in (0.02, 0.1):
        below = t_test(per_seed, margin, alternative="less")
        above = t_test(per_seed, -margin, alternative="greater")
        assert p_equivalence(mean, margin) == pytest.approx(max(below, above), rel=1e-9)


def mixed(share, df_seeds=2.0, df_problems=150.0, mean=0.0, se=1.0):
    return TwoWayMean(np.array(mean), np.array(se), np.array(share), df_seeds, np.array(df_problems))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_tail_is_the_inverse_of_the_quantile(share):
    for tail in (0.4, 0.025, 1e-4):
        assert upper_tail(mixed(share), quantile(mixed(share), tail)) == pytest.approx(tail, rel=1e-9)
        assert upper_tail(mixed(share), -quantile(mixed(share), tail)) == pytest.approx(1 - tail, rel=1e-9)


def test_it_is_students_t_where_one_part_is_everything():
    assert quantile(mixed(1.0), 0.025) == pytest.approx(4.302653, abs=1e-6)
    assert quantile(mixed(0.0), 0.025) == pytest.approx(stats.t.isf(0.025, 150))
    assert 2 < effective_df(mixed(0.5)) < 150


def test_p_is_below_5_percent_exactly_where_the_interval_excludes_0():
    means = np.linspace(-4, 4, 401)
    mean = TwoWayMean(means, np.ones(401), np.full(401, 0.4), 2.0, np.full(401, 80.0))
    low, high = interval(mean)
    assert ((low > 0) | (high < 0)).tolist() == (p_two_sided(mean) < 0.05).tolist()


def test_equivalence_is_below_5_percent_exactly_where_the_90_percent_interval_is_within_the_margin():
    means = np.linspace(-4, 4, 401)
    mean = TwoWayMean(means, np.ones(401), np.full(401, 0.4), 2.0, np.full(401, 80.0))
    low, high = equivalence_interval(mean)
    equivalent = (p_equivalence(mean, 3.5) < 0.05).tolist()
    assert ((low > -3.5) & (high < 3.5)).tolist() == equivalent
    assert 0 < sum(equivalent) < 401
    assert (high - low < interval(mean)[1] - interval(mean)[0]).all()


def test_the_90_percent_interval_is_student_s_where_only_seeds_count():
    per_seed = np.array([0.05, 0.01, 0.04, -0.01])
    ends = stats.ttest_1samp(per_seed, 0.0).confidence_interval(0.90)
    mean = two_way_mean([np.repeat(per_seed[:, None], 10, axis=1)])
    assert equivalence_interval(mean) == pytest.approx([ends.low, ends.high], rel=1e-9)


def test_false_equivalence_stays_at_five_percent_over_a_family():
    rng, families = np.random.default_rng(11), []
    for _ in range(3):  # three arms exactly at the margin, independent
        values = tables(rng, 5, (40, 40), 0.01, 0.0, 0.1, studies=(2_000,))
        families.append(p_equivalence(two_way_mean([v + 0.04 for v in values]), 0.04))
    rows = np.transpose(families)
    assert np.mean([min(holm(row)) < 0.05 for row in rows]) < 0.065
    assert np.mean((rows < 0.05).any(axis=1)) > 0.08  # what it would be without the correction


def test_the_smallest_detectable_effect_is_found_in_four_of_five_studies():
    per_seed = 0.1 * np.random.default_rng(0).standard_normal((40_000, 3))
    effect = float(smallest_detectable(mixed(1.0, se=0.1 / math.sqrt(3))))
    assert effect > 0.1 / math.sqrt(3) * (4.3 + 0.8)  # far more than the 2.8 errors of a normal
    assert np.mean(t_test(per_seed + effect, 0.0, axis=1) < 0.05) == pytest.approx(0.8, abs=0.01)


def slow_sign_flip(per_seed):
    seen = abs(sum(per_seed))
    flips = list(itertools.product((1, -1), repeat=len(per_seed)))
    return sum(abs(sum(s * d for s, d in zip(signs, per_seed))) >= seen - 1e-12 for signs in flips) / len(flips)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 8])
def test_the_permutation_test_counts_all_exchanges(seeds):
    for key in range(5):
        per_seed = np.random.default_rng(key).normal(0.05, 0.1, seeds)
        p, least = sign_flip_p(per_seed)
        assert p == slow_sign_flip(per_seed.tolist())
        assert p >= least == 2 / 2**seeds
    assert sign_flip_p(np.full(seeds, 0.1))[0] == 2 / 2**seeds
    assert sign_flip_p(np.zeros(seeds))[0] == 1


def test_with_many_seeds_it_is_drawn_and_close_to_all_exchanges():
    per_seed = np.random.default_rng(0).normal(0.05, 0.1, 14)
    p, least = sign_flip_p(per_seed)
    assert p == pytest.approx(slow_sign_flip(per_seed.tolist()), abs=4 * math.sqrt(p / 10_000))
    assert sign_flip_p(np.full(30, 0.1))[0] == least == 1 / 10_001
    assert sign_flip_p(per_seed, 7) == sign_flip_p(per_seed, 7)


def slow_holm(p_values):
    """Step by step: the smallest first, each times the number left, never below the one before."""
    left, adjusted, last = dict(enumerate(p_values)), {}, 0.0
    while left:
        best = min(left, key=lambda i: left[i])
        last = max(last, min(1.0, left[best] * len(left)))
        adjusted[best] = last
        del left[best]
    return [adjusted[i] for i in range(len(p_values))]


def test_holm_is_the_step_down_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04], tests=5) == pytest.approx([0.05, 0.16])
    for key in range(20):
        p_values = np.random.default_rng(key).uniform(0, 1, 6).tolist()
        assert holm(p_values) == pytest.approx(slow_holm(p_values))
    assert holm([]) == []


def studies_that_cover(draw_half_width, seed_sd, seeds=3, studies=4_000):
    mean = two_way_mean(tables(np.random.default_rng(4), seeds, (40, 40), seed_sd, studies=(studies,)))
    return float(np.mean(np.abs(mean.mean) <= draw_half_width(mean)))


@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 0.3])
def test_the_interval_covers_with_three_seeds(seed_sd):
    assert 0.94 <= studies_that_cover(lambda m: quantile(m, 0.025) * m.se, seed_sd) <= 0.98


def test_an_interval_that_ignores_seeds_would_not():
    """The test above can fail: without the seeds' part hardly a study in two covers."""
    assert studies_that_cover(lambda m: 1.96 * m.se * np.sqrt(1 - m.seed_share), 0.3) < 0.5


def test_false_positives_stay_at_five_percent_over_a_family():
    rng, families = np.random.default_rng(5), []
    for _ in range(3):  # three arms, independent: the case in which Holm is least cautious
        families.append(p_two_sided(two_way_mean(tables(rng, 3, (30, 30), 0.1, studies=(1_500,)))))
    assert np.mean([min(holm(row)) < 0.05 for row in np.transpose(families)]) < 0.065


def test_equivalence_is_seldom_found_at_the_margin_and_often_at_zero():
    values = tables(np.random.default_rng(6), 5, (40, 40), 0.01, 0.0, 0.1, studies=(3_000,))
    assert np.mean(p_equivalence(two_way_mean([v + 0.04 for v in values]), 0.04) < 0.05) < 0.065
    assert np.mean(p_equivalence(two_way_mean(values), 0.04) < 0.05) > 0.8


def test_the_90_percent_interval_lies_within_the_margin_exactly_where_equivalence_is_found():
    """The 95 % interval of a comparison that is equivalent at 5 % may leave the margin; this one may not."""
    mean = two_way_mean(tables(np.random.default_rng(8), 4, (30, 30), 0.02, 0.0, 0.1, studies=(2_000,)))
    (low, high), (wide_low, wide_high) = equivalence_interval(mean), interval(mean)
    found = p_equivalence(mean, 0.05) < 0.05
    assert np.array_equal(found, (low > -0.05) & (high < 0.05))
    assert 0.1 < found.mean() < 0.9
    assert (found & ((wide_low <= -0.05) | (wide_high >= 0.05))).any()


def slow_bootstrap(arm, base, draws, rng):
    """One draw after another, one sample after another, pass@1."""
    seeds, problems, samples = arm.shape
    for _ in range(draws):
        chosen, total = rng.integers(seeds, size=seeds), 0.0
        for p in rng.integers(problems, size=problems):
            for s in chosen:
                for n in rng.integers(samples, size=samples):
                    total += (int(arm[s, p, n]) - int(base[s, p, n])) / (seeds * problems * samples)
        yield total


def test_the_bootstrap_draws_problems_seeds_and_samples():
    rng = np.random.default_rng(7)
    arm, base = rng.random((3, 5, 4)) < np.array([0.2, 0.5, 0.9])[:, None, None], rng.random((3, 5, 4)) < 0.4
    fast = bootstrap_differences([arm], [base], [1], 20_000, rng)
    slow = list(slow_bootstrap(arm, base, 4_000, rng))
    assert np.mean(fast) == pytest.approx(arm.mean() - base.mean(), abs=0.01)
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.06)
    assert np.quantile(fast, [0.025, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.04)


def test_the_bootstrap_is_paired_and_of_its_measure():
    rng = np.random.default_rng(8)
    same = rng.random((3, 20, 8)) < 0.5
    assert not bootstrap_differences([same], [same], [1], 50, rng).any()
    all_but_one = np.ones((2, 4, 8), dtype=bool)
    all_but_one[..., 0] = False  # pass@8 is certain in arm and base, whatever is drawn but eight times sample 0
    assert np.abs(bootstrap_differences([all_but_one], [~all_but_one], [8], 50, rng)).max() < 1
    assert bootstrap_differences([all_but_one], [np.zeros_like(all_but_one)], [8], 50, rng).min() > 0.9


def test_few_seeds_stretch_the_bootstrap():
    draws = np.random.default_rng(9).normal(0.1, 1.0, 100_000)
    low, high = corrected_interval(mixed(1.0, mean=0.1), draws)
    half = 1.959964 * math.sqrt(3 / 2) * 4.302653 / 1.959964
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), rel=0.02)
