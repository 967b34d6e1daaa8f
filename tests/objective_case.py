"""Random log-probabilities and supports for the tests of objectives."""

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st

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
