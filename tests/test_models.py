"""Tiny random models of many architectures: dropout never acts, and what cannot be trained is refused for its cause."""

import copy
from typing import Any

import pytest
import torch
import transformers
from conftest import make_model
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from driftgate.config import ModelSettings
from driftgate.data.packing import MicroBatch
from driftgate.errors import InputError
from driftgate.models.causal import check_causal
from driftgate.models.head import check_head
from driftgate.models.load import load_model
from driftgate.models.policy import Policy

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
NO_HEAD_DIM = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 1}
LLAMA = NO_HEAD_DIM | {"head_dim": 16}
FULL = LLAMA | {"layer_types": ["full_attention"] * 2}
WITH_DROPOUT = {
    "OPT": SHAPE
    | {"ffn_dim": 64, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 32},
    "Falcon": SHAPE | {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "GPT2": SHAPE | {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "GPTNeoX": SHAPE | {"intermediate_size": 64, "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "Llama": LLAMA | {"attention_dropout": 0.5},
    "Qwen3": LLAMA | {"attention_dropout": 0.5},
    "Gemma": LLAMA | {"attention_dropout": 0.5},
    "Mixtral": LLAMA | {"attention_dropout": 0.5, "router_jitter_noise": 0.5, "num_local_experts": 4},
    "BioGpt": SHAPE
    | {"intermediate_size": 64, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    | {"activation_dropout": 0.5, "layerdrop": 0.5},
}


def tiny(kind, std=0.3, **settings) -> Any:
    """A random model whose logits spread over a few units."""
    config = getattr(transformers, f"{kind}Config")(**settings, initializer_range=std)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def micro_batch():
    ids = torch.randint(2, 48, (3, 12), generator=torch.Generator().manual_seed(5))
    return MicroBatch(ids, torch.arange(36), torch.arange(36), 0)


def gradient_of(policy):
    """Log-probabilities [36] and the gradient of their sum, by parameter."""
    policy.zero_grad()
    micro = micro_batch()

    def logp(hidden, head):
        return head.finish_(hidden @ head.weight.T).log_softmax(-1).gather(1, micro.input_ids.flatten()[:, None])[:, 0]

    found = policy(micro, logp)
    found.sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def checkpointing(model):
    """A copy that recomputes its activations."""
    copied = copy.deepcopy(model)
    copied.gradient_checkpointing_enable()
    return copied


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_acts_in_no_forward_and_checkpointing_changes_no_gradient(kind):
    model = tiny(kind, **WITH_DROPOUT[kind])
    plain, saving = Policy(model), Policy(checkpointing(model))
    with torch.no_grad():
        ids = micro_batch().input_ids
        expected = model(ids).logits.log_softmax(-1).flatten(0, 1).gather(1, ids.flatten()[:, None])[:, 0]
    gradients = []
    for policy in (plain, plain, saving, saving):
        found, gradient = gradient_of(policy)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        gradients.append(gradient)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["OPT", "Falcon", "Qwen3"])
@pytest.mark.parametrize("on", [False, True])
def test_layers_run_twice_exactly_where_checkpointing_is_on(kind, on):
    model, runs = tiny(kind, **WITH_DROPOUT[kind]), []
    policy = Policy(checkpointing(model) if on else model)
    layers = [m for m in policy.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        first = next(m for m in layer.modules() if isinstance(m, nn.LayerNorm) or "RMSNorm" in type(m).__name__)
        first.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    gradient_of(policy)
    assert len(layers) == 2
    assert len(runs) == (4 if on else 2)
    policy.for_decoding()
    for _ in range(2):  # in no state left by training, nor by itself
        policy.model(micro_batch().input_ids)
    with torch.no_grad():
        policy(micro_batch(), lambda hidden, head: None)
    assert len(runs) == (10 if on else 8)
    assert not any(module.training for module in policy.model.modules())


class Nested(GradientCheckpointingLayer):
    """A checkpointed layer inside a checkpointed layer, which runs it twice."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner, self.linear = inner, nn.Linear(4, 4)

    def forward(self, hidden):
        hidden = nn.functional.dropout(self.linear(hidden).tanh(), 0.5, self.training)
        return hidden if self.inner is None else self.inner(self.inner(hidden))


class Shared(transformers.PreTrainedModel):
    """One layer that runs three times."""

    config_class = transformers.LlamaConfig
    supports_gradient_checkpointing = True
    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.layer, self.embedding = Nested(Nested()), nn.Embedding(48, 4)

    def get_output_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache=False):
        hidden = self.embedding(input_ids)
        for _ in range(3):
            hidden = self.layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


def test_layers_that_are_nested_or_shared_checkpoint_without_dropout():
    torch.manual_seed(0)
    model = Shared(transformers.LlamaConfig())
    for one, other in zip(gradient_of(Policy(model)), gradient_of(Policy(checkpointing(model)))):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def loaded(folder, kind, dtype="float32", **settings) -> Any:
    config = getattr(transformers, f"{kind}Config")(**settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_model(
        ModelSettings.model_validate({"path": str(folder), "dtype": dtype}), "teacher", torch.device("cpu")
    )


@pytest.mark.parametrize(
    ("kind", "settings", "attention"),
    [
        ("Llama", LLAMA, "sdpa"),
        ("Gemma3Text", LLAMA | {"sliding_window": 8}, "sdpa"),
        ("Gemma2", LLAMA | {"sliding_window": 8}, "eager"),  # a cap on its attention scores
        ("GptOss", LLAMA | EXPERTS, "eager"),  # attention sinks
        ("Bloom", SHAPE, "eager"),
    ],
)
def test_attention_is_fused_where_that_is_exact(tmp_path, kind, settings, attention):
    assert loaded(tmp_path / "m", kind, **settings).config._attn_implementation == attention


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mixtral", LLAMA | EXPERTS),
        ("Qwen3Moe", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_experts_train_in_float32_and_in_float64(tmp_path, kind, settings, dtype):
    model = loaded(tmp_path / "m", kind, dtype, **settings)
    check_head(Policy(model), "teacher", "m")
    assert gradient_of(Policy(model))[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_an_encoder_is_refused_because_it_is_not_causal(kind, dtype):
    settings = SHAPE | {"intermediate_size": 64, "max_position_embeddings": 40}
    with pytest.raises(InputError, match=r"teacher.path = 'm': \w+ is not causal: .* choose a causal model"):
        check_causal(Policy(tiny(kind, **settings).to(dtype)), "teacher", "m")
    check_causal(Policy(tiny(kind, **settings, is_decoder=True).to(dtype)), "teacher", "m")


def test_a_model_that_needs_more_than_token_ids_is_refused_with_its_own_words():
    shape = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    config = transformers.WhisperConfig(vocab_size=48, decoder_attention_heads=2, pad_token_id=0, **shape)
    model = transformers.WhisperForConditionalGeneration(config)
    with pytest.raises(
        InputError, match=r"teacher.path = 'm': Whisper\w+ gives no hidden states for token ids alone \("
    ):
        check_causal(Policy(model), "teacher", "m")


def test_a_folder_without_a_model_is_still_said_to_have_none(tmp_path):
    folder = make_model(tmp_path / "m", 1)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no causal language model"):
        load_model(ModelSettings(path=folder), "student", torch.device("cpu"))
