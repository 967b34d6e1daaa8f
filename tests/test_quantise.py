"""A base in 4 bits: refused where it cannot be held; on a GPU it trains adapters and resumes."""

from importlib import util

import pytest
import torch
from conftest import make_model
from rich.console import Console
from safetensors.torch import load_file

from driftgate.config import ModelSettings
from driftgate.errors import InputError
from driftgate.models import quantise
from driftgate.models.load import load_model
from driftgate.models.lora import WEIGHTS
from driftgate.recipe import check_config
from driftgate.train.command import run
from driftgate.train.folder import final_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["student.quantise=4bit"], "quantise = 4bit without lora: 4-bit weights cannot be trained"),
        (
            ["student={quantise: 4bit, lora: {rank: 2}, compute: bfloat16, path: x}"],
            "products with 4-bit weights run in",
        ),
        (["teacher.quantise=4bit", "teacher.compute=bfloat16"], "set dtype=bfloat16 and compute=null"),
        (
            ["student.quantise=4bit", "student.lora.rank=2", "teacher={path: student, follow: {every: 1}}"],
            "a following adapter on a 4-bit base is not supported",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(command, override, expected):
    code, said = command(*override)
    assert code == 2
    assert expected in said


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("installed", "expected"),
    [(False, "needs the extra `quantise`"), (True, "needs a GPU, and the run's device is cpu")],
)
def test_without_bitsandbytes_or_a_gpu_it_is_refused(pair, monkeypatch, role, installed, expected):
    monkeypatch.setattr(quantise.util, "find_spec", lambda name: object() if installed else None)
    settings = ModelSettings(path=pair[0], quantise="4bit")
    with pytest.raises(InputError, match=expected) as caught:
        load_model(settings, role, CPU)
    assert f"{role}.quantise = 4bit" in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.skipif(util.find_spec("bitsandbytes") is None, reason="the extra `quantise` is not installed")
def test_adapters_train_on_a_4_bit_base_and_resume_bit_for_bit(settings, tmp_path):
    path = make_model(tmp_path / "base", 1, hidden=128)
    student = {"path": path, "dtype": "bfloat16", "quantise": "4bit", "lora": {"rank": 4}}
    changes = {"student": student, "teacher": {"path": "student"}, "device": "cuda"}
    weights = []
    for name, stops in (("whole", [3]), ("resumed", [1, 2, 3])):
        for steps in stops:
            run(check_config(settings | changes | {"steps": steps}), tmp_path / name, Console(quiet=True))
        weights.append(load_file(final_model(tmp_path / name) / WEIGHTS))
    assert {value.dtype for value in weights[0].values()} == {torch.float32}
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
