"""The gate as a loss of verl, against a stand-in for the few names of verl that it uses."""

import math
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "verl_gate.py"


@pytest.fixture
def example(monkeypatch):
    """The example's names, loaded where `verl` is a stand-in; "registry" holds what it registered."""
    registry = {
        "forward_kl_topk": lambda config, distillation_config, model_output, data: (
            model_output["distillation_losses"],
            {"a": 1},
        )
    }

    def register(settings):
        return lambda function: registry.update(dict.fromkeys(settings.names, function)) or function

    losses = {
        "DistillationLossSettings": SimpleNamespace,
        "get_distillation_loss_fn": registry.__getitem__,
        "register_distillation_loss": register,
    }
    padding = {"no_padding_2_padding": lambda values, data: values}
    for name, content in (("trainer.distillation.losses", losses), ("workers.utils.padding", padding)):
        parts = ["verl", *name.split(".")]
        for end in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:end]))
            vars(module).update(content if end == len(parts) else {})
            monkeypatch.setitem(sys.modules, module.__name__, module)
    return runpy.run_path(str(EXAMPLE)) | {"registry": registry}


@pytest.fixture
def batch():
    """What verl gives a loss: two responses of 150 and 70 tokens, with another one's padding."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(150) < torch.tensor([[150], [70]])
    old = -torch.rand(2, 150, generator=draw, dtype=torch.float64)
    new = old + 0.3 * torch.randn(2, 150, generator=draw, dtype=torch.float64)
    losses = torch.rand(2, 150, generator=draw, dtype=torch.float64).requires_grad_()
    return {"log_probs": new, "distillation_losses": losses}, {"response_mask": mask.long(), "old_log_probs": old}


def slow_gates(new, old, length):
    """exp(-5 |mean shift of a block of 64|), scaled to mean 1 over the response."""
    gates = []
    for begin in range(0, length, 64):
        block = range(begin, min(begin + 64, length))
        shift = sum(float(new[t] - old[t]) for t in block) / len(block)
        gates += [math.exp(-5 * abs(shift))] * len(block)
    mean = sum(gates) / length
    return [gate / mean for gate in gates]


def test_losses_are_verls_times_the_gate(example, batch):
    model_output, data = batch
    losses, metrics = example["registry"]["gated_forward_kl_topk"](None, None, model_output, data)
    for row, length in enumerate((150, 70)):
        gates = slow_gates(model_output["log_probs"][row], data["old_log_probs"][row], length)
        plain = model_output["distillation_losses"][row].detach()
        assert losses[row, :length].tolist() == pytest.approx(
            [gate * float(loss) for gate, loss in zip(gates, plain)], rel=1e-12
        )
        assert not losses[row, length:].any()
    assert metrics["a"] == 1
    assert metrics["distillation/gate_min"] < 1 < metrics["distillation/gate_max"]


def test_without_drift_loss_and_gradient_are_verls(example, batch):
    model_output, data = batch
    model_output["log_probs"] = data["old_log_probs"]
    losses, metrics = example["registry"]["gated_forward_kl_topk"](None, None, model_output, data)
    mask = data["response_mask"].bool()
    assert torch.equal(losses[mask], model_output["distillation_losses"][mask])
    losses.sum().backward()
    assert torch.equal(model_output["distillation_losses"].grad, mask.double())
    assert metrics["distillation/gate_std"] == 0
