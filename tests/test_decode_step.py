"""The decode step in few operations against the model's own modules, which are its slow twin."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3Config

from driftgate.models.policy import Policy
from driftgate.rollout import cache, reader
from driftgate.rollout.cache import ResponseCache
from driftgate.rollout.decode_step import can_decode
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama 3.1 positions": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "qwen2, biased queries": Qwen2Config(**SIZES),
    "qwen3, normalised queries": Qwen3Config(**SIZES, head_dim=16),
    "one key head": Qwen3Config(**{**SIZES, "num_key_value_heads": 1}, head_dim=8),
}
REQUESTS = [Request(p, ((3, i, 0), (3, i, 1), (3, i, 2))) for i, p in enumerate([(7, 8, 9), (10, 11, 12, 13), (20,)])]


def make(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def generate(model, monkeypatch, fast, how):
    with monkeypatch.context() as patch:
        if not fast:
            patch.setattr(reader, "can_decode", lambda model: False)
        return HFEngine(Policy(model)).generate(REQUESTS, how)


@pytest.mark.parametrize("block", [4, cache.BLOCK_POSITIONS])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_decode_step_equals_the_modules(kind, block, monkeypatch):
    """Also where answers fill several blocks of the cache."""
    monkeypatch.setattr(cache, "BLOCK_POSITIONS", block)
    model = make(CONFIGS[kind])
    assert can_decode(model)
    how = Sampling(40, 1.0, 0.95, (1, 2, 3))
    fast, slow = (generate(model, monkeypatch, fast, how) for fast in (True, False))
    assert len({len(r.ids) for group in slow for r in group}) > 2  # rows end at different steps
    for one, two in zip(fast, slow):
        assert [(r.ids, r.finished) for r in one] == [(r.ids, r.finished) for r in two]
        for a, b in zip(one, two):
            torch.testing.assert_close(
                torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-5, atol=1e-5
            )  # the modules normalise in float32


def test_prompts_are_kept_once_and_only_while_one_of_their_answers_runs():
    """Each row's prompt product, through what rows of one prompt share, against a product of its own."""
    keys, query = torch.randn(3, 2, 5, 4), torch.randn(6, 2, 3, 4)
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    kept = ResponseCache([(keys, keys + 1)], owner.clone())
    for places, rows, count in [([], [], 6), ([3], [5], 5), ([0, 1], [3, 4], 3), ([1], [2], 2), ([], [], 0)]:
        kept.replace(torch.tensor(places, dtype=torch.int64), torch.tensor(rows, dtype=torch.int64), count)
        owner[places] = owner[rows]
        owner, query = owner[:count], query[:count]
        assert kept.layers[0].prompt.shape[1] == 2 * len(owner.unique())
        if count:
            shared = torch.bmm(kept.spread(query.flatten(0, 1)), kept.layers[0].prompt[0].transpose(1, 2))
            torch.testing.assert_close(kept.gather(shared, 3), (query @ keys[owner].mT).flatten(0, 1))


@pytest.mark.parametrize("block", [4, cache.BLOCK_POSITIONS])
def test_in_bfloat16_it_is_as_close_to_float32_as_the_modules_are(block, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK_POSITIONS", block)
    exact = make(CONFIGS["qwen3, normalised queries"], torch.float32)
    rough = make(CONFIGS["qwen3, normalised queries"]).bfloat16()
    how, errors = Sampling(24, 1.0, 1.0, ()), {}
    prompts = [request.prompt for request in REQUESTS for _ in request.keys]
    for fast in (True, False):
        answers = [r for group in generate(rough, monkeypatch, fast, how) for r in group]
        errors[fast] = torch.cat([torch.tensor(r.logprobs) - scored(exact, p, r.ids) for p, r in zip(prompts, answers)])
    assert errors[True].abs().mean() < 1.5 * errors[False].abs().mean()


@torch.no_grad()
def scored(model, prompt, ids):
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_other_models_and_adapters_decode_through_their_modules(monkeypatch):
    neox = GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=40
    )
    assert not can_decode(make(neox))
    assert generate(make(neox), monkeypatch, True, Sampling(8, 1.0, 0.9, (1,)))[0][0].ids
    assert not can_decode(make(LlamaConfig(**SIZES, hidden_act="gelu")))
    model = make(CONFIGS["llama"])
    model.model.layers[0].self_attn.q_proj = torch.nn.Sequential(model.model.layers[0].self_attn.q_proj)
    assert not can_decode(model)


def test_it_reads_the_live_weights(monkeypatch):
    model, how = make(CONFIGS["qwen2, biased queries"]), Sampling(12, 1.0, 0.95, (1,))
    before = generate(model, monkeypatch, True, how)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    fast, slow = (generate(model, monkeypatch, fast, how) for fast in (True, False))
    assert (
        [[r.ids for r in g] for g in fast] == [[r.ids for r in g] for g in slow] != [[r.ids for r in g] for g in before]
    )
