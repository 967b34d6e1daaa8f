"""The chunked head against log_softmax over the whole vocabulary."""

import pytest
import torch
from twins import slow_logprobs

from driftgate.method import head


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


def test_top_k_is_that_of_the_full_product():
    hidden, weight, _ = problem()
    ids, logits = head.top_k(hidden, weight, 9, temperature=0.5, chunk=5)
    full = (hidden @ weight.T / 0.5).topk(9)
    assert torch.equal(ids, full.indices)
    torch.testing.assert_close(logits, full.values, rtol=1e-12, atol=1e-12)


def test_reverse_kl_is_that_of_the_full_softmax():
    hidden, weight, _ = problem()
    other_hidden, other_weight, _ = problem(hidden=8, seed=1)
    log_p, log_q = slow_logprobs(hidden, weight, 0.8), slow_logprobs(other_hidden, other_weight, 0.8)
    ours = head.reverse_kl(hidden, weight, other_hidden, other_weight, temperature=0.8, chunk=10)
    torch.testing.assert_close(ours, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-10, atol=1e-12)


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
    hidden, weight, _ = problem(dtype=torch.bfloat16)
    exact = (hidden.double() @ weight.double().T).topk(3).values
    torch.testing.assert_close(head.top_k(hidden, weight, 3)[1].double(), exact, rtol=0, atol=1e-5)
    assert head.reverse_kl(hidden, weight, hidden, weight).abs().max() == 0


def test_autocast_does_not_round_the_logits():
    hidden, weight, ids = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = head.token_logprobs(hidden, weight, ids[:, 0])
    assert torch.equal(ours, head.token_logprobs(hidden, weight, ids[:, 0]))
    assert gradients(ours, weight)[0].dtype == torch.float32


def test_no_tokens_give_no_log_probabilities():
    hidden, weight, ids = problem(count=0)
    assert head.token_logprobs(hidden, weight, ids[:, 0]).shape == (0,)
    assert head.support_logits(hidden, weight, ids).shape == (0, 5)


@pytest.mark.parametrize("function", ["token_logprobs", "support_logits"])
def test_no_tensor_of_tokens_times_vocabulary_is_made(function):
    """Counts the largest tensor that any operation makes, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, torch.Tensor):
                    self.size = max(self.size, value.numel())
            return result

    hidden, weight, ids = problem(count=512, vocabulary=1000)
    with Largest() as largest:
        wanted = ids[:, 0] if function == "token_logprobs" else ids
        getattr(head, function)(hidden, weight, wanted, 1.0, 32).sum().backward()
    assert largest.size <= 32 * 1000
