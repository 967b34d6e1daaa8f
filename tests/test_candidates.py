"""The candidates' policy gradient and the supports against their twins."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_case import CLIPS, QUICK, SEEDS, assert_equal_twin, gradient, leaf, logprobs, normal, slots
from twins import (
    slow_candidate_loss,
    slow_intersection,
    slow_union,
)

from driftgate.method import supports
from driftgate.method.objectives import candidate_loss, divergence, sampled_token_loss


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
