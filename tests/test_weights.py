"""The steps between a signal and a weight against loop twins, and the facts that they promise."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from twins import by_row, rows_of

from driftgate.method import weights as steps

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=8)
SEEDS = st.integers(0, 10**6)
QUICK = settings(max_examples=40, deadline=None)
REDUCERS = {
    "mean": lambda v: math.fsum(v) / len(v),
    "abs_mean": lambda v: abs(math.fsum(v) / len(v)),
    "mean_abs": lambda v: math.fsum(abs(x) for x in v) / len(v),
    "rms": lambda v: math.sqrt(math.fsum(x * x for x in v) / len(v)),
    "root_mean": lambda v: math.sqrt(max(math.fsum(v) / len(v), 0.0)),
    "max": max,
    "first": lambda v: v[0],
    "sum": math.fsum,
}
EMPTY, NO_IDS = torch.zeros(0), torch.zeros(0, dtype=torch.int64)


def normal(seed, count):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed, count):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_ratios(seed, count):
    """Mostly near 0, now and then of an impossible token."""
    return torch.where(uniform(seed, count) < 0.05, -1e4, normal(seed + 1, count))


def close(ours, theirs, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(ours.double(), torch.tensor(theirs, dtype=torch.float64), rtol=rtol, atol=atol)


def slow_reduce(values, spans, reducer):
    return [REDUCERS[reducer]([value for (value,) in group]) for group in by_row(spans, values)]


def slow_prefix(values, rows, reducer, exclusive):
    found = []
    for group in by_row(rows, values):
        whole = [value for (value,) in group]
        for place in range(len(whole)):
            before = whole[:place] if exclusive else whole[: place + 1]
            total = math.fsum(before)
            if reducer == "mean":
                total = total / len(before) if before else 0.0
            if reducer == "share":
                total = total / math.fsum(whole) if math.fsum(whole) else 0.0
            found.append(total)
    return found


def slow_effective_share(weights, sizes):
    """Of the tokens' weights, one by one."""
    tokens = [w for w, size in zip(weights.tolist(), sizes.tolist()) for _ in range(size)]
    squared = math.fsum(w * w for w in tokens)
    return math.fsum(tokens) ** 2 / squared / len(tokens) if squared else 0.0


@QUICK
@given(LENGTHS, SEEDS, st.sampled_from(sorted(REDUCERS)))
def test_reducers_equal_their_twins(lengths, seed, reducer):
    spans, values = rows_of(lengths), log_ratios(seed, sum(lengths))
    close(steps.reduce_spans(values, spans, reducer), slow_reduce(values, spans, reducer))


@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducers_in_low_precision_follow_their_float64_twins(reducer):
    spans, values = rows_of([1, 64, 500, 1]), (normal(1, 566) + 1).bfloat16()
    ours = steps.reduce_spans(values, spans, reducer)
    assert ours.dtype == torch.float32
    close(ours, slow_reduce(values.double(), spans, reducer), rtol=1e-5, atol=1e-6)


@QUICK
@given(LENGTHS, SEEDS, st.sampled_from(["sum", "mean", "share"]), st.booleans())
def test_prefix_reducers_equal_their_twins(lengths, seed, reducer, exclusive):
    rows = rows_of(lengths) * 3 + 2
    values = log_ratios(seed, len(rows)) - 2.0 * (seed % 2)
    ours = steps.reduce_prefix(values, rows, reducer, exclusive)
    sums = values.new_zeros(int(rows.max()) + 1).index_add(0, rows, values)[rows]
    sure = (sums.abs() > 1e-3).tolist() if reducer == "share" else [True] * len(rows)  # else the share is rounding
    theirs = slow_prefix(values, rows, reducer, exclusive)
    close(ours[sure], [value for value, told in zip(theirs, sure) if told], rtol=1e-9, atol=1e-9)


def test_prefix_reducers_in_low_precision_follow_their_float64_twin():
    rows, values = rows_of([1, 300, 40]), normal(2, 341).abs().bfloat16()
    for reducer in ("sum", "mean", "share"):
        ours = steps.reduce_prefix(values, rows, reducer)
        assert ours.dtype == torch.float32
        close(ours, slow_prefix(values.double(), rows, reducer, False), rtol=1e-6)


