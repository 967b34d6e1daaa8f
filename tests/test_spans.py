"""The further partitions against their twins, and the facts that they promise."""

import math
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import by_row, rows_of

from driftgate.method.changepoint import changepoint_spans, keep_before_drop, noise_level
from driftgate.method.spans import fixed_spans, newline_spans, random_spans, sequence_spans, token_spans

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6)
SEEDS = st.integers(0, 10**6)
QUICK = settings(max_examples=40, deadline=None)
EMPTY = torch.zeros(0, dtype=torch.int64)


def uniform(seed, count):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(seed, count):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(seed, levels, length, scale=1.0):
    """Levels of `length` tokens each under Gaussian noise of standard deviation `scale`."""
    return torch.tensor(levels, dtype=torch.float64).repeat_interleave(length) + scale * normal(
        seed, length * len(levels)
    )


def lengths_of(spans):
    return spans.unique_consecutive(return_counts=True)[1].tolist()


def slow_random_spans(rows, spans, uniforms):
    found, span = [], -1
    for group in by_row(rows, spans, uniforms):
        count = len({member for member, _ in group})
        places = sorted(range(1, len(group)), key=lambda place: (group[place][1], place))[: count - 1]
        for place in range(len(group)):
            span += place == 0 or place in places
            found.append(span)
    return found


def slow_noise(values):
    steps = [b - a for a, b in pairwise(values)]
    level = math.sqrt(math.fsum(step * step for step in steps) / len(steps) / 2)
    return max(level, 1e-5 * (max(values) - min(values)))


def slow_residual(values):
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)


def slow_cost(values, cuts, penalty):
    bounds = [0, *cuts, len(values)]
    residual = math.fsum(slow_residual(values[a:b]) for a, b in pairwise(bounds))
    return residual / slow_noise(values) ** 2 + penalty * math.log(len(values)) * len(cuts)


