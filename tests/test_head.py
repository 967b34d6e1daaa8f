"""The chunked head against log_softmax over the whole vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from twins import slow_divergence, slow_logprobs

from driftgate.method import head
from driftgate.method.objectives import divergence
from driftgate.method.vocabulary import vocabulary_divergence

QUICK = settings(max_examples=40, deadline=None)
KINDS = ["reverse_kl", "forward_kl", "jsd"]


def problem(count=37, hidden=16, vocabulary=101, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return states, weight, torch.randint(vocabulary, (count, 5), generator=generator)


def gradients(value, *inputs):
    """Of a sum with unequal weights, so that a mix-up of tokens shows."""
    scale = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    return torch.autograd.grad((value * scale).sum(), inputs)


@pytest.mark.parametrize("chunk", [1, 7, 37, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_gradients_equal_the_full_softmax(chunk, temperature):
    hidden, weight, ids = problem()
    ours = head.token_logprobs(hidden, weight, ids[:, 0], temperature, chunk)
    theirs = slow_logprobs(hidden, weight, temperature).gather(1, ids[:, :1])[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_weighted_loss_and_its_gradients_equal_those_in_two_passes(chunk, temperature):
    """A loss that is not linear in log p and differs from token to token."""
    hidden, weight, ids = problem()
    scale, token_weight = torch.linspace(0.5, 2, 37).double(), torch.linspace(-1, 2, 37).double()

    def loss_of(part, logp):
        return (logp * scale[part]).exp() + logp.square()

    total, losses, logp = head.weighted_loss(hidden, weight, ids[:, 0], token_weight, loss_of, temperature, chunk)
    expected = slow_logprobs(hidden, weight, temperature).gather(1, ids[:, :1])[:, 0]
    torch.testing.assert_close(logp, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses, loss_of(slice(None), expected).detach(), rtol=1e-12, atol=1e-12)
    theirs = (token_weight * loss_of(slice(None), expected)).sum()
    torch.testing.assert_close(total, theirs, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(total * 0.3, (hidden, weight))
    for one, other in zip(found, torch.autograd.grad(theirs * 0.3, (hidden, weight))):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weighted_loss_sees_the_log_probabilities_of_the_other_paths_bit_for_bit(dtype):
    hidden, weight, ids = problem(300, 32, 1000, dtype)
    logp = head.weighted_loss(hidden, weight, ids[:, 0], torch.ones(300), lambda part, logp: -logp)[2]
    assert torch.equal(logp, head.token_logprobs(hidden, weight, ids[:, 0]))
    assert torch.equal(logp, head.summary(hidden, weight, ids[:, :1]).logp[:, 0])


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="torch before 2.13 has no fused loss")
def test_token_logprobs_equal_torchs_fused_cross_entropy():
    hidden, weight, ids = problem(300, 32, 1000, torch.float32)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
    how = {"reduction": "none", "options": options}
    theirs = -torch.nn.functional.linear_cross_entropy(hidden, weight, ids[:, 0], **how)
    ours = head.token_logprobs(hidden, weight, ids[:, 0])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_in_place_is_the_softmax(dtype):
    """Rows of a true vocabulary's width, and one that is all but certain."""
    logits = torch.randn(5, 151_936, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 5
    logits[3, 7] = 1e4
    for ours, theirs in ((head.softmax_, torch.softmax), (head.log_softmax_, torch.log_softmax)):
        place = logits.clone()
        assert ours(place).data_ptr() == place.data_ptr()
        assert torch.equal(place, theirs(logits, -1))


@QUICK
@given(
    st.integers(0, 20),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 30),
    st.sampled_from([1.0, 0.6]),
    st.integers(0, 10**6),
)
def test_log_probabilities_of_many_tokens_equal_the_full_softmax(count, k, vocabulary, chunk, temperature, seed):
    """Small vocabularies, so that a position often names a token twice."""
    hidden, weight, _ = problem(count, 5, vocabulary, seed=seed)
    ids = torch.randint(vocabulary, (count, k), generator=torch.Generator().manual_seed(seed))
    ours = head.token_logprobs(hidden, weight, ids, temperature, chunk)
    theirs = slow_logprobs(hidden, weight, temperature).gather(1, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_column_of_ids_is_a_line_of_ids_bit_for_bit(dtype):
    hidden, weight, ids = problem(dtype=dtype)
    line = head.token_logprobs(hidden, weight, ids[:, 0], 0.7, 8)
    column = head.token_logprobs(hidden, weight, ids[:, :1], 0.7, 8)
    assert torch.equal(line, column[:, 0])
    for one, other in zip(gradients(line, hidden, weight), gradients(column, hidden, weight)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_summary_equals_the_full_softmax(dtype, temperature):
    hidden, weight, ids = problem(dtype=dtype)
    found = head.summary(hidden, weight, ids, top=9, entropy=True, temperature=temperature, chunk=8)
    full = slow_logprobs(hidden.double(), weight.double(), temperature)
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 2e-5}
    assert torch.equal(found.logp, head.token_logprobs(hidden, weight, ids, temperature, 8))
    assert torch.equal(found.top_ids, full.topk(9).indices)
    torch.testing.assert_close(found.top_logp.double(), full.topk(9).values, **close)
    torch.testing.assert_close(found.entropy.double(), -(full.exp() * full).sum(-1), **close)
    assert found.top_logp.dtype == found.entropy.dtype == found.logp.dtype
    assert not any(value.requires_grad for value in found)


def test_a_summary_holds_only_what_was_asked_for():
    hidden, weight, ids = problem()
    found = head.summary(hidden, weight, ids[:, :1])
    assert (found.entropy, found.top_ids, found.top_logp) == (None, None, None)
    assert torch.equal(found.logp[:, 0], head.token_logprobs(hidden, weight, ids[:, 0]))


@pytest.mark.parametrize("scale", [1e4, 0.0])
def test_a_summary_of_a_certain_or_uniform_distribution(scale):
    weight = torch.eye(6)
    found = head.summary(torch.eye(6) * scale, weight, torch.arange(6)[:, None], top=6, entropy=True)
    assert found.entropy.tolist() == pytest.approx([0.0 if scale else torch.tensor(6.0).log().item()] * 6)
    assert found.top_logp.isfinite().all()


@QUICK
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 15),
    st.sampled_from(KINDS),
    st.floats(0.02, 0.98),
    st.sampled_from([1.0, 0.7]),
    st.integers(0, 10**6),
)
def test_vocabulary_divergence_and_gradients_equal_the_full_softmax(
    count, vocabulary, chunk, kind, beta, temperature, seed
):
    hidden, weight, _ = problem(count, 6, vocabulary, seed=seed)
    other_hidden, other_weight, _ = problem(count, 4, vocabulary, seed=seed + 1)
    log_p = slow_logprobs(hidden, weight, temperature)
    log_q = slow_logprobs(other_hidden, other_weight, temperature)
    ours = vocabulary_divergence(hidden, weight, other_hidden, other_weight, kind, beta, temperature, chunk)
    theirs = divergence(log_p, log_q, kind, beta)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_vocabulary_divergence_and_gradients_equal_the_loop_over_tokens(kind, temperature):
    hidden, weight, _ = problem(count=5, vocabulary=23)
    other_hidden, other_weight, _ = problem(count=5, hidden=8, vocabulary=23, seed=1)
    p = slow_logprobs(hidden, weight, temperature).exp()
    q = slow_logprobs(other_hidden, other_weight, temperature).exp().detach()
    ours = vocabulary_divergence(hidden, weight, other_hidden, other_weight, kind, 0.3, temperature, 2)
    theirs = torch.stack([slow_divergence(list(a), list(b), kind, 0.3) for a, b in zip(p, q)])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_divergence_of_bfloat16_is_float32_and_trains_the_student_alone(kind):
    hidden, weight, _ = problem(dtype=torch.bfloat16)
    other_hidden, other_weight, _ = problem(hidden=8, dtype=torch.bfloat16, seed=1)
    ours = vocabulary_divergence(hidden, weight, other_hidden, other_weight, kind)
    log_p, log_q = (
        slow_logprobs(h.double(), w.double(), 1.0) for h, w in ((hidden, weight), (other_hidden, other_weight))
    )
    torch.testing.assert_close(ours.double(), divergence(log_p, log_q, kind), rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32
    ours.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert other_hidden.grad is None
    assert other_weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_divergence_is_finite_for_certain_and_opposed_sides(kind):
    weight = torch.eye(3).mul(1e4).requires_grad_()
    hidden = torch.eye(3).requires_grad_()
    ours = vocabulary_divergence(hidden, weight, torch.eye(3).flip(0), weight, kind)
    assert ours.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(ours, hidden, weight))
    assert ours[1] == 0
    if kind == "jsd":
        assert ours[0].item() == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_divergence_needs_no_gradient(kind):
    hidden, weight, _ = problem()
    other_hidden, other_weight, _ = problem(hidden=8, seed=1)
    trained = vocabulary_divergence(hidden, weight, other_hidden, other_weight, kind, chunk=10)
    with torch.no_grad():
        evaluated = vocabulary_divergence(hidden, weight, other_hidden, other_weight, kind, chunk=10)
    assert torch.equal(trained, evaluated)
    assert not evaluated.requires_grad
    log_p, log_q = slow_logprobs(hidden, weight, 1.0), slow_logprobs(other_hidden, other_weight, 1.0)
    torch.testing.assert_close(evaluated, divergence(log_p, log_q, kind).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_support_logits_and_gradients_equal_the_full_product(chunk, temperature):
    hidden, weight, ids = problem()
    ours = head.support_logits(hidden, weight, ids, temperature, chunk)
    theirs = (hidden @ weight.T / temperature).gather(1, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_support_that_names_a_token_twice_sums_both_gradients():
    hidden, weight, ids = problem(count=3)
    ids = ids[:, :1].expand(3, 4)
    ours = head.support_logits(hidden, weight, ids)
    theirs = (hidden @ weight.T).gather(1, ids)
    torch.testing.assert_close(gradients(ours, weight)[0], gradients(theirs, weight)[0], rtol=1e-11, atol=1e-12)


def test_bfloat16_operands_give_float32_logits():
    hidden, weight, ids = problem(dtype=torch.bfloat16)
    ours = head.token_logprobs(hidden, weight, ids[:, 0])
    assert ours.dtype == torch.float32
    exact = slow_logprobs(hidden.double(), weight.double(), 1.0).gather(1, ids[:, :1])[:, 0]
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)
    support = head.support_logits(hidden, weight, ids)
    torch.testing.assert_close(
        support.double(), (hidden.double() @ weight.double().T).gather(1, ids), rtol=0, atol=1e-5
    )
    assert gradients(ours, hidden)[0].dtype == torch.bfloat16


def test_every_head_function_takes_bfloat16():
    hidden, weight, ids = problem(dtype=torch.bfloat16)
    exact = slow_logprobs(hidden.double(), weight.double(), 1.0).topk(3).values
    found = head.summary(hidden, weight, ids, top=3)
    torch.testing.assert_close(found.top_logp.double(), exact, rtol=0, atol=1e-5)
    assert vocabulary_divergence(hidden, weight, hidden, weight, "reverse_kl").abs().max() == 0


def test_autocast_does_not_round_the_logits():
    hidden, weight, ids = problem(dtype=torch.float32)
    for function in (head.token_logprobs, head.support_logits):
        with torch.autocast("cpu", torch.bfloat16):
            ours = function(hidden, weight, ids)
        assert torch.equal(ours, function(hidden, weight, ids))
        assert gradients(ours, weight)[0].dtype == torch.float32


def test_no_tokens_give_no_log_probabilities():
    hidden, weight, ids = problem(count=0)
    assert head.token_logprobs(hidden, weight, ids[:, 0]).shape == (0,)
    assert head.token_logprobs(hidden, weight, ids).shape == (0, 5)
    assert head.support_logits(hidden, weight, ids).shape == (0, 5)
    found = head.summary(hidden, weight, ids, top=3, entropy=True)
    assert [value.shape for value in found] == [(0, 5), (0,), (0, 3), (0, 3)]
    divergences = vocabulary_divergence(hidden, weight, hidden, weight, "jsd")
    assert divergences.shape == (0,)
    assert (gradients(divergences, weight)[0] == 0).all()


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel())
        return result