def test_a_prefix_without_tokens_is_exactly_0_whatever_stood_before_its_sequence():
    rows, values = rows_of([1000, 3]), torch.cat([log_ratios(3, 1000) - 100 / 3, torch.tensor([0.1, 0.2, 0.3])])
    for reducer in ("sum", "mean", "share"):
        ours = steps.reduce_prefix(values, rows, reducer, exclusive=True)
        assert ours[1000] == 0
        assert torch.equal(ours[1000:], steps.reduce_prefix(values[1000:], rows[1000:], reducer, exclusive=True))


def test_a_share_rises_to_exactly_1_and_is_0_where_the_sequence_sums_to_0():
    rows, values = rows_of([3, 2, 1]), torch.tensor([0.1, 0.2, 0.3, 1.0, -1.0, 0.0])
    assert steps.reduce_prefix(values, rows, "share").tolist()[2:] == [1.0, 0.0, 0.0, 0.0]


@QUICK
@given(
    st.lists(st.floats(-1e4, 1e4), max_size=20),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.none() | st.floats(-3, 0),
    st.none() | st.floats(0, 3),
    st.floats(-1, 1),
)
def test_affine_equals_its_twin(values, offset, scale, low, high, shift):
    theirs = []
    for value in values:
        line = offset + scale * value
        line = line if low is None else max(line, low)
        theirs.append((line if high is None else min(line, high)) + shift)
    close(steps.affine(torch.tensor(values, dtype=torch.float64), offset, scale, low, high, shift), theirs)


@QUICK
@given(
    st.lists(st.floats(-1e4, 1e4), max_size=20),
    st.floats(-2, 2),
    st.floats(0.01, 2) | st.floats(-2, -0.01),
    st.floats(0, 1),
)
def test_sigmoid_equals_its_twin(values, centre, width, low):
    theirs = []
    for value in values:
        z = (value - centre) / width
        share = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
        theirs.append(low + (1 - low) * share)
    close(steps.sigmoid(torch.tensor(values, dtype=torch.float64), centre, width, low), theirs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(1, 100), st.integers(1, 100))
def test_keep_top_equals_its_twin(values, part, whole):
    part, whole = sorted((part, whole))
    count = (part * len(values) + whole - 1) // whole  # ceil, in integers
    best = sorted(range(len(values)), key=lambda place: (-values[place], place))[:count]
    kept = steps.keep_top(torch.tensor(values, dtype=torch.float64), part / whole)
    assert kept.tolist() == [float(place in best) for place in range(len(values))]