def slow_best_cuts(values, min_tokens, penalty):
    """Every admissible partition is tried."""
    if len(values) < 2 * min_tokens or max(values) == min(values):
        return ()
    best, chosen = math.inf, ()
    for count in range(len(values) // min_tokens):
        for cuts in combinations(range(1, len(values)), count):
            bounds = [0, *cuts, len(values)]
            if all(b - a >= min_tokens for a, b in pairwise(bounds)):
                cost = slow_cost(values, cuts, penalty)
                if cost < best:
                    best, chosen = cost, cuts
    return chosen


def slow_dynamic_cuts(values, min_tokens, penalty):
    """For lengths at which not every partition can be tried: the textbook recursion, nothing pruned."""
    if len(values) < 2 * min_tokens:
        return ()
    variance, price = slow_noise(values) ** 2, penalty * math.log(len(values))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for end in range(min_tokens, len(values) + 1):
        best[end] = min(
            (cost + slow_residual(values[start:end]) / variance + price * (start > 0), cuts + (start,) * (start > 0))
            for start, (cost, cuts) in best.items()
            if end - start >= min_tokens
        )
    return best[len(values)][1]


def cuts_of(spans):
    return tuple(((spans[1:] != spans[:-1]).nonzero().flatten() + 1).tolist())


def slow_keep(rows, values, spans):
    kept = []
    for group in by_row(rows, values, spans):
        members = {}
        for value, span in group:
            members.setdefault(span, []).append(value)
        means = [math.fsum(part) / len(part) for part in members.values()]
        count, keep = len(means), len(means)
        if count >= 4:
            two, cut = min((slow_residual(means[:c]) + slow_residual(means[c:]), c) for c in range(1, count))
            floor = count * (1e-12 * max(abs(mean) for mean in means)) ** 2
            one, two = max(slow_residual(means), floor), max(two, floor)
            falls = math.fsum(means[:cut]) / cut > math.fsum(means[cut:]) / (count - cut)
            if one > 0 and falls and bic(two, count, 3) < bic(one, count, 1):
                keep = cut
        names = list(members)[:keep]
        kept += [span in names for _, span in group]
    return kept


def bic(residual, count, parameters):
    return count * math.log(residual / count) + parameters * math.log(count)


@QUICK
@given(LENGTHS)
def test_the_finest_and_the_coarsest_partition(lengths):
    rows = rows_of(lengths)
    assert token_spans(rows).tolist() == list(range(len(rows)))
    assert sequence_spans(rows).tolist() == rows.tolist()
    assert sequence_spans(rows * 3 + 4).tolist() == rows.tolist()


@QUICK
@given(LENGTHS, SEEDS, st.integers(1, 20))
def test_random_spans_equal_their_twin(lengths, seed, size):
    rows = rows_of(lengths) * 2 + 1
    spans, uniforms = fixed_spans(rows, size), uniform(seed, len(rows))
    assert random_spans(rows, spans, uniforms).tolist() == slow_random_spans(rows, spans, uniforms)
    assert random_spans(rows, spans, uniforms.float()).dtype == torch.int64


@QUICK
@given(LENGTHS, SEEDS, st.floats(0, 0.3))
def test_random_spans_keep_each_sequences_number_of_spans(lengths, seed, share):
    rows = rows_of(lengths)
    spans = newline_spans(rows, uniform(seed, len(rows)) < share, 1, 40)
    found = random_spans(rows, spans, uniform(seed + 1, len(rows)))
    for row in range(len(lengths)):
        assert len(found[rows == row].unique()) == len(spans[rows == row].unique())
    assert lengths_of(rows * len(rows) + found) == lengths_of(found)
    assert found.unique().tolist() == list(range(int(spans.max()) + 1))


def test_random_spans_depend_on_a_sequences_own_tokens_alone_and_not_on_its_first_uniform():
    rows, uniforms = rows_of([1, 30, 50]), uniform(1, 81)
    spans = fixed_spans(rows, 7)
    found = random_spans(rows, spans, uniforms)
    alone = random_spans(rows[31:], spans[31:], uniforms[31:])
    assert (found[31:] - found[31]).tolist() == alone.tolist()
    uniforms[[0, 1, 31]] = 0.0
    assert torch.equal(random_spans(rows, spans, uniforms), found)


def test_equal_uniforms_cut_at_the_earliest_places():
    assert random_spans(rows_of([6]), fixed_spans(rows_of([6]), 2), torch.zeros(6)).tolist() == [0, 1, 2, 2, 2, 2]


def test_every_place_is_cut_equally_often():
    rows = torch.arange(3000).repeat_interleave(6)
    spans = fixed_spans(rows, 2)
    found = random_spans(rows, spans, uniform(2, len(rows))).view(3000, 6)
    share = (found[:, 1:] != found[:, :-1]).double().mean(0)
    assert (share - 2 / 5).abs().max() < 0.04


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), SEEDS, st.floats(0.05, 3))
def test_changepoint_spans_equal_the_best_of_all_partitions(length, min_tokens, seed, penalty):
    values = normal(seed, length) + 3 * (torch.arange(length) >= seed % 12)
    spans = changepoint_spans(rows_of([length]), values, min_tokens, penalty)
    assert cuts_of(spans) == slow_best_cuts(values.tolist(), min_tokens, penalty)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.integers(1, 3), SEEDS)
def test_among_equally_good_partitions_it_finds_one(values, min_tokens, seed):
    values = [float(value) for value in values]
    spans = changepoint_spans(rows_of([len(values)]), torch.tensor(values), min_tokens, 0.5)
    if len(values) >= 2 * min_tokens and max(values) > min(values):
        best = slow_cost(values, slow_best_cuts(values, min_tokens, 0.5), 0.5)
        assert slow_cost(values, cuts_of(spans), 0.5) <= best * (1 + 1e-9)
        assert min(lengths_of(spans)) >= min_tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 70), st.integers(1, 9), SEEDS, st.floats(0.05, 2))
def test_pruning_loses_nothing(length, min_tokens, seed, penalty):
    values = normal(seed, length) + 4 * normal(seed + 1, 8).repeat_interleave(9)[:length]
    spans = changepoint_spans(rows_of([length]), values, min_tokens, penalty)
    assert cuts_of(spans) == slow_dynamic_cuts(values.tolist(), min_tokens, penalty)


