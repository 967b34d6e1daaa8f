"""Divergences and the policy gradient of the sampled token: their twins, and facts that follow from the equations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_case import BETAS, CLIPS, INF, KINDS, QUICK, SEEDS, assert_equal_twin, gradient, leaf, logprobs, normal
from twins import (
    slow_divergence,
    slow_policy_gradient,
)

from driftgate.method import supports
from driftgate.method.objectives import candidate_loss, clipped_tokens, divergence, log_ratio, sampled_token_loss
from driftgate.method.objectives import support_divergence as local


@QUICK
@given(
    st.integers(1, 40),
    SEEDS,
    st.sampled_from(["frozen", "recomputed"]),
    CLIPS,
    st.none() | st.floats(1.1, 5),
    st.sampled_from(["behaviour", "current"]),
)
def test_policy_gradient_and_its_clipped_tokens_equal_their_twin(count, seed, advantage, clip, dual_clip, ratio):
    behaviour, teacher = normal(seed, count), normal(seed + 1, count, scale=3)
    logp = leaf(behaviour + normal(seed + 2, count))
    twin = leaf(logp)
    how = (advantage, clip, dual_clip, ratio)
    theirs, held = slow_policy_gradient(twin, behaviour, teacher, *how)
    ours = sampled_token_loss(logp, behaviour, teacher, *how)
    assert_equal_twin(ours, theirs, logp, twin)
    gain = log_ratio(logp, behaviour, teacher, advantage)
    assert clipped_tokens(logp, behaviour, gain, *how[1:]).tolist() == held
    assert (torch.autograd.grad(ours.sum(), logp)[0] == 0).tolist() == held


def test_without_a_clip_the_loss_is_the_importance_weighted_advantage():
    logp, behaviour, teacher = normal(0, 30), normal(1, 30), normal(2, 30, scale=3)
    plain = sampled_token_loss(logp, behaviour, teacher, clip=None, dual_clip=None)
    torch.testing.assert_close(plain, -(logp - behaviour).exp() * (teacher - behaviour), rtol=1e-12, atol=0)
    assert not clipped_tokens(logp, behaviour, teacher - behaviour, clip=None, dual_clip=None).any()


def test_a_current_ratio_gives_the_score_function_gradient_and_clips_nothing():
    logp, behaviour, teacher = leaf(normal(3, 30)), normal(4, 30, scale=5), normal(5, 30, scale=5)
    loss = sampled_token_loss(logp, behaviour, teacher, "recomputed", ratio="current")
    assert torch.equal(loss, -(teacher - logp))
    assert torch.equal(torch.autograd.grad(loss.sum(), logp)[0], -(teacher - logp))
    assert not clipped_tokens(logp, behaviour, teacher - logp, ratio="current").any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policy_gradient_stays_finite_at_extreme_log_probabilities(dtype):
    values = torch.tensor([-1e4, -100.0, -1.0, 0.0], dtype=dtype)
    logp, behaviour, teacher = (x.flatten() for x in torch.meshgrid(values, values, values, indexing="ij"))
    logp = leaf(logp)
    for clip in (0.2, None):
        loss = sampled_token_loss(logp, behaviour, teacher, clip=clip, dual_clip=None if clip is None else 3.0)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert gradient(loss, logp).isfinite().all()


@QUICK
@given(st.integers(1, 12), st.integers(1, 12), SEEDS, KINDS, BETAS)
def test_divergence_and_gradient_equal_their_twin(count, classes, seed, kind, beta):
    log_q = logprobs(seed, count, classes)
    log_p = leaf(logprobs(seed + 1, count, classes))
    twin = leaf(log_p)
    theirs = torch.stack([slow_divergence(list(p.exp()), list(q.exp()), kind, beta) for p, q in zip(twin, log_q)])
    assert_equal_twin(divergence(log_p, log_q, kind, beta), theirs, log_p, twin)


@QUICK
@given(st.integers(1, 6), st.integers(1, 6), SEEDS, KINDS, BETAS, st.sampled_from([torch.float32, torch.float64]))
def test_a_class_absent_on_both_sides_changes_nothing(count, classes, seed, kind, beta, dtype):
    log_q, log_p = logprobs(seed, count, classes).to(dtype), leaf(logprobs(seed + 1, count, classes).to(dtype))
    nothing = torch.full((count, 3), -INF, dtype=dtype)
    padded = leaf(torch.cat([log_p, nothing], 1))
    ours = divergence(padded, torch.cat([log_q, nothing], 1), kind, beta)
    plain = divergence(log_p, log_q, kind, beta)
    torch.testing.assert_close(ours, plain)
    grad = gradient(ours, padded)
    assert (grad[:, classes:] == 0).all()
    torch.testing.assert_close(grad[:, :classes], gradient(plain, log_p))


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("low", [-1e4, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_at_vanishing_masses(kind, low, dtype):
    """Classes: both sides, p alone, q alone, neither."""
    half = math.log(0.5)
    log_p = leaf(torch.tensor([[half, half, low, low]], dtype=dtype))
    log_q = torch.tensor([[half, low, half, low]], dtype=dtype)
    value = divergence(log_p, log_q, kind)
    grad = gradient(value, log_p)
    assert not value.isnan().any()
    assert (grad[0, 3] == 0).all()
    if kind == "jsd":
        assert value.item() == pytest.approx(0.5 * math.log(2), rel=1e-2)
        assert grad.isfinite().all()
        assert (grad[0, 2] == 0).all()
    elif low == -INF:
        assert value.item() == INF
        assert not grad.isnan().any()
    else:
        assert value.item() == pytest.approx(5e3, rel=1e-2)
        assert grad.isfinite().all()


def test_divergence_takes_any_leading_shape():
    log_p, log_q = logprobs(6, 2, 3, 5), logprobs(7, 2, 3, 5)
    flat = divergence(log_p.flatten(0, 1), log_q.flatten(0, 1), "jsd").view(2, 3)
    assert torch.equal(divergence(log_p, log_q, "jsd"), flat)
    assert divergence(log_p[0, 0], log_q[0, 0], "jsd").shape == ()


@QUICK
@given(st.integers(1, 8), SEEDS, BETAS, st.floats(0.1, 300))
def test_jsd_is_bounded_and_symmetric_in_the_middle(classes, seed, beta, scale):
    log_p, log_q = logprobs(seed, 9, classes, scale=scale), logprobs(seed + 1, 9, classes, scale=scale)
    value = divergence(log_p, log_q, "jsd", beta)
    assert value.min() > -1e-12
    assert value.max() <= -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)) + 1e-12
    torch.testing.assert_close(divergence(log_p, log_q, "jsd", 1 - beta), divergence(log_q, log_p, "jsd", beta))
    torch.testing.assert_close(divergence(log_p, log_q, "jsd"), divergence(log_q, log_p, "jsd"))


@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 1e-5), ("reverse_kl", 1 - 1e-5)])
def test_jsd_over_beta_tends_to_the_kls(kind, beta):
    log_p, log_q = logprobs(8, 9, 5), logprobs(9, 9, 5)
    scaled = divergence(log_p, log_q, "jsd", beta) / min(beta, 1 - beta)
    torch.testing.assert_close(scaled, divergence(log_p, log_q, kind), rtol=2e-2, atol=1e-3)


def test_no_gradient_flows_into_the_teacher_or_the_behaviour_student():
    log_p, log_q, log_o = (leaf(logprobs(s, 3, 5)) for s in (19, 20, 21))
    for loss in (local(log_p, log_q, "jsd", "tail"), candidate_loss(log_p, log_o, log_q)):
        loss.sum().backward()
    assert log_q.grad is None
    assert log_o.grad is None


def test_no_tokens_give_no_losses():
    none, ids = torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int64)
    for mass in ("renormalised", "tail", "raw"):
        assert local(none, none, "jsd", mass).shape == (0,)
        assert local(none, none, "jsd", mass, present=none.bool()).shape == (0,)
    assert divergence(none, none, "jsd").shape == (0,)
    assert candidate_loss(none, none, none).shape == (0,)
    assert clipped_tokens(none[:, 0], none[:, 0], none[:, 0]).dtype == torch.bool
    assert supports.union(ids, ids).shape == (0, 8)
    assert supports.intersection(ids, ids).shape == (0, 4)
    assert supports.overlap_ratio(ids, ids).shape == (0,)


LINE, GRID, IDS = torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64)
BAD_CALLS = {
    "ratio must be behaviour or current, not 'old'": lambda: sampled_token_loss(LINE, LINE, LINE, ratio="old"),
    "advantage must be": lambda: log_ratio(LINE, LINE, LINE, "fresh"),
    "dual_clip must be above 1, not nan": lambda: clipped_tokens(LINE, LINE, LINE, dual_clip=math.nan),
    "clip must be": lambda: candidate_loss(GRID, GRID, GRID, clip=0.0),
    "dual_clip must be above 1, not 0.5": lambda: candidate_loss(GRID, GRID, GRID, dual_clip=0.5),
    "logp_teacher must have the shape of logp": lambda: candidate_loss(GRID, GRID, GRID[:2]),
    r"logp must be \[N, K\]": lambda: candidate_loss(LINE, LINE, LINE),
    "kind must be one of": lambda: divergence(GRID, GRID, "kl"),
    "beta must be above 0 and below 1, not 1.0": lambda: divergence(GRID, GRID, "jsd", 1.0),
    "beta must be above 0 and below 1, not 0.0": lambda: local(GRID, GRID, "jsd", "tail", 0.0),
    "log_q must have the shape of log_p": lambda: divergence(GRID, LINE, "jsd"),
    "mass must be one of renormalised, tail, raw, not 'rest'": lambda: local(GRID, GRID, "jsd", "rest"),
    "log_p must be .* K at least 2": lambda: local(GRID[:, :1], GRID[:, :1], "jsd", "renormalised"),
    "present must have the shape of log_p": lambda: local(GRID, GRID, "jsd", "raw", present=LINE.bool()),
    "present must be bool, not torch.int64": lambda: local(GRID, GRID, "jsd", "raw", present=IDS),
    "student_ids must be int64 or int32": lambda: supports.union(GRID, IDS),
    "teacher_ids must be int64 or int32": lambda: supports.overlap_ratio(IDS, IDS[0]),
    "teacher_ids has 2 positions": lambda: supports.intersection(IDS, IDS[:2]),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_bad_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message]()