def test_keep_top_inside_each_sequence():
    values, owners = torch.tensor([1.0, 3.0, 2.0, 0.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    assert steps.keep_top(values, 0.4, owners).tolist() == [0, 1, 1, 0, 1]


def test_keep_top_lets_the_earlier_of_equal_values_win_and_keeps_thirds_whole():
    assert steps.keep_top(torch.tensor([1.0, 2.0, 1.0, 2.0]), 0.75).tolist() == [1, 1, 0, 1]
    assert steps.keep_top(torch.tensor([1.0, 2.0, 3.0]), 2 / 3).tolist() == [0, 1, 1]
    assert steps.keep_top(torch.zeros(100), 0.07).sum() == 7


@QUICK
@given(LENGTHS, SEEDS)
def test_effective_share_equals_its_twin(lengths, seed):
    weights, sizes = normal(seed, len(lengths)).abs() * (uniform(seed, len(lengths)) < 0.8), torch.tensor(lengths)
    assert steps.effective_share(weights, sizes) == pytest.approx(slow_effective_share(weights, sizes), rel=1e-12)


def test_the_effective_share_of_equal_weights_is_1_and_of_none_0():
    sizes = torch.tensor([3, 1])
    assert steps.effective_share(torch.full((2,), 1e-3, dtype=torch.float64), sizes) == pytest.approx(1)
    assert steps.effective_share(torch.tensor([0.0, 5.0]), sizes) == 0.25
    assert steps.effective_share(torch.zeros(2), sizes) == 0
    assert steps.effective_share(EMPTY, NO_IDS) == 0


@QUICK
@given(st.lists(st.integers(1, 64), min_size=2, max_size=40), SEEDS, st.floats(-4, 2), st.floats(0.05, 0.98))
def test_tau_for_ess_reaches_the_share_or_stops_at_the_highest(lengths, seed, power, share):
    drift, sizes = normal(seed, len(lengths)).abs() * 10**power, torch.tensor(lengths)
    tau = steps.tau_for_ess(drift, sizes, share, highest=1e5)
    reached = slow_effective_share(torch.exp(-tau * (drift - drift.min())), sizes)
    if tau == 1e5:
        assert reached > share
    else:
        assert reached == pytest.approx(share, abs=1e-6)


@QUICK
@given(st.lists(st.integers(1, 64), min_size=2, max_size=20), SEEDS, st.floats(0.05, 0.9), st.floats(0.01, 0.09))
def test_tau_for_ess_falls_with_the_share_and_turns_with_the_unit(lengths, seed, share, more):
    drift, sizes = normal(seed, len(lengths)).abs(), torch.tensor(lengths)
    tau = steps.tau_for_ess(drift, sizes, share, highest=1e6)
    assert steps.tau_for_ess(drift, sizes, share + more, highest=1e6) <= tau
    assert steps.tau_for_ess(drift * 8, sizes, share, highest=1e6 / 8) * 8 == pytest.approx(tau, rel=1e-8)
    assert steps.tau_for_ess(drift + 3, sizes, share, highest=1e6) == pytest.approx(tau, rel=1e-6)


def test_tau_for_ess_falls_as_the_ess_does():
    drift, sizes = normal(4, 50).abs(), torch.full((50,), 10)
    shares = [steps.effective_share(torch.exp(-tau * drift), sizes) for tau in (0.0, 0.1, 1.0, 10.0, 100.0)]
    assert shares == sorted(shares, reverse=True)


def test_tau_for_ess_returns_the_highest_where_the_share_is_out_of_reach():
    sizes = torch.tensor([1, 1, 1, 1])
    assert steps.tau_for_ess(torch.full((4,), 0.3), sizes, 0.9) == 1000
    assert steps.tau_for_ess(torch.tensor([0.0, 0.0, 0.0, 9.0]), sizes, 0.7, highest=50.0) == 50
    assert steps.tau_for_ess(torch.tensor([0.0, 1e-9, 2e-9, 3e-9]), sizes, 0.9) == 1000
    assert steps.tau_for_ess(EMPTY, NO_IDS, 0.5, highest=7.0) == 7


def test_tau_for_ess_does_not_underflow():
    drift, sizes = torch.tensor([1e4, 1e4 + 1, 2e4]), torch.tensor([4, 4, 4])
    tau = steps.tau_for_ess(drift, sizes, 0.5)
    assert steps.effective_share(torch.exp(-tau * (drift.double() - 1e4)), sizes) == pytest.approx(0.5, abs=1e-6)


@QUICK
@given(LENGTHS, SEEDS)
def test_shuffles_keep_the_multiset(lengths, seed):
    owners = rows_of(lengths) * 2 + 1
    values, draws = normal(seed, len(owners)), uniform(seed, len(owners))
    within, across = steps.shuffle_within(values, owners, draws), steps.shuffle_across(values, draws)
    assert Counter(across.tolist()) == Counter(values.tolist())
    for owner in owners.unique():
        assert Counter(within[owners == owner].tolist()) == Counter(values[owners == owner].tolist())


@QUICK
@given(LENGTHS, SEEDS)
def test_shuffle_within_depends_on_the_sequence_alone(lengths, seed):
    owners = rows_of([*lengths, 7])
    values, draws = normal(seed, len(owners)), uniform(seed, len(owners))
    alone = steps.shuffle_within(values[-7:], owners[-7:], draws[-7:])
    assert torch.equal(steps.shuffle_within(values, owners, draws)[-7:], alone)


def test_every_order_is_equally_likely():
    values, orders = torch.tensor([0.0, 1.0, 2.0]), [Counter(), Counter()]
    for draws in uniform(5, 18000).split(3):
        orders[0][tuple(steps.shuffle_across(values, draws).tolist())] += 1
        orders[1][tuple(steps.shuffle_within(values, NO_IDS.new_zeros(3), draws).tolist())] += 1
    for found in orders:
        assert len(found) == 6
        assert chisquare(list(found.values())).pvalue > 0.01


def test_resampling_draws_existing_values_in_their_proportions():
    values = torch.tensor([0.1, 0.2, 0.2, 0.7, 0.9, 0.9, 0.9, 1.0])
    drawn = torch.cat([steps.resample(values, draws) for draws in uniform(6, 16000).split(8)])
    known, expected = values.unique(return_counts=True)
    found = (drawn[:, None] == known).sum(0)
    assert found.sum() == 16000
    assert chisquare(found.tolist(), (expected * 2000).tolist()).pvalue > 0.01


def test_resampling_stays_inside_at_the_ends_of_the_unit_interval():
    values = torch.arange(7.0)
    last = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert steps.resample(values, last.repeat(4)[:7]).tolist() == [0, 6, 0, 6, 0, 6, 0]
    assert steps.resample(values, torch.full((7,), 1 - 2**-24)).tolist() == [6] * 7


@QUICK
@given(LENGTHS, SEEDS)
def test_a_constant_keeps_the_mean_over_tokens(lengths, seed):
    values, sizes = normal(seed, len(lengths)), torch.tensor(lengths)
    same = steps.constant(values, sizes)
    assert same.shape == values.shape
    assert len(same.unique()) == 1
    mean = math.fsum(v * size for v, size in zip(values.tolist(), lengths)) / sum(lengths)
    close(same, [mean] * len(lengths))


def test_the_inverse_opens_a_thousandfold_at_most():
    close(steps.inverse(torch.tensor([0.0, 1e-9, 1e-3, 0.5, 4.0])), [1000, 1000, 1000, 2, 0.25], rtol=1e-6)


def test_first_of_is_the_place_of_each_spans_first_token():
    assert steps.first_of(rows_of([2, 1, 3]) * 5).tolist() == [0, 2, 3]


def test_of_nothing_comes_nothing():
    for reducer in REDUCERS:
        assert steps.reduce_spans(EMPTY, NO_IDS, reducer).shape == (0,)
    for reducer in ("sum", "mean", "share"):
        assert steps.reduce_prefix(EMPTY, NO_IDS, reducer).shape == (0,)
        assert steps.reduce_prefix(EMPTY, NO_IDS, reducer, exclusive=True).dtype == torch.float32
    for values in (
        steps.affine(EMPTY, 1, 1, 0, 1, 0),
        steps.sigmoid(EMPTY, 0, 1, 0),
        steps.keep_top(EMPTY, 0.5),
        steps.shuffle_within(EMPTY, NO_IDS, EMPTY),
        steps.shuffle_across(EMPTY, EMPTY),
        steps.resample(EMPTY, EMPTY),
        steps.constant(EMPTY, NO_IDS),
        steps.inverse(EMPTY),
        steps.first_of(NO_IDS),
    ):
        assert values.shape == (0,)


def test_a_wrong_reducer_is_named():
    with pytest.raises(ValueError, match=r"reducer must be one of .*'median'"):
        steps.reduce_spans(torch.ones(2), torch.tensor([0, 1]), "median")
    with pytest.raises(ValueError, match="not 'max'"):
        steps.reduce_prefix(torch.ones(2), torch.tensor([0, 1]), "max")
    with pytest.raises(ValueError, match="not 'max'"):
        steps.reduce_prefix(EMPTY, NO_IDS, "max")
    with pytest.raises(ValueError, match="rows must not decrease"):
        steps.reduce_prefix(torch.ones(2), torch.tensor([1, 0]), "sum")
