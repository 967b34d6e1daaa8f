"""Divergences, supports and policy-gradient losses against their twins, and facts that follow from the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import (
    slow_candidate_loss,
    slow_divergence,
    slow_intersection,
    slow_policy_gradient,
    slow_support_divergence,
    slow_union,
)

from driftgate.method import objectives, supports
from driftgate.method.objectives import candidate_loss, clipped_tokens, divergence, sampled_token_loss
from driftgate.method.objectives import support_divergence as local

QUICK = settings(max_examples=60, deadline=None)
SEEDS, KINDS = st.integers(0, 10**6), st.sampled_from(["reverse_kl", "forward_kl", "jsd"])
BETAS, CLIPS = st.floats(0.02, 0.98), st.none() | st.floats(0.05, 0.5)
INF = math.inf


def normal(seed, *shape, scale=1.0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(scale).to(dtype)


def logprobs(seed, *shape, scale=3.0):
    return normal(seed, *shape, scale=scale).log_softmax(-1)


def slots(seed, *shape):
    """Which slots of a support hold a token: at random, with some rows empty, some of one token, some full."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) < torch.rand(shape[0], 1, generator=generator) * 1.4 - 0.2


def leaf(values):
    return values.detach().clone().requires_grad_()


def gradient(loss, of):
    """Of a sum with unequal weights, so that a mix-up of positions shows."""
    scale = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return torch.autograd.grad((loss * scale).sum(), of, retain_graph=True)[0]


def assert_equal_twin(ours, theirs, of, twin_of, rtol=1e-8, atol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient(ours, of), gradient(theirs, twin_of), rtol=rtol, atol=atol)


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
    assert clipped_tokens(logp, behaviour, teacher, *how).tolist() == held
    assert (torch.autograd.grad(ours.sum(), logp)[0] == 0).tolist() == held


def test_without_a_clip_the_loss_is_the_importance_weighted_advantage():
    logp, behaviour, teacher = normal(0, 30), normal(1, 30), normal(2, 30, scale=3)
    plain = sampled_token_loss(logp, behaviour, teacher, clip=None, dual_clip=None)
    torch.testing.assert_close(plain, -(logp - behaviour).exp() * (teacher - behaviour), rtol=1e-12, atol=0)
    assert not clipped_tokens(logp, behaviour, teacher, clip=None, dual_clip=None).any()


def test_a_current_ratio_gives_the_score_function_gradient_and_clips_nothing():
    logp, behaviour, teacher = leaf(normal(3, 30)), normal(4, 30, scale=5), normal(5, 30, scale=5)
    loss = sampled_token_loss(logp, behaviour, teacher, "recomputed", ratio="current")
    assert torch.equal(loss, -(teacher - logp))
    assert torch.equal(torch.autograd.grad(loss.sum(), logp)[0], -(teacher - logp))
    assert not clipped_tokens(logp, behaviour, teacher, ratio="current").any()


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


def test_no_gradient_flows_into_the_teacher_or_the_behaviour_student():
    log_p, log_q, log_o = (leaf(logprobs(s, 3, 5)) for s in (19, 20, 21))
    for loss in (local(log_p, log_q, "jsd", "tail"), candidate_loss(log_p, log_o, log_q)):
        loss.sum().backward()
    assert log_q.grad is None
    assert log_o.grad is None


@QUICK
@given(st.integers(1, 8), st.integers(1, 8), SEEDS, CLIPS, st.none() | st.floats(1.1, 5), st.booleans())
def test_candidate_loss_and_gradient_equal_their_twin(count, k, seed, clip, dual_clip, whole):
    behaviour, teacher = logprobs(seed, count, k + 1)[:, :k], logprobs(seed + 1, count, k + 1)[:, :k]
    logp = leaf(behaviour + normal(seed + 2, count, k, scale=0.4))
    twin = leaf(logp)
    present = torch.ones(count, k, dtype=torch.bool) if whole else slots(seed + 3, count, k)
    ours = candidate_loss(logp, behaviour, teacher, clip, dual_clip, None if whole else present)
    theirs = slow_candidate_loss(twin, behaviour, teacher, clip, dual_clip, present)
    assert_equal_twin(ours, theirs, logp, twin)


def test_one_candidate_is_the_sampled_token_loss():
    logp, behaviour, teacher = normal(22, 30), normal(23, 30), normal(24, 30, scale=3)
    one = candidate_loss(logp[:, None], behaviour[:, None], teacher[:, None], 0.2, 3.0)
    assert torch.equal(one, sampled_token_loss(logp, behaviour, teacher, "recomputed", 0.2, 3.0))


def test_candidates_over_the_whole_vocabulary_start_with_the_gradient_of_the_reverse_kl():
    logits, log_q = normal(25, 6, 11), logprobs(26, 6, 11)
    one, other = leaf(logits), leaf(logits)
    candidates = candidate_loss(one.log_softmax(-1), logits.log_softmax(-1), log_q)
    full = divergence(other.log_softmax(-1), log_q, "reverse_kl")
    torch.testing.assert_close(gradient(candidates, one), gradient(full, other), rtol=1e-9, atol=1e-12)


def test_candidate_loss_stays_finite_at_extreme_log_probabilities():
    values = torch.tensor([-1e4, -1.0, 0.0])
    grids = torch.meshgrid(*[values] * 6, indexing="ij")
    logp, behaviour, teacher = (torch.stack([x.flatten() for x in grids[i : i + 2]], 1) for i in (0, 2, 4))
    logp = leaf(logp)
    for clip in (0.2, None):
        loss = candidate_loss(logp, behaviour, teacher, clip)
        assert loss.isfinite().all()
        assert gradient(loss, logp).isfinite().all()


def draw_ids(seed, count, k, vocabulary=12, dtype=torch.int64):
    """Distinct ids per position, some slots empty."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(count, vocabulary, generator=generator).argsort(-1)[:, :k]
    return ids.masked_fill(torch.rand(count, k, generator=generator) < 0.1, -1).to(dtype)


@QUICK
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), SEEDS, st.sampled_from([torch.int32, torch.int64]))
def test_supports_equal_their_twins(count, ks, kt, seed, dtype):
    student, teacher = draw_ids(seed, count, ks, dtype=dtype), draw_ids(seed + 1, count, kt, dtype=dtype)
    union, both = supports.union(student, teacher), supports.intersection(student, teacher)
    assert union.dtype == both.dtype == dtype
    assert union.tolist() == slow_union(student, teacher)
    assert both.tolist() == slow_intersection(student, teacher)
    for row, s, t, common in zip(union.tolist(), student.tolist(), teacher.tolist(), both.tolist()):
        tokens = [v for v in row if v >= 0]
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == {*s, *t} - {-1}
        assert set(common) - {-1} == (set(s) & set(t)) - {-1}
    shares = [sum(v >= 0 for v in row) / kt for row in both.tolist()]
    torch.testing.assert_close(supports.overlap_ratio(student, teacher), torch.tensor(shares))


def test_a_support_overlaps_with_itself_whole():
    ids = torch.arange(12).view(3, 4)
    assert supports.overlap_ratio(ids, ids.flip(1)).tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(supports.intersection(ids.flip(1), ids), ids)
    assert (supports.union(ids, ids)[:, 4:] == -1).all()


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
    "advantage must be": lambda: clipped_tokens(LINE, LINE, LINE, "fresh"),
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