@QUICK
@given(st.lists(st.integers(1, 150), min_size=1, max_size=4), SEEDS, st.floats(-50, 50), st.floats(0.001, 1000))
def test_a_constant_or_a_scale_or_other_sequences_move_no_bound(lengths, seed, constant, scale):
    rows = rows_of(lengths) * 5 + 3
    values = normal(seed, len(rows)) + 2 * normal(seed + 1, 20).repeat_interleave(40)[: len(rows)]
    spans = changepoint_spans(rows, values, 8)
    assert torch.equal(changepoint_spans(rows, values * scale + constant, 8), spans)
    assert torch.equal(changepoint_spans(rows, -values, 8), spans)
    alone = [changepoint_spans(rows[rows == row], values[rows == row], 8) for row in rows.unique()]
    assert [*chain.from_iterable(lengths_of(part) for part in alone)] == lengths_of(spans)
    assert all(min(lengths_of(part)) >= min(8, len(part)) for part in alone)


def test_planted_steps_are_found_where_they_are():
    rows = rows_of([300, 1, 200])
    values = torch.cat([stepped(4, [0, 5, -5], 100, 0.5), torch.ones(1), stepped(5, [1, 9], 100, 0.5)])
    assert lengths_of(changepoint_spans(rows, values)) == [100, 100, 100, 1, 100, 100]
    assert lengths_of(changepoint_spans(rows, values.bfloat16())) == [100, 100, 100, 1, 100, 100]


@pytest.mark.parametrize("jitter", [0.0, 1e-12, 1e-7, 1e-3])
def test_a_step_without_noise_is_cut_once_and_a_constant_never(jitter):
    rows = rows_of([16, 3000, 200])
    step = 1e-3 * torch.cat([torch.zeros(1700), torch.ones(1300)]) * (1 + jitter * normal(6, 3000)) + 1e-3 * jitter
    values = torch.cat([torch.full((16,), 0.1), step, torch.full((200,), 0.1)])
    assert lengths_of(changepoint_spans(rows, values)) == [16, 1700, 1300, 200]


