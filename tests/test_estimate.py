"""The dry run's arithmetic: sizes by hand, against models as they are, and against figures worked out elsewhere."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from driftgate.config import StudentSettings
from driftgate.errors import InputError
from driftgate.estimate.assumptions import Assumptions
from driftgate.estimate.estimate import Estimate, estimate
from driftgate.estimate.gpus import GPUS, Gpu
from driftgate.estimate.memory import activation_bytes
from driftgate.estimate.shapes import KNOWN, Shape, shape_of
from driftgate.estimate.table import estimate_table
from driftgate.estimate.time import Responses, decoding_seconds
from driftgate.evaluate.evaluate import LONGEST
from driftgate.models.sources import resolve
from driftgate.recipe import load_recipe

SMALL, LARGE = KNOWN["Qwen3-1.7B"], KNOWN["Qwen3-4B"]
MEASURED = Gpu("H200 as measured", 790e12, 790e12, 4.3e12, 141e9)
TINY = Shape(2, 48, 80, 3, 1, 16, 32, True)


def recipe(name: str = "qwen3/lsm_none", *overrides: str):
    return load_recipe(name, list(overrides))


def run(config, mean_length: float = 0.25) -> Estimate:
    return estimate(config, 30, 16, 16_384, mean_length)


def test_parameters_of_qwen3_1_7b_by_hand():
    layer = 2048 * 2048 * 2 + 2048 * 1024 * 2 + 3 * 2048 * 6144 + 2 * 2048 + 2 * 128
    assert SMALL.parameters == 28 * layer + 2048 + 151_936 * 2048 == 1_720_574_976
    assert dataclasses.replace(SMALL, tied=False).parameters == 2_031_739_904


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-0.6B", 0.596), ("Qwen3-4B", 4.022), ("Qwen3-8B", 8.191)])
def test_parameters_of_the_others_are_as_published(name, billions):
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, abs=0.0005)


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_sizes_of_the_embedded_pair_are_those_of_its_weights(name):
    path = f"sandbox/{name}"
    model = AutoModelForCausalLM.from_pretrained(resolve(path, name))
    assert shape_of(path, name).parameters == model.num_parameters()


def test_a_name_tells_the_sizes_of_a_model_that_is_not_here():
    assert shape_of("Qwen/Qwen3-1.7B-Base", "student") is SMALL
    assert shape_of("Qwen3-4B-Base-GRPO", "teacher") is LARGE


@pytest.mark.parametrize("path", ["Qwen/Qwen3-17B", "Qwen/Qwen3-1.7", "nobody/knows-this"])
def test_an_unknown_model_is_named_in_the_error(path):
    with pytest.raises(InputError, match=f"student.path = '{path}'.*local folder"):
        shape_of(path, "student")


def test_mixtures_of_experts_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe", "num_experts": 8}')
    with pytest.raises(InputError, match="mixtures of experts"):
        shape_of(str(tmp_path), "teacher")


def test_the_cache_of_a_token():
    assert SMALL.kv_bytes(2) == 2 * 28 * 8 * 128 * 2 == 114_688


@pytest.mark.parametrize("settings", [{}, {"compute": "bfloat16"}, {"dtype": "bfloat16"}])
def test_activations_are_what_a_layer_keeps_for_its_backward(settings):
    how = StudentSettings(path="", **settings)
    kept = counted(how, 3) - counted(how, 2)
    assert activation_bytes(TINY, how) == pytest.approx(kept, rel=0.03)


def counted(how: StudentSettings, layers: int) -> float:
    """Bytes a position that a forward of so many layers saves, parameters and their casts left out."""
    tokens = 37  # no dimension of a weight
    model: Any = Qwen3ForCausalLM(qwen3(layers))
    model = model.to(torch.bfloat16 if how.dtype == "bfloat16" else torch.float32).eval()
    seen, alive = {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if tokens in tensor.shape:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(tokens)[None] % TINY.vocabulary
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=how.compute is not None),
    ):
        alive.append(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return sum(seen.values()) / tokens


def qwen3(layers: int) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=TINY.hidden,
        intermediate_size=TINY.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=TINY.heads,
        num_key_value_heads=TINY.kv_heads,
        head_dim=TINY.head_dim,
        vocab_size=TINY.vocabulary,
    )


def test_operations_are_those_of_a_budget_made_by_hand():
    """One rollout of 8,192 tokens at 790 TFLOP/s, in milliseconds."""
    n, rate = 8192, 790e12 / 1e3
    assert n * (LARGE.forward_flops(n) + LARGE.head_flops) / rate == pytest.approx(108, abs=1)
    assert n * (SMALL.forward_flops(n) + SMALL.head_flops) / rate == pytest.approx(45, abs=1)
    assert 3 * n * SMALL.forward_flops(n) / rate == pytest.approx(117, abs=1)
    assert 3 * n * SMALL.head_flops / rate == pytest.approx(19, abs=0.5)


def test_decoding_is_that_of_a_budget_made_by_hand():
    """64 rollouts of 8,192 tokens side by side at 4.3 TB/s: 997 ms each."""
    assumed = Assumptions(1.0, prompt_tokens=0, bandwidth_share=1.0, launch=0.0)
    student = StudentSettings(path="", dtype="bfloat16")
    seconds = decoding_seconds(Responses(64, 64, 8192, 8192), SMALL, student, assumed, MEASURED)
    assert 1000 * seconds / 64 == pytest.approx(997, abs=2)


def test_few_and_small_rows_wait_for_the_launch_of_kernels():
    assumed = Assumptions(1.0, launch=1e-3)
    student = StudentSettings(path="", dtype="bfloat16")
    seconds = decoding_seconds(Responses(5, 2, 10, 100), SMALL, student, assumed, MEASURED)
    assert seconds == pytest.approx(3 * 100 * 28 * 1e-3)


def test_tokens_of_a_run():
    tokens = run(recipe()).tokens
    assert tokens.rollout == 200 * 4 * 8 * 4096
    assert tokens.trained == 2 * tokens.rollout
    assert tokens.teacher == tokens.rollout
    assert tokens.evaluation == 30 * 16 * 4096


def test_memory_of_a_run_by_hand():
    memory = run(recipe()).memory
    parameters, positions = 1_720_574_976, 256 + 16_384
    assert memory.resident["student"] == memory.update["gradients"] == 4 * parameters
    assert memory.resident["AdamW"] == 8 * parameters
    assert memory.resident["teacher"] == 2 * LARGE.parameters
    assert memory.rollout["cache"] == 32 * 1.25 * positions * 114_688
    layer = 26 * 2048 + 10 * 3072 + 8 * 6144
    assert memory.update["activations"] == 32_768 * (28 * 4 * 2048 + layer)
    assert memory.peak == sum(memory.resident.values()) + sum(memory.rollout.values())


def test_activations_without_recomputation_are_all_layers():
    kept = run(recipe()).memory.update["activations"]
    plain = run(recipe("qwen3/lsm_none", "student.gradient_checkpointing=false")).memory.update["activations"]
    assert plain == 32_768 * 28 * (26 * 2048 + 10 * 3072 + 8 * 6144)
    assert plain > 10 * kept


def test_fit_and_the_batch_that_would():
    found = run(recipe())
    fits = {gpu.name: found.fits(gpu) for gpu in GPUS}
    assert fits == {"H200": "yes", "H100": "at the mean length", "A100": "at the mean length", "RTX 4090": "no"}
    h100, small = GPUS[1], GPUS[3]
    batch = found.fitting_batch(h100)
    assert run(recipe("qwen3/lsm_none", f"rollout.batch={batch}")).fits(h100) == "yes"
    assert run(recipe("qwen3/lsm_none", f"rollout.batch={batch + 8}")).fits(h100) != "yes"
    assert batch % 8 == 0  # a prompt's eight responses are decoded together
    assert found.fitting_batch(small) == 0


def test_time_follows_what_there_is_to_do():
    one, two = (run(recipe("qwen3/lsm_none", f"steps={n}")).seconds["H100"] for n in (100, 200))
    assert two.rollout == pytest.approx(2 * one.rollout)
    assert two.evaluation == one.evaluation
    more = run(recipe("qwen3/lsm_none", "passes=4")).seconds["H100"]
    assert more.update == pytest.approx(2 * two.update)
    assert more.rollout == two.rollout
    assert more.total == pytest.approx(more.rollout + more.behaviour + more.teacher + more.update + more.evaluation)


def test_a_float32_run_gets_float32_s_rate():
    fast, slow = (run(recipe("qwen3/lsm_none", f"student.compute={kind}")) for kind in ("bfloat16", "null"))
    ratio = slow.seconds["A100"].update / fast.seconds["A100"].update
    assert ratio == pytest.approx(312 / 19.5)


@pytest.mark.parametrize("length", [0.0, -1.0, 1.01, float("nan")])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(InputError, match="mean_length"):
        run(recipe(), length)


def test_the_tables_name_assumptions_misfits_and_what_is_left_out():
    config = recipe("qwen3/lsm_none", "rollout.horizon.kind=share")
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(estimate_table({"plain": run(recipe()), "short": run(config)}, seeds=5))
    text = console.export_text()
    for part in (
        "does not fit",
        "rollout.batch=",
        "0.25",
        "not estimated for a CPU",
        "rollout.horizon",
        "1.72 B",
        "10",
    ):
        assert part in text
    for field in dataclasses.fields(Assumptions):
        assert field.metadata["meaning"] in text
    assert f"{2 * 5 * run(recipe()).tokens.rollout / 1e6:,.2f}" in text


def test_an_examination_is_no_longer_than_the_student_s_context():
    config = load_recipe("sandbox/lsm_none")
    room = shape_of("sandbox/student", "student").context - 256
    assert estimate(config, 10, 8, None, 0.5).tokens.evaluation == 10 * 8 * 0.5 * room
    assert estimate(config, 10, 8, 100, 0.5).tokens.evaluation == 10 * 8 * 0.5 * 100
    assert estimate(recipe(), 10, 8, None, 0.5).tokens.evaluation == 10 * 8 * 0.5 * LONGEST


def test_arms_that_need_the_same_share_a_column():
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(estimate_table({"one": run(recipe()), "two": run(recipe())}))
    text = console.export_text()
    assert text.count("each arm") == 2
    assert "one, two" not in text
    console.print(estimate_table({"one": run(recipe()), "two": run(recipe()), "long": run(recipe(), 0.5)}))
    assert "one, two" in console.export_text()


SERVED = "rollout.engine={kind: vllm, urls: [http://a]}"


def test_servers_have_memory_of_their_own_and_writing_ahead_takes_a_copy():
    here, served, ahead = (run(recipe("qwen3/lsm_none", *o)).memory for o in ([], [SERVED], [SERVED, "rollout.lag=1"]))
    assert "cache" in here.rollout
    assert not {"cache", "drawing"} & set(served.rollout)
    weights = sum(ahead.resident.values()) - sum(served.resident.values())
    assert weights == served.resident["student"]


def test_fewer_rollouts_take_less_time():
    every, third = (run(recipe("qwen3/lsm_none", "steps=30", f"rollout.refresh={n}")) for n in (1, 3))
    assert third.tokens.rollout == pytest.approx(every.tokens.rollout / 3)
    assert third.tokens.trained == every.tokens.trained


def test_layers_that_are_no_attention_are_refused(tmp_path: Path):
    settings = {"model_type": "qwen3_5_text", "num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"layers that are no attention \(linear_attention\) cannot be estimated"):
        shape_of(str(tmp_path), "student")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "recurrent_gemma"}))
    with pytest.raises(InputError, match="layers that are no attention cannot be estimated"):
        shape_of(str(tmp_path), "student")
