"""The same trainer on a GPU; skipped where there is none."""

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from driftgate.method import head
from driftgate.recipe import check_config, load_recipe
from driftgate.train.command import run
from driftgate.train.folder import final_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def test_a_gpu_run_repeats_bit_for_bit_and_resumes(settings, tmp_path):
    weights = []
    for name, stops in (("whole", [3]), ("again", [3]), ("resumed", [1, 2, 3])):
        for steps in stops:
            run(check_config(settings | {"device": "cuda", "steps": steps}), tmp_path / name, Console(quiet=True))
        weights.append(load_file(final_model(tmp_path / name) / "model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


def test_an_adapter_on_a_gpu_repeats_bit_for_bit_and_resumes(settings, tmp_path):
    student = settings["student"] | {"compute": "bfloat16", "lora": {"rank": 4}}
    teacher = {"path": "student", "follow": {"ema": 0.5}}
    weights = []
    for name, stops in (("whole", [3]), ("resumed", [1, 2, 3])):
        for steps in stops:
            changes = {"device": "cuda", "steps": steps, "student": student, "teacher": teacher}
            run(check_config(settings | changes), tmp_path / name, Console(quiet=True))
        weights.append(load_file(final_model(tmp_path / name) / "adapter_model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_gpu_run_in_bfloat16_trains(settings, tmp_path):
    student = settings["student"] | {"compute": "bfloat16", "gradient_checkpointing": True}
    run(check_config(settings | {"device": "cuda", "student": student}), tmp_path, Console(quiet=True))
    assert final_model(tmp_path).is_dir()


def test_long_answers_in_bfloat16_repeat_bit_for_bit(tmp_path):
    """Attention's backward over several blocks of keys, where sums in any order would show."""
    changes = ["steps=2", "device=cuda", "student.compute=bfloat16"]
    weights = []
    for name in ("one", "other"):
        run(load_recipe("sandbox/lsm_block64", changes), tmp_path / name, Console(quiet=True))
        weights.append(load_file(final_model(tmp_path / name) / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_head_in_bfloat16_is_exact_but_for_its_operands():
    """Chunks in one piece of memory, the softmax in place: against float64 of the same operands."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16().cuda() for n in (300, 5000))
    ids = torch.randint(5000, (300, 3), generator=generator).cuda()
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, ids)
    found = head.token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(head.summary(hidden, weight, ids).logp, found)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
