"""Every architecture of docs/models.md: training and rollouts against the model alone, without padding or cache."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from architectures import CONFIGS, FLOAT32, FUSED, model_of

from driftgate.config import ModelSettings
from driftgate.data.packing import pack
from driftgate.method.head import token_logprobs
from driftgate.models.causal import check_causal
from driftgate.models.head import check_head
from driftgate.models.load import DTYPES, load_model
from driftgate.models.policy import Policy
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine

CPU = torch.device("cpu")
PROMPTS = [(7, 8, 9), (10, 11, 12, 13), (20, 21, 22, 23, 24, 25, 26, 27, 28), (30, 31, 32)]
RESPONSES = [(5, 6, 7, 9, 11), (12,), (3, 4, 5, 6, 7, 8), (40, 41, 42, 43, 44, 45, 46, 47, 3, 4, 5)]


@pytest.fixture(scope="module", params=CONFIGS)
def models(request, tmp_path_factory):
    """As driftgate loads it; and a naive one: attention and experts step by step."""
    folder = tmp_path_factory.mktemp("model")
    model_of(request.param).save_pretrained(folder)
    dtype = "float32" if request.param in FLOAT32 else "float64"
    loaded = load_model(ModelSettings.model_validate({"path": str(folder), "dtype": dtype}), "student", CPU)
    attention = "sdpa" if request.param in FUSED else "eager"
    how = {"dtype": DTYPES[dtype], "attn_implementation": attention, "experts_implementation": "eager"}
    return loaded, transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval()


def alone(naive, prompt, response):
    """Log-probabilities of a response's tokens, from a forward of this sequence alone."""
    logits = naive(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logp.gather(1, torch.tensor(response)[:, None])[:, 0]


def micro_batches():
    """Two sequences each, of unequal lengths."""
    prompts, responses = ([torch.tensor(ids) for ids in group] for group in (PROMPTS, RESPONSES))
    keep = [torch.ones(len(ids), dtype=torch.bool) for ids in responses]
    starts = [sum(map(len, responses[:i])) for i in range(len(responses))]
    for part in (slice(0, 2), slice(2, 4)):
        yield pack(prompts[part], responses[part], keep[part], starts[part], CPU)


def test_training_equals_naive_autograd(models):
    loaded, naive = models
    policy, ids = Policy(loaded), torch.tensor([token for response in RESPONSES for token in response])
    check_causal(policy, "student", "m")
    check_head(policy, "student", "m")
    weights = torch.linspace(-1, 2, len(ids), dtype=policy.wide)
    total = torch.zeros((), dtype=policy.wide)
    for micro in micro_batches():
        logp = policy(micro, lambda hidden, head, micro=micro: token_logprobs(hidden, head, ids[micro.tokens]))
        loss = (weights[micro.tokens] * logp).sum()
        loss.backward()
        total = total + loss.detach()
    expected = (weights * torch.cat([alone(naive, *pair) for pair in zip(PROMPTS, RESPONSES)])).sum()
    expected.backward()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)
    theirs = dict(naive.named_parameters())
    size = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for name, parameter in loaded.named_parameters():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, theirs[name])]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5 * size, msg=lambda m, name=name: f"{name}: {m}")


def test_rollouts_equal_teacher_forcing(models):
    """Prompts shorter and longer than the window of 6, responses that cross it and that are longer."""
    loaded, naive = models
    requests = [Request(prompt, ((3, i, 0), (3, i, 1))) for i, prompt in enumerate(PROMPTS)]
    written = HFEngine(Policy(loaded)).generate(requests, Sampling(12, 1.0, 1.0, (1, 2, 3, 4)))
    lengths = {len(response.ids) for group in written for response in group}
    assert len(lengths) > 1
    for prompt, group in zip(PROMPTS, written):
        for response in group:
            with torch.no_grad():
                expected = alone(naive, prompt, response.ids)
            torch.testing.assert_close(torch.tensor(response.logprobs), expected.float(), rtol=1e-4, atol=1e-4)
