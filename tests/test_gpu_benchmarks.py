"""The GPU programs at small sizes on a CPU. They are the only check of their code where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_bench
import gpu_ranks
from gpu_decoding import measure_decoding
from gpu_exactness import measure_exactness
from gpu_head import measure_head
from gpu_lora import measure_lora
from gpu_ranks import measure_ranks
from gpu_scoring import measure_scoring
from gpu_sizes import QUICK
from gpu_update import Case, make_learner, measure_update, update_config, whole
from training import random_batch, update

BENCH = gpu_bench.Bench(torch.device("cpu"), QUICK, 1, 1e12, 1e12)


@pytest.mark.parametrize(
    "measure",
    [
        measure_head,
        measure_update,
        measure_scoring,
        measure_exactness,
        measure_decoding,
        measure_ranks,
        measure_lora,
    ],
)
def test_a_program_makes_all_its_figures(measure):
    figures = {}
    measure(BENCH, figures)
    assert figures
    assert list(gpu_bench.errors_in(figures, "")) == []


def test_a_row_that_fails_leaves_its_error_and_the_others_go_on():
    figures = {}
    gpu_bench.attempt(figures, "one", lambda: [][0])
    gpu_bench.attempt(figures, "other", lambda: {"ms": 1.0})
    assert figures["other"] == {"ms": 1.0}
    assert list(gpu_bench.errors_in(figures, "head")) == ["head, one: IndexError: list index out of range"]


def test_a_program_that_fails_does_not_stop_the_next(monkeypatch):
    started = []

    def run(command):
        started.append(command[1].name)
        return subprocess.CompletedProcess(command, returncode=1 if len(started) == 2 else 0)

    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--device", "cpu"])
    monkeypatch.setattr(gpu.subprocess, "run", run)
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    assert started == [f"gpu_{name}.py" for name in gpu.PROGRAMS]


def test_the_full_size_is_refused_without_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="--quick --device cpu"):
        gpu_bench.parsed("")


@pytest.mark.parametrize(
    ("weight", "responses", "saved", "said"),
    [
        (1.0, "same", 1.0, None),
        (1.0 + 1e-8, "same", 1.0 + 1e-8, "ranks trained something else"),
        (1.0, "other", 1.0, "ranks trained something else"),
        (1.0, "same", 2.0, "the checkpoint holds other weights"),
    ],
)
def test_ranks_that_differ_from_one_process_are_an_error(weight, responses, saved, said, tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    model = torch.nn.ParameterDict({"w": torch.full((2,), saved, dtype=torch.float64)})
    monkeypatch.setattr(gpu_ranks.AutoModelForCausalLM, "from_pretrained", lambda folder: model)
    weights = [{"w": torch.full((2,), value, dtype=torch.float64)} for value in (1.0, weight)]
    one, other = ({"weights": w, "responses": "same", "share": 1.0} for w in weights)
    found = gpu_ranks.compared("float64", one, other | {"responses": responses}, tmp_path)
    assert ("error" in found) == (said is not None)
    assert said is None or said in found["error"]


def test_an_update_in_any_order_leaves_deterministic_operations_off():
    """The learner turns them on for its backward where it finds the package's setting."""
    config = update_config(BENCH, Case("LSM", recompute=False, budget=256, prepared=False))
    learner = make_learner(BENCH, config, QUICK.student)
    seen = []
    learner.parameters[0].register_hook(lambda grad: seen.append(torch.are_deterministic_algorithms_enabled()))
    ids = torch.arange(80).view(2, 40)
    portions = whole(config, random_batch(ids[:, :8], ids[:, 8:], QUICK.vocabulary, 32))
    for on in (True, False):
        with gpu_bench.deterministic(on):
            update(learner, portions, 1)
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("name", "known"), [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("NVIDIA GH200 480GB", None)]
)
def test_rates_are_of_the_data_sheet_that_a_device_s_name_tells(name, known):
    sheet = gpu_bench.data_sheet(name)
    assert (sheet.name if sheet else None) == known
