"""The sampled part of a reverse KL: unbiased, summed exactly over every token that could have been sampled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_case import QUICK, SEEDS, leaf, logprobs, normal, slots

from driftgate.method.logits import Head
from driftgate.method.objectives import divergence, support_divergence, tail_mass
from driftgate.method.residual import tail_residual
from driftgate.method.scores import Scored, TokenScores
from driftgate.objectives import Outputs
from driftgate.objectives.divergence import DivergenceObjective

V, K = 11, 4
OBJECTIVE = DivergenceObjective(kind="divergence", support="teacher", k=K, mass="residual")


def mean_over_samples(logits, behaviour, teacher):
    """The mean of the objective's loss over y_t drawn from the behaviour student: [N]."""
    log_p, ids = logits.log_softmax(-1), teacher.topk(K, dim=-1).indices
    losses = []
    for token in range(V):
        sampled = torch.full((len(logits),), token)
        given_ = {"top_ids": ids, "top_logp": teacher.gather(1, ids), "logp": teacher[:, token]}
        scores = Scored(behaviour=TokenScores(logp=behaviour[:, token]), teacher=TokenScores(**given_))
        outputs = Outputs(
            logits, Head(logits), log_p[:, token], 1.0, supports={OBJECTIVE: log_p.gather(1, ids)}, ids=sampled
        )
        losses.append(behaviour[:, token].exp() * OBJECTIVE.loss(outputs, scores))
    return sum(losses)


@QUICK
@given(st.integers(1, 6), SEEDS, st.booleans())
def test_value_and_gradient_are_those_of_the_whole_vocabulary_on_average(count, seed, fresh):
    logits, teacher = leaf(normal(seed, count, V, scale=2)), logprobs(seed + 1, count, V, scale=2)
    behaviour = (logits.detach() + (0 if fresh else normal(seed + 2, count, V))).log_softmax(-1)
    full = divergence(logits.log_softmax(-1), teacher, "reverse_kl")
    mean = mean_over_samples(logits, behaviour, teacher)
    torch.testing.assert_close(mean, full, rtol=1e-9, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (mean, full))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_without_the_residual_the_mean_is_too_small():
    logits, teacher = normal(0, 5, V, scale=2), logprobs(1, 5, V, scale=2)
    ids = teacher.topk(K, dim=-1).indices
    log_p = logits.log_softmax(-1)
    tails = support_divergence(log_p.gather(1, ids), teacher.gather(1, ids), "reverse_kl", "tail")
    assert (tails < divergence(log_p, teacher, "reverse_kl") - 1e-4).any()


@QUICK
@given(st.integers(1, 6), SEEDS)
def test_the_tail_is_what_the_present_tokens_leave(count, seed):
    log_p, present = logprobs(seed, count, V)[:, :K], slots(seed, count, K)
    wanted = [1 - sum(p for p, here in zip(*row) if here) for row in zip(log_p.exp().tolist(), present.tolist())]
    assert tail_mass(log_p, present).exp().tolist() == pytest.approx(wanted, rel=1e-9)


def test_a_token_of_the_support_adds_nothing_and_a_length_is_checked():
    line, inside = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    assert torch.equal(tail_residual(line, line, line, line, line, inside), line)
    with pytest.raises(ValueError, match="tail has 1 tokens"):
        tail_residual(line, line, line, line[:1], line, inside)
