"""The public functions against their twins, and the facts that follow from the equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import (
    rows_of,
    slow_fixed_spans,
    slow_gate,
    slow_newline_spans,
    slow_sampled_token_loss,
    slow_topk_reverse_kl,
    slow_unit_mean,
)

import driftgate

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=6)
QUICK = settings(max_examples=40, deadline=None)
EMPTY = torch.zeros(0, dtype=torch.int64)


def normal(seed, *shape, scale=1.0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(scale).to(dtype)


@QUICK
@given(LENGTHS, st.integers(1, 70))
def test_fixed_spans_equal_their_twin(lengths, size):
    rows = rows_of(lengths)
    assert driftgate.fixed_spans(rows, size).tolist() == slow_fixed_spans(rows, size)


def test_fixed_spans_count_from_the_first_token_and_the_last_may_be_short():
    assert driftgate.fixed_spans(rows_of([5, 3]), 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4]


def test_row_numbers_need_not_be_dense():
    assert driftgate.fixed_spans(torch.tensor([2, 2, 7, 7, 7]), 2).tolist() == [0, 0, 1, 1, 2]


@QUICK
@given(
    LENGTHS,
    st.integers(0, 10**6),
    st.floats(0, 0.3),
    st.integers(1, 20),
    st.integers(0, 40),
    st.integers(1, 70),
)
def test_newline_spans_equal_their_twin(lengths, seed, share, least, more, size):
    rows = rows_of(lengths)
    ends = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < share
    ours = driftgate.newline_spans(rows, ends, least, least + more, size)
    assert ours.tolist() == slow_newline_spans(rows, ends, least, least + more, size)


def test_a_short_line_joins_the_next_and_a_long_one_is_cut():
    ends = torch.tensor([False, True, False, False, True, False, False, False, False, True, False])
    spans = driftgate.newline_spans(rows_of([11]), ends, min_tokens=3, max_tokens=4, size=64)
    assert spans.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 3, 4]


def test_a_response_without_newline_falls_back_to_blocks():
    rows = rows_of([130])
    ends = torch.zeros(130, dtype=torch.bool)
    assert driftgate.newline_spans(rows, ends).tolist() == driftgate.fixed_spans(rows, 64).tolist()


@QUICK
@given(LENGTHS, st.integers(0, 10**6), st.floats(0.01, 30), st.sampled_from(["abs_mean", "mean_abs", "rms"]))
def test_drift_gate_equals_its_twin(lengths, seed, tau, statistic):
    rows = rows_of(lengths)
    logp, behaviour = normal(seed, len(rows)), normal(seed + 1, len(rows))
    spans = driftgate.fixed_spans(rows, 16)
    gate = driftgate.drift_gate(logp, behaviour, spans, tau, statistic)
    torch.testing.assert_close(gate, slow_gate(logp, behaviour, spans, tau, statistic), rtol=1e-12, atol=1e-300)


def test_drift_gate_in_low_precision_follows_its_float64_twin():
    rows = rows_of([64, 100, 1])
    logp, behaviour = normal(1, 165, dtype=torch.bfloat16), normal(2, 165, dtype=torch.bfloat16)
    spans = driftgate.fixed_spans(rows)
    gate = driftgate.drift_gate(logp, behaviour, spans)
    assert gate.dtype == torch.float32
    torch.testing.assert_close(gate.double(), slow_gate(logp, behaviour, spans, 1.0, "abs_mean"), rtol=1e-5, atol=0)


def test_the_gate_is_exactly_one_when_the_student_has_not_moved():
    logp = normal(3, 100, dtype=torch.float32)
    gate = driftgate.drift_gate(logp, logp.clone(), driftgate.fixed_spans(rows_of([60, 40]), 16), tau=100.0)
    assert (gate == 1).all()
    assert (driftgate.unit_mean(gate) == 1).all()


def test_signed_shifts_cancel_inside_a_span_unless_another_statistic_is_asked_for():
    logp, behaviour, spans = torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert driftgate.drift_gate(logp, behaviour, spans).tolist() == [1.0, 1.0]
    assert driftgate.drift_gate(logp, behaviour, spans, statistic="mean_abs")[0] < 0.4


def test_extreme_log_probabilities_stay_finite():
    gate = driftgate.drift_gate(torch.tensor([-1e4, -1.0]), torch.tensor([-1.0, -1.0]), torch.tensor([0, 1]))
    assert gate.tolist() == [0.0, 1.0]
    assert driftgate.unit_mean(gate).tolist() == [0.0, 2.0]


def test_no_gradient_flows_through_a_gate():
    logp = normal(4, 10).requires_grad_()
    gate = driftgate.drift_gate(logp, normal(5, 10), driftgate.fixed_spans(rows_of([10]), 4))
    assert not gate.requires_grad
    assert not driftgate.unit_mean(logp.exp()).requires_grad


@QUICK
@given(LENGTHS, st.integers(0, 10**6))
def test_unit_mean_equals_its_twin(lengths, seed):
    rows = rows_of(lengths)
    weights = normal(seed, len(rows)).abs() + 1e-3
    one = torch.zeros_like(rows)
    torch.testing.assert_close(driftgate.unit_mean(weights), slow_unit_mean(weights, one), rtol=1e-12, atol=0)
    torch.testing.assert_close(driftgate.unit_mean(weights, rows), slow_unit_mean(weights, rows), rtol=1e-12, atol=0)


def test_unit_mean_over_the_losss_scope_is_the_self_normalised_mean():
    weights, losses = normal(6, 50).abs(), normal(7, 50)
    plain = (driftgate.unit_mean(weights) * losses).mean()
    torch.testing.assert_close(plain, (weights * losses).sum() / weights.sum(), rtol=1e-12, atol=0)


def test_gates_may_exceed_one_after_normalisation():
    gate = driftgate.drift_gate(torch.tensor([0.0, -1.0]), torch.zeros(2), torch.tensor([0, 1]))
    assert driftgate.unit_mean(gate).max() > 1


@QUICK
@given(
    st.integers(1, 60),
    st.integers(0, 10**6),
    st.sampled_from(["frozen", "recomputed"]),
    st.floats(0.05, 0.5),
    st.floats(1.1, 5),
)
def test_sampled_token_loss_and_gradient_equal_their_twin(count, seed, advantage, clip, dual_clip):
    behaviour, teacher = normal(seed, count), normal(seed + 1, count, scale=3)
    fast = (behaviour + normal(seed + 2, count)).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    ours = driftgate.sampled_token_loss(fast, behaviour, teacher, advantage, clip, dual_clip)
    theirs = slow_sampled_token_loss(slow, behaviour, teacher, advantage, clip, dual_clip)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-12, atol=1e-12)


def test_the_first_update_is_the_plain_policy_gradient():
    behaviour, teacher = normal(8, 20), normal(9, 20)
    logp = behaviour.clone().requires_grad_()
    driftgate.sampled_token_loss(logp, behaviour, teacher).sum().backward()
    torch.testing.assert_close(logp.grad, -(teacher - behaviour), rtol=1e-12, atol=0)


def test_frozen_and_recomputed_advantages_differ_once_the_student_has_moved():
    logp, behaviour, teacher = torch.tensor([-1.0]), torch.tensor([-1.1]), torch.tensor([-0.5])
    frozen = driftgate.sampled_token_loss(logp, behaviour, teacher, "frozen")
    assert not torch.equal(frozen, driftgate.sampled_token_loss(logp, behaviour, teacher, "recomputed"))


@QUICK
@given(st.integers(1, 40), st.integers(2, 40), st.integers(0, 10**6), st.floats(0.1, 8))
def test_topk_reverse_kl_and_gradient_equal_their_twin(count, k, seed, scale):
    teacher = normal(seed, count, k, scale=scale)
    fast = normal(seed + 1, count, k, scale=scale).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    ours, theirs = driftgate.topk_reverse_kl(fast, teacher), slow_topk_reverse_kl(slow, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-9, atol=1e-11)


def test_topk_reverse_kl_ignores_a_constant_per_position_and_is_zero_for_equal_sides():
    student, teacher = normal(10, 7, 5), normal(11, 7, 5)
    shifted = driftgate.topk_reverse_kl(student + normal(12, 7, 1), teacher - 40)
    torch.testing.assert_close(shifted, driftgate.topk_reverse_kl(student, teacher), rtol=1e-10, atol=1e-12)
    assert driftgate.topk_reverse_kl(student, student + 3).abs().max() < 1e-12


def test_topk_reverse_kl_is_computed_wide_for_bfloat16():
    student, teacher = normal(13, 9, 6, dtype=torch.bfloat16), normal(14, 9, 6, dtype=torch.bfloat16)
    ours = driftgate.topk_reverse_kl(student, teacher)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), slow_topk_reverse_kl(student.double(), teacher), rtol=1e-4, atol=1e-6)


def test_empty_input_gives_empty_output():
    none = torch.zeros(0)
    assert driftgate.fixed_spans(EMPTY).shape == (0,)
    assert driftgate.newline_spans(EMPTY, EMPTY.bool()).shape == (0,)
    assert driftgate.newline_spans(EMPTY, EMPTY.bool()).dtype == torch.int64
    assert driftgate.drift_gate(none, none, EMPTY).shape == (0,)
    assert driftgate.unit_mean(none).shape == (0,)
    assert driftgate.unit_mean(none, EMPTY).shape == (0,)
    assert driftgate.sampled_token_loss(none, none, none).shape == (0,)
    assert driftgate.topk_reverse_kl(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


ROWS, FLOATS = torch.tensor([0, 0, 1]), torch.zeros(3)
BAD_CALLS = {
    "rows must not decrease": lambda: driftgate.fixed_spans(torch.tensor([0, 1, 0])),
    "rows must be int64": lambda: driftgate.fixed_spans(FLOATS),
    "rows must be 1-D": lambda: driftgate.fixed_spans(torch.zeros(2, 2, dtype=torch.int64)),
    "rows must not be negative": lambda: driftgate.fixed_spans(torch.tensor([-1, 0])),
    "size must be": lambda: driftgate.fixed_spans(ROWS, 0),
    "ends_line has 2 tokens": lambda: driftgate.newline_spans(ROWS, torch.zeros(2, dtype=torch.bool)),
    "ends_line must be bool": lambda: driftgate.newline_spans(ROWS, FLOATS),
    "min_tokens must be": lambda: driftgate.newline_spans(ROWS, FLOATS.bool(), min_tokens=0),
    "max_tokens must be": lambda: driftgate.newline_spans(ROWS, FLOATS.bool(), min_tokens=9, max_tokens=8),
    "logp_behaviour has 2": lambda: driftgate.drift_gate(FLOATS, FLOATS[:2], ROWS),
    "spans must be int64": lambda: driftgate.drift_gate(FLOATS, FLOATS, FLOATS),
    "tau must be": lambda: driftgate.drift_gate(FLOATS, FLOATS, ROWS, tau=-0.1),
    "statistic must be": lambda: driftgate.drift_gate(FLOATS, FLOATS, ROWS, statistic="median"),
    "weights must not be negative": lambda: driftgate.unit_mean(torch.tensor([1.0, -1.0])),
    "weights are zero": lambda: driftgate.unit_mean(torch.tensor([0.0, 0.0, 1.0]), ROWS),
    "groups has 2": lambda: driftgate.unit_mean(FLOATS + 1, ROWS[:2]),
    "logp_teacher has 1": lambda: driftgate.sampled_token_loss(FLOATS, FLOATS, FLOATS[:1]),
    "advantage must be": lambda: driftgate.sampled_token_loss(FLOATS, FLOATS, FLOATS, "fresh"),
    "clip must be": lambda: driftgate.sampled_token_loss(FLOATS, FLOATS, FLOATS, clip=-0.2),
    "dual_clip must be": lambda: driftgate.sampled_token_loss(FLOATS, FLOATS, FLOATS, dual_clip=1.0),
    "student_logits must be": lambda: driftgate.topk_reverse_kl(torch.zeros(3, 1), torch.zeros(3, 1)),
    "teacher_logits must have": lambda: driftgate.topk_reverse_kl(torch.zeros(3, 4), torch.zeros(3, 5)),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_bad_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message]()


def test_at_tau_zero_the_gate_is_one():
    """The natural end of a sweep over tau."""
    shift = torch.randn(200, generator=torch.Generator().manual_seed(1))
    gate = driftgate.drift_gate(shift, torch.zeros(200), driftgate.fixed_spans(torch.zeros(200).long()), tau=0.0)
    assert torch.equal(gate, torch.ones(200))
