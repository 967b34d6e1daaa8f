"""Runs of models whose heads have a bias, a scale or a cap."""

import copy

import pytest
import torch
from conftest import collected
from head_case import HEADS, make_headed
from slow_update import LSM, SAMPLED, double, slow_gradient, update

from driftgate.train.portions import schedule
from driftgate.train.records import distances

NONE = {"spans": "none"}
VOCABULARY = {"kind": "divergence", "divergence": "forward_kl", "support": "vocabulary"}
OTHER = {"bias": "cap", "scale": "bias", "cap": "scale"}


@pytest.fixture(params=HEADS)
def headed(request, settings, tmp_path):
    """Settings of a student with such a head, and of a teacher with another."""
    student = make_headed(tmp_path / "student", request.param, 1)
    teacher = make_headed(tmp_path / "teacher", OTHER[request.param], 2, hidden=48)
    return copy.deepcopy(settings) | {"student": {"path": student}, "teacher": {"path": teacher}}


@pytest.mark.parametrize("objective", [LSM, SAMPLED], ids=["lsm", "sampled_token"])
def test_an_update_has_the_gradient_of_the_models_own_logits(headed, tmp_path, objective):
    config = double(headed, objective=objective, gate=NONE, microbatch_tokens=60)
    made, responses = collected(config, tmp_path)
    assert not made.policy.head.is_plain
    assert not made.targets["teacher"].head.is_plain
    first, second = [each.sequences for each in schedule(config, 0)][:2]
    update(config, made, responses, first)  # so that the student has drifted
    assert distances(responses["student"])["mismatch_max"] < 1e-4  # the engine's logits are those of the trainer
    loss, expected = slow_gradient(config, made, responses["student"], second)
    metrics = update(config, made, responses, second, number=1)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    for parameter, wanted in zip(made.policy.model.parameters(), expected):
        assert (parameter.grad - wanted).norm() <= 1e-6 * wanted.norm()


def test_a_divergence_over_the_vocabulary_learns_every_part_of_the_head(headed, tmp_path):
    made, responses = collected(double(headed, objective=VOCABULARY, gate=NONE), tmp_path)
    before = made.policy.head.map(lambda tensor: tensor.detach().clone())
    first, _ = (update(made.config, made, responses, range(12), number)["loss"] for number in range(2))
    after = made.policy.head
    assert not torch.equal(after.weight, before.weight)
    if before.bias is not None:
        assert not torch.equal(after.bias, before.bias)
    assert first > 0


def test_adapters_leave_the_bias_of_the_base_as_it_is(headed, tmp_path):
    pytest.importorskip("peft")
    headed["student"]["lora"] = {"rank": 4}
    made, responses = collected(double(headed, objective=SAMPLED, gate=NONE), tmp_path)
    before = made.policy.head.map(lambda tensor: tensor.detach().clone())
    update(made.config, made, responses, range(12))
    after = made.policy.head
    assert torch.equal(after.weight, before.weight)
    assert before.bias is None or torch.equal(after.bias, before.bias)
    assert distances(responses["student"])["mismatch_max"] < 1e-4