def test_white_noise_is_rarely_cut():
    lengths = [100 + 300 * row // 199 for row in range(200)]
    spans = changepoint_spans(rows_of(lengths), normal(7, sum(lengths)))
    assert len(lengths_of(spans)) - 200 <= 20
    assert sum(length in lengths for length in lengths_of(spans)) >= 180


def test_noise_of_rare_large_values_is_rarely_cut():
    lengths = [250] * 100
    values = normal(8, 25000) * torch.where(uniform(9, 25000) < 0.8, 1e-3, 0.3)
    assert len(lengths_of(changepoint_spans(rows_of(lengths), values))) <= 112


def test_noise_level_is_right_for_gaussian_noise_and_hardly_moved_by_shifts():
    values = (0.2 * normal(10, 20000)).numpy()
    shifted = values + np.repeat([0.0, 1.0, 0.0, 1.0], 5000)
    assert noise_level(values) == pytest.approx(0.2, rel=0.02)
    assert noise_level(shifted) == pytest.approx(noise_level(values), rel=0.002)
    assert noise_level(values) == pytest.approx(slow_noise(values.tolist()), rel=1e-12)


def test_a_sequence_shorter_than_two_segments_is_one_span():
    values = torch.cat([torch.zeros(15), torch.ones(16)])
    assert lengths_of(changepoint_spans(rows_of([31]), values, 16)) == [31]
    assert lengths_of(changepoint_spans(rows_of([31]), values, 15)) == [15, 16]


@QUICK
@given(LENGTHS, SEEDS, st.integers(1, 9), st.floats(0, 4))
def test_keep_before_drop_equals_its_twin(lengths, seed, size, height):
    rows = rows_of(lengths) * 3 + 2
    values = normal(seed, len(rows)) - height * (uniform(seed, len(rows)).cumsum(0) % 20 > 12)
    spans = fixed_spans(rows, size)
    assert keep_before_drop(rows, values, spans).tolist() == slow_keep(rows, values, spans)


def test_a_sequence_is_kept_up_to_the_end_of_the_span_before_the_drop():
    rows = rows_of([40, 40, 1, 30])
    fall = stepped(11, [2, -1], 20, 0.1)
    values = torch.cat([fall, -fall, torch.ones(1), stepped(12, [2, -1], 15, 0.1)])
    keep = keep_before_drop(rows, values, fixed_spans(rows, 5))
    assert keep.tolist() == [True] * 20 + [False] * 20 + [True] * 41 + [True] * 15 + [False] * 15
    scaled = keep_before_drop(rows, values.float() * 100 + 7, fixed_spans(rows, 5))
    assert torch.equal(scaled, keep)


def test_fewer_than_four_spans_or_no_variation_keep_the_whole_sequence():
    rows = rows_of([30, 30, 30])
    values = torch.cat([torch.full((30,), 0.1), torch.arange(30.0) < 10, torch.zeros(30)]).float()
    assert keep_before_drop(rows, values, torch.cat([torch.arange(30), fixed_spans(rows, 10)[30:] + 27])).all()
    assert keep_before_drop(rows, values, fixed_spans(rows, 7)).tolist() == [i < 37 or i >= 60 for i in range(90)]


def test_a_drop_without_noise_is_found():
    rows = rows_of([12])
    values = torch.tensor([0.3] * 6 + [0.1] * 6, dtype=torch.float64)
    assert keep_before_drop(rows, values, token_spans(rows)).tolist() == [True] * 6 + [False] * 6
    assert keep_before_drop(rows, values.flip(0), token_spans(rows)).all()


def test_empty_input_gives_empty_output():
    none = torch.zeros(0)
    for spans in (
        token_spans(EMPTY),
        sequence_spans(EMPTY),
        random_spans(EMPTY, EMPTY, none),
        changepoint_spans(EMPTY, none),
    ):
        assert spans.shape == (0,)
        assert spans.dtype == torch.int64
    assert keep_before_drop(EMPTY, none, EMPTY).shape == (0,)
    assert keep_before_drop(EMPTY, none, EMPTY).dtype == torch.bool


def test_one_token_sequences():
    rows = torch.arange(5)
    assert random_spans(rows, rows, uniform(1, 5)).tolist() == [0, 1, 2, 3, 4]
    assert changepoint_spans(rows, normal(1, 5), 1).tolist() == [0, 1, 2, 3, 4]
    assert keep_before_drop(rows, normal(1, 5), rows).all()


ROWS, FLOATS, NAN = torch.tensor([0, 0, 1]), torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
BAD_CALLS = {
    "rows must not decrease": lambda: token_spans(torch.tensor([1, 0])),
    "rows must be int64": lambda: sequence_spans(FLOATS),
    "uniforms has 2": lambda: random_spans(ROWS, ROWS, FLOATS[:2]),
    "spans has 2": lambda: random_spans(ROWS, ROWS[:2], FLOATS),
    "spans must be int64": lambda: random_spans(ROWS, FLOATS, FLOATS),
    "spans must not decrease": lambda: random_spans(ROWS, torch.tensor([1, 0, 2]), FLOATS),
    "spans must not cross": lambda: random_spans(ROWS, torch.tensor([0, 1, 1]), FLOATS),
    r"uniforms must lie in \[0": lambda: random_spans(ROWS, ROWS, FLOATS + 1),
    r"uniforms must lie in \[0, 1": lambda: random_spans(ROWS, ROWS, NAN),
    "values has 2": lambda: changepoint_spans(ROWS, FLOATS[:2]),
    "values must be finite": lambda: changepoint_spans(ROWS, NAN),
    "min_tokens must be": lambda: changepoint_spans(ROWS, FLOATS, min_tokens=0),
    "penalty must be": lambda: changepoint_spans(ROWS, FLOATS, penalty=0.0),
    "values must be fini": lambda: keep_before_drop(ROWS, FLOATS / 0, ROWS),
    "values has 1": lambda: keep_before_drop(ROWS, FLOATS[:1], ROWS),
    "spans must not cros": lambda: keep_before_drop(ROWS, FLOATS, ROWS * 0),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_bad_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message]()
