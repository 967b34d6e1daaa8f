"""Heads with a bias, a scale or a cap: every function of the chunked head against autograd through all logits."""

import pytest
import torch
from test_head import KINDS, Largest, gradients, problem
from twins import slow_head_logits

from driftgate.method import head
from driftgate.method.logits import Head
from driftgate.method.objectives import divergence
from driftgate.method.vocabulary import vocabulary_divergence

HEADS = {
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "cap": {"cap": 2.5},
    "all": {"bias": True, "scale": 1.7, "cap": 4.0},
}
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def made(kind, seed=0, dtype=torch.float64, **sizes):
    """Hidden states, the head, ids, and the tensors that have a gradient."""
    hidden, weight, ids = problem(seed=seed, dtype=dtype, **sizes)
    settings = dict(HEADS[kind])
    bias = None
    if settings.pop("bias", False):
        generator = torch.Generator().manual_seed(seed + 10)
        bias = torch.randn(len(weight), generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    output = Head(weight, bias, **settings)
    return hidden, output, ids, [t for t in (hidden, weight, bias) if t is not None]


def slow_logp(hidden, output, temperature):
    logits = slow_head_logits(hidden, output.weight, output.bias, output.scale, output.cap)
    return torch.log_softmax(logits / temperature, -1)


def same(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs, **EXACT)
    for one, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs)):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_log_probabilities_and_gradients(kind, temperature, chunk):
    hidden, output, ids, inputs = made(kind)
    same(
        head.token_logprobs(hidden, output, ids, temperature, chunk),
        slow_logp(hidden, output, temperature).gather(1, ids),
        inputs,
    )


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_a_weighted_loss_and_its_gradients(kind, temperature, chunk):
    hidden, output, ids, inputs = made(kind)
    token_weight = torch.linspace(-1, 2, 37).double()

    def loss_of(part, logp):
        return logp.exp() + logp.square()

    total, losses, logp = head.weighted_loss(hidden, output, ids[:, 0], token_weight, loss_of, temperature, chunk)
    expected = slow_logp(hidden, output, temperature).gather(1, ids[:, :1])[:, 0]
    torch.testing.assert_close(logp, expected.detach(), **EXACT)
    torch.testing.assert_close(losses, loss_of(None, expected).detach(), **EXACT)
    same(total, (token_weight * loss_of(None, expected)).sum(), inputs)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_summary(kind, temperature):
    hidden, output, ids, _ = made(kind)
    found = head.summary(hidden, output, ids, 9, True, temperature, 8)
    exact = slow_logp(hidden, output, temperature).detach()
    torch.testing.assert_close(found.logp, exact.gather(1, ids), **EXACT)
    torch.testing.assert_close(found.entropy, -(exact.exp() * exact).sum(-1), **EXACT)
    torch.testing.assert_close(found.top_logp, exact.topk(9).values, **EXACT)
    assert torch.equal(found.top_ids, exact.topk(9).indices)
    assert torch.equal(found.logp, head.token_logprobs(hidden, output, ids, temperature, 8))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_logits_of_a_support_and_their_gradients(kind, temperature, chunk):
    hidden, output, ids, inputs = made(kind)
    ids[3] = ids[3, 0]  # a token that stands twice counts twice
    logits = slow_head_logits(hidden, output.weight, output.bias, output.scale, output.cap) / temperature
    same(head.support_logits(hidden, output, ids, temperature, chunk), logits.gather(1, ids), inputs)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("teacher", ["bias", "cap", "all"])
@pytest.mark.parametrize("divergence_kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_divergence_over_the_vocabulary_of_two_heads(kind, teacher, divergence_kind, temperature):
    hidden, output, _, inputs = made(kind)
    hidden_q, output_q, _, inputs_q = made(teacher, seed=1, hidden=8)
    ours = vocabulary_divergence(hidden, output, hidden_q, output_q, divergence_kind, 0.3, temperature, 10)
    log_q = slow_logp(hidden_q, output_q, temperature).detach()
    theirs = divergence(slow_logp(hidden, output, temperature), log_q, divergence_kind, 0.3)
    same(ours, theirs, inputs)
    again = vocabulary_divergence(hidden, output, hidden_q, output_q, divergence_kind, 0.3, temperature, 10)
    assert set(torch.autograd.grad(again.sum(), inputs_q, allow_unused=True)) == {None}


def calls(hidden, output, ids, chunk=8):
    ones = torch.ones(len(hidden))
    other = hidden.detach().flip(0)
    return {
        "token_logprobs": lambda: head.token_logprobs(hidden, output, ids, 0.7, chunk),
        "weighted_loss": lambda: head.weighted_loss(hidden, output, ids[:, 0], ones, lambda _, p: p, 0.7, chunk)[0],
        "support_logits": lambda: head.support_logits(hidden, output, ids, 0.7, chunk),
        "divergence": lambda: vocabulary_divergence(hidden, output, other, output, "reverse_kl", 0.5, 0.7, chunk),
    }


FUNCTIONS = ["token_logprobs", "weighted_loss", "support_logits", "divergence"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_frozen_bias_gets_no_gradient_and_changes_none(function):
    """As with LoRA."""
    hidden, output, ids, _ = made("all")
    trained = gradients(calls(hidden, output, ids)[function](), hidden, output.weight)
    output.bias.requires_grad_(False)
    call = calls(hidden, output, ids)[function]
    assert all(map(torch.equal, trained, gradients(call(), hidden, output.weight)))
    call().sum().backward()
    assert output.bias.grad is None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_plain_head_gives_the_bits_of_its_weight(function):
    hidden, weight, ids = problem(dtype=torch.float32)
    results = []
    for output in (weight, Head(weight)):
        value = calls(hidden, output, ids)[function]()
        results.append([value, *gradients(value, hidden, weight)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bfloat16_operands_give_float32_values_and_bfloat16_gradients(function):
    hidden, output, ids, inputs = made("all", dtype=torch.bfloat16)
    value = calls(hidden, output, ids)[function]()
    assert value.dtype == torch.float32
    wide = Head(output.weight.double(), output.bias.double(), output.scale, output.cap)
    torch.testing.assert_close(value.double(), calls(hidden.double(), wide, ids)[function](), rtol=1e-4, atol=1e-4)
    assert all(grad.dtype == torch.bfloat16 for grad in gradients(value, *inputs))


class Made(Largest):
    """Counts the tensors of a chunk's logits that an operation makes anew."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format or func is torch.ops.aten.empty_like.default:
            self.count += result.numel() == 32 * 1000
        return result


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_tensor_of_tokens_times_vocabulary_is_made(function):
    hidden, output, ids, _ = made("all", count=512, vocabulary=1000)
    with Largest() as largest:
        calls(hidden, output, ids, 32)[function]().sum().backward()
    assert largest.size <= 32 * 1000


def test_only_a_cap_needs_a_second_chunk_of_logits():
    rooms = {}
    for kind in HEADS:
        hidden, output, ids, _ = made(kind, count=64, vocabulary=1000)
        with Made() as found:
            calls(hidden, output, ids, 32)["weighted_loss"]()
        rooms[kind] = found.count
    assert rooms == {"bias": 1, "scale": 1, "cap": 2, "all": 2}


def test_the_gradient_of_a_capped_logit_far_beyond_the_cap_is_0_and_not_nan():
    hidden, output, ids, inputs = made("cap")
    for factor in (1e3, 1e30):
        value = head.token_logprobs(hidden * factor, output, ids)
        assert value.isfinite().all()
        assert all(grad.isfinite().all() for grad in gradients(value, *inputs[1:]))
