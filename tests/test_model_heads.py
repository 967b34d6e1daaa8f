"""The output heads of models: their logits by the configuration, and what is refused because its logits are others."""

import pytest
import torch
from test_models import FULL, LLAMA, NO_HEAD_DIM, SHAPE, WITH_DROPOUT, micro_batch, tiny
from torch import nn

from driftgate.errors import InputError
from driftgate.method.head import token_logprobs
from driftgate.models.head import check_head, head_of
from driftgate.models.policy import Policy


def refused_head(model):
    with pytest.raises(InputError) as caught:
        check_head(Policy(model), "student", "some/model")
    assert "student.path = 'some/model'" in str(caught.value)
    assert "nothing else may lie between; choose another model" in str(caught.value)
    return str(caught.value)


HEADS = {
    "plain": ("Gemma2", FULL | {"final_logit_softcapping": None}),
    "cap": ("Gemma2", FULL | {"final_logit_softcapping": 30.0}),
    "tight cap": ("Gemma3Text", FULL | {"final_logit_softcapping": 3.0}),
    "another cap": ("NanoChat", NO_HEAD_DIM | {"final_logit_softcapping": 15.0}),
    "factor": ("Cohere", NO_HEAD_DIM | {"logit_scale": 0.0625}),
    "no factor": ("Cohere", NO_HEAD_DIM | {"logit_scale": 1.0}),
    "divisor": ("Granite", NO_HEAD_DIM | {"logits_scaling": 3.0}),
    "no divisor": ("Granite", NO_HEAD_DIM | {"logits_scaling": 1.0}),
    "divisor that multiplies": ("HyperCLOVAX", LLAMA | {"logits_scaling": 3.0}),
    "bias": ("Phi", SHAPE | {"intermediate_size": 64}),
}


def with_bias(model):
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    return model


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_head_of_a_model_makes_its_own_logits(kind, dtype, std):
    name, settings = HEADS[kind]
    policy = Policy(with_bias(tiny(name, std, **settings)).to(dtype))
    check_head(policy, "student", "some/model")
    head = head_of(policy.model)
    assert head.is_plain == (kind in ("plain", "no factor", "no divisor"))
    if dtype == torch.bfloat16:
        return
    ids = micro_batch().input_ids
    with torch.no_grad():
        own = policy.model(ids).logits
        states = policy.model.base_model(ids).last_hidden_state
        found = head.finish_((states @ head.weight.T).flatten(0, 1)).view(own.shape)
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, own, **exact)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("vocabulary", [48, 40])
def test_loss_and_gradient_of_every_parameter_equal_those_of_the_models_own_logits(kind, vocabulary):
    """float64, at a temperature, over the ids below `vocabulary`; against autograd through the model's own logits."""
    name, settings = HEADS[kind]
    policy = Policy(with_bias(tiny(name, **settings)).double())
    policy.vocabulary = vocabulary
    micro, ids = micro_batch(), micro_batch().input_ids % 40

    def loss(hidden, output):
        return -token_logprobs(hidden, output, ids.flatten(), 0.7, 10).sum()

    ours = policy(micro, loss)
    theirs = policy.model(micro.input_ids).logits[..., :vocabulary].flatten(0, 1) / 0.7
    theirs = -theirs.log_softmax(-1).gather(1, ids.flatten()[:, None]).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    every = list(policy.parameters())
    for one, other in zip(torch.autograd.grad(ours, every), torch.autograd.grad(theirs, every)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("kind", "settings"), WITH_DROPOUT.items())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_head_is_let_through(kind, settings, dtype):
    policy = Policy(tiny(kind, **settings).to(dtype))
    check_head(policy, "student", "some/model")
    assert policy.head.is_plain


def test_a_cap_that_no_setting_names_is_measured_also_where_logits_are_small():
    class Capped(nn.Linear):
        def forward(self, input):
            return 30 * (super().forward(input) / 30).tanh()

    model = tiny("Qwen3", 0.02, **LLAMA)
    head = Capped(32, 48, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    assert "off by up to" in refused_head(model)


@pytest.mark.parametrize(("name", "value"), [("final_logit_softcapping", 30.0), ("logit_scale", 2.0)])
def test_a_setting_that_the_model_does_not_follow_is_refused_by_name(name, value):
    model = tiny("Qwen3", 0.02, **LLAMA)
    setattr(model.config, name, value)
    said = refused_head(model)
    assert "though its configuration names a scale of" in said
    assert ("a cap of 30.0" in said) == (value == 30.0)


class Scaled(nn.Linear):
    """A head with a factor that no setting names."""

    factor = 1.0

    def forward(self, input):
        return self.factor * super().forward(input)


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1.005), (torch.float64, 1.005), (torch.bfloat16, 1.05), (torch.float32, 0.9)]
)
def test_a_factor_that_no_setting_names_is_measured(dtype, factor):
    model = tiny("Qwen3", **LLAMA)
    head = Scaled(32, 48, bias=False)
    head.weight, head.factor = model.lm_head.weight, factor
    model.lm_head = head
    assert "off by up to" in refused_head(model.to(dtype))


def test_a_bfloat16_head_may_round_the_other_way():
    class RoundsUp(nn.Linear):
        def forward(self, input):
            exact = input.double() @ self.weight.double().T
            return (exact + exact.abs() * torch.finfo(torch.bfloat16).eps / 2).to(input.dtype)

    model = tiny("Qwen3", **LLAMA).to(torch.bfloat16)
    head = RoundsUp(32, 48, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    check_head(Policy(model), "student", "some/model")