CUT = ["token_logprobs", "token_logprobs of many", "weighted_loss", "support_logits", "summary", *KINDS]


@pytest.mark.parametrize("function", CUT)
def test_no_tensor_of_tokens_times_vocabulary_is_made(function):
    """Forward and backward."""
    hidden, weight, ids = problem(count=512, vocabulary=1000)
    other_hidden, other_weight, _ = problem(count=512, hidden=8, vocabulary=1000)
    ones = torch.ones(512)
    calls = {
        "token_logprobs": lambda: head.token_logprobs(hidden, weight, ids[:, 0], 1.0, 32),
        "token_logprobs of many": lambda: head.token_logprobs(hidden, weight, ids, 1.0, 32),
        "weighted_loss": lambda: head.weighted_loss(hidden, weight, ids[:, 0], ones, lambda part, p: p, 1.0, 32)[0],
        "support_logits": lambda: head.support_logits(hidden, weight, ids, 1.0, 32),
        "summary": lambda: head.summary(hidden, weight, ids, 5, True, 1.0, 32).logp,
    }
    with Largest() as largest:
        if function in KINDS:
            value = vocabulary_divergence(hidden, weight, other_hidden, other_weight, function, 0.5, 1.0, 32)
        else:
            value = calls[function]()
        if value.requires_grad:
            value.sum().backward()
    assert value.requires_grad == (function != "summary")
    assert largest.size <= 32 * 1000


