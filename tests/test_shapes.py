"""Shapes of the advantage against the papers' formulas, one token at a time, in float64."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_case import QUICK, SEEDS, logprobs, normal
from twins import rows_of

from driftgate.method.shapes import box_cox, by_entropy, mixture, return_to_go, sign_log

RATIOS = [-7.5, -1.0, -1e-3, 0.0, 0.4, 3.0]
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_sign_log():
    expected = [math.copysign(math.log(1 + abs(a)), a) for a in RATIOS]
    assert sign_log(float64(RATIOS)).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [0.1, 1.0, 5.0])
def test_box_cox_is_a_difference_of_powers(power):
    q, p = logprobs(1, 50, 6)[:, 0], logprobs(2, 50, 6)[:, 0]
    expected = [(math.exp(a) ** power - math.exp(b) ** power) / power for a, b in zip(q.tolist(), p.tolist())]
    found = box_cox(q, p, power)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert (found.abs() <= 1 / power).all()
    assert torch.equal(found.sign(), (q - p).sign())


def test_box_cox_becomes_the_log_ratio():
    q, p = logprobs(1, 50, 6)[:, 0], logprobs(2, 50, 6)[:, 0]
    torch.testing.assert_close(box_cox(q, p, 1e-9), q - p, rtol=1e-6, atol=1e-9)


def test_box_cox_is_finite_in_float32_where_a_power_of_the_ratio_is_not():
    assert box_cox(torch.tensor([-1e-3]), torch.tensor([-200.0]), 5.0).isfinite().all()


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.99])
def test_mixture(alpha):
    expected = [math.log(alpha * math.exp(a) + 1 - alpha) for a in RATIOS]
    assert mixture(float64(RATIOS), alpha).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    far = mixture(torch.tensor([-1e4, 1e4]), alpha)
    assert far.tolist() == pytest.approx([math.log(1 - alpha), 1e4 + math.log(alpha)], rel=1e-6)


@QUICK
@given(LENGTHS, SEEDS, st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_return_to_go_is_a_sum_backwards_inside_each_response(lengths, seed, discount):
    values = normal(seed, sum(lengths), scale=3)
    expected, start = [], 0
    for length in lengths:
        part = values[start : start + length].tolist()[::-1]
        expected += list(accumulate(part, lambda later, now: now + discount * later))[::-1]
        start += length
    found = return_to_go(values, rows_of(lengths), discount)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_other_response_changes_a_return_to_go():
    values, rows = normal(0, 50).float(), rows_of([20, 30])
    assert torch.equal(return_to_go(values, rows, 0.9)[20:], return_to_go(values[20:], rows[:30] * 0, 0.9))


def test_by_entropy_goes_from_a_half_to_one_below_zero():
    entropy = float64([0.3, 2.0, 0.7, 1.1])
    expected = [-0.5 - (h - 0.3) / (2 * 1.7) for h in entropy.tolist()]
    assert by_entropy(entropy).tolist() == pytest.approx(expected, rel=1e-12)
    assert by_entropy(torch.ones(3)).tolist() == [-0.5] * 3
    assert by_entropy(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("power must be", lambda: box_cox(torch.zeros(1), torch.zeros(1), 0.0)),
        ("alpha must be above 0 and below 1, not 1", lambda: mixture(torch.zeros(1), 1.0)),
        ("discount must be from 0 to 1", lambda: return_to_go(torch.zeros(1), torch.zeros(1).long(), 1.1)),
        ("rows must not decrease", lambda: return_to_go(torch.zeros(2), torch.tensor([1, 0]), 0.9)),
    ],
)
def test_bad_calls(said, call):
    with pytest.raises(ValueError, match=said):
        call()
