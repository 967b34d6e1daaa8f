"""Divergences on a support against their twin: renormalised, with a tail, raw."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_case import BETAS, INF, KINDS, QUICK, SEEDS, assert_equal_twin, gradient, leaf, logprobs, normal, slots
from twins import (
    slow_candidate_loss,
    slow_support_divergence,
)

from driftgate.method import objectives
from driftgate.method.objectives import candidate_loss, divergence
from driftgate.method.objectives import support_divergence as local


@QUICK
@given(
    st.integers(1, 8),
    st.integers(2, 9),
    SEEDS,
    KINDS,
    st.sampled_from(["renormalised", "tail", "raw"]),
    BETAS,
    st.booleans(),
)
def test_support_divergence_and_gradient_equal_their_twin(count, k, seed, kind, mass, beta, whole):
    log_p, log_q = logprobs(seed, count, k + 3)[:, :k], logprobs(seed + 1, count, k + 3)[:, :k]
    present = torch.ones(count, k, dtype=torch.bool) if whole else slots(seed + 2, count, k)
    log_p, twin = leaf(log_p), leaf(log_p)
    ours = local(log_p, log_q, kind, mass, beta, None if whole else present)
    theirs = slow_support_divergence(twin, log_q, kind, mass, beta, present)
    assert_equal_twin(ours, theirs, log_p, twin, rtol=1e-6, atol=1e-9)


@QUICK
@given(st.integers(2, 12), SEEDS, KINDS, BETAS)
def test_a_tail_of_one_token_is_that_token(vocabulary, seed, kind, beta):
    logits, log_q = normal(seed, 5, vocabulary, scale=2), logprobs(seed + 1, 5, vocabulary, scale=2)
    full_logits, tail_logits = leaf(logits), leaf(logits)
    full = divergence(full_logits.log_softmax(-1), log_q, kind, beta)
    tail = local(tail_logits.log_softmax(-1)[:, 1:], log_q[:, 1:], kind, "tail", beta)
    assert_equal_twin(tail, full, tail_logits, full_logits, rtol=1e-6, atol=1e-8)


@QUICK
@given(st.integers(1, 12), SEEDS, KINDS, BETAS, st.sampled_from(["tail", "raw", "renormalised"]))
def test_a_support_of_the_whole_vocabulary_gives_the_full_divergence(vocabulary, seed, kind, beta, mass):
    logits, log_q = normal(seed, 5, vocabulary + 1), logprobs(seed + 1, 5, vocabulary + 1)
    full_logits, part_logits = leaf(logits), leaf(logits)
    full = divergence(full_logits.log_softmax(-1), log_q, kind, beta)
    part = local(part_logits.log_softmax(-1), log_q, kind, mass, beta)
    assert_equal_twin(part, full, part_logits, full_logits, rtol=1e-6, atol=1e-8)


@QUICK
@given(st.integers(1, 9), SEEDS, KINDS, BETAS)
def test_a_tail_divergence_is_at_most_the_full_one_and_grows_with_the_support(k, seed, kind, beta):
    log_p, log_q = logprobs(seed, 7, 12), logprobs(seed + 1, 7, 12)
    small, large = (local(log_p[:, :n], log_q[:, :n], kind, "tail", beta) for n in (k, k + 1))
    assert (small >= -1e-12).all()
    assert (small <= large + 1e-9).all()
    assert (large <= divergence(log_p, log_q, kind, beta) + 1e-9).all()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_support_of_more_than_all_mass_keeps_a_finite_tail(kind, dtype):
    masses = torch.tensor([[1.0, 1e-9], [1.0, 0.01], [0.5, 0.5], [0.999, 0.001], [0.3, 0.2]])
    for ours in masses:
        log_p, log_q = leaf(ours.log().to(dtype).expand(5, 2)), masses.log().to(dtype)
        loss = local(log_p, log_q, kind, "tail")
        assert loss.isfinite().all()
        assert gradient(loss, log_p).isfinite().all()
    assert local(log_q, log_q, kind, "tail").abs().max() < 1e-6


@QUICK
@given(st.integers(1, 8), st.integers(2, 9), SEEDS, KINDS, BETAS)
def test_a_renormalised_support_ignores_a_constant_per_position(count, k, seed, kind, beta):
    log_p, log_q, present = normal(seed, count, k), normal(seed + 1, count, k), slots(seed, count, k)
    ours, moved = leaf(log_p), leaf(log_p + normal(seed + 2, count, 1, scale=30))
    plain = local(ours, log_q, kind, "renormalised", beta, present)
    shifted = local(moved, log_q + normal(seed + 3, count, 1, scale=30), kind, "renormalised", beta, present)
    assert_equal_twin(shifted, plain, moved, ours)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("garbage", [math.nan, INF, -INF, -1e4])
def test_absent_slots_may_hold_anything(kind, garbage):
    present = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    log_p, log_q = logprobs(10, 3, 4)[:, :3], logprobs(11, 3, 4)[:, :3]
    dirty_p, dirty_q = leaf(log_p.masked_fill(~present, garbage)), log_q.masked_fill(~present, garbage)
    for mass in ("renormalised", "tail", "raw"):
        clean_p = leaf(log_p)
        clean, dirty = (
            local(clean_p, log_q, kind, mass, 0.5, present),
            local(dirty_p, dirty_q, kind, mass, 0.5, present),
        )
        assert torch.equal(clean, dirty)
        assert torch.equal(gradient(clean, clean_p), gradient(dirty, dirty_p))
        assert clean[2] == 0
        assert mass != "renormalised" or clean[1] == 0
        assert (gradient(dirty, dirty_p)[~present] == 0).all()
    loss = candidate_loss(dirty_p, dirty_q, dirty_q, present=present)
    assert loss.isfinite().all()
    assert (gradient(loss, dirty_p)[~present] == 0).all()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_fewer_than_two_present_tokens_give_no_renormalised_loss(kind):
    present = torch.tensor([[True, False], [False, False], [True, True]])
    log_p = normal(12, 3, 2, dtype=torch.float32)
    log_p[0, 0] = -INF  # whose softmax over one token is NaN
    log_p = leaf(log_p)
    loss = local(log_p, normal(13, 3, 2, dtype=torch.float32), kind, "renormalised", 0.3, present)
    assert loss[:2].tolist() == [0.0, 0.0]
    assert loss[2] > 0
    assert (gradient(loss, log_p)[:2] == 0).all()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("mass", ["renormalised", "tail", "raw"])
def test_support_divergence_is_wide_and_finite_for_extreme_and_bfloat16_log_masses(kind, mass):
    values = torch.tensor([-1e4, -20.0, -0.5, 0.0], dtype=torch.bfloat16)
    columns = [x.flatten() for x in torch.meshgrid(values, values, values, values, indexing="ij")]
    log_p, log_q = leaf(torch.stack(columns[:2], 1)), torch.stack(columns[2:], 1)
    loss = local(log_p, log_q, kind, mass)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient(loss, log_p).isfinite().all()


def test_low_precision_follows_the_float64_twin():
    log_p, log_q = (logprobs(s, 20, 9)[:, :6].bfloat16() for s in (14, 15))
    present = slots(16, 20, 6)
    for mass in ("renormalised", "tail", "raw"):
        exact = slow_support_divergence(log_p.double(), log_q, "jsd", mass, 0.3, present)
        torch.testing.assert_close(local(log_p, log_q, "jsd", mass, 0.3, present).double(), exact, rtol=1e-3, atol=1e-5)
    exact = slow_candidate_loss(log_p.double(), log_q.double(), log_q.double(), 0.2, 3.0, present)
    ours = candidate_loss(log_p, log_q, log_q, 0.2, 3.0, present)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_topk_reverse_kl_is_the_renormalised_reverse_kl():
    student, teacher = normal(17, 9, 5, scale=4), normal(18, 9, 5, scale=4)
    ours = local(student, teacher, "reverse_kl", "renormalised", present=torch.ones(9, 5, dtype=torch.bool))
    torch.testing.assert_close(objectives.topk_reverse_kl(student, teacher), ours, rtol=1e-12, atol=0)