STATES, WEIGHT, IDS = torch.zeros(4, 3), torch.zeros(7, 3), torch.zeros(4, 2, dtype=torch.int64)
BAD_CALLS = {
    r"ids must be int64 \[N\] or \[N, K\], not torch.int32": lambda: head.token_logprobs(STATES, WEIGHT, IDS.int()),
    r"ids must be int64 \[N, K\], not torch.int64 \[4\]": lambda: head.summary(STATES, WEIGHT, IDS[:, 0]),
    "ids has 3 positions but hidden has 4": lambda: head.token_logprobs(STATES, WEIGHT, IDS[:3]),
    "top must be from 0 to the 7 tokens of the vocabulary, not 8": lambda: head.summary(STATES, WEIGHT, IDS, top=8),
    "hidden_q has 2 positions": lambda: vocabulary_divergence(STATES, WEIGHT, STATES[:2], WEIGHT, "jsd"),
    "weight_q has 6 tokens": lambda: vocabulary_divergence(STATES, WEIGHT, STATES, WEIGHT[:6], "jsd"),
    "kind must be one of": lambda: vocabulary_divergence(STATES, WEIGHT, STATES, WEIGHT, "tv"),
    "beta must be above 0": lambda: vocabulary_divergence(STATES, WEIGHT, STATES, WEIGHT, "jsd", 0.0),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_bad_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message]()
