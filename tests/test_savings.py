"""What memory settings save, by hand, and the dry run of a training that tells it."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from driftgate import cli
from driftgate.errors import InputError
from driftgate.estimate.adapters import Adapters, adapters_of
from driftgate.estimate.estimate import estimate_of, workload_of
from driftgate.estimate.gpus import GPUS
from driftgate.estimate.memory import memory_of
from driftgate.estimate.savings import all_together, bytes_text, savings
from driftgate.estimate.shapes import KNOWN, Shape
from driftgate.estimate.training import memory_savings, print_training
from driftgate.models import load
from driftgate.recipe import load_recipe

STUDENT, TEACHER = KNOWN["Qwen3-1.7B"], KNOWN["Qwen3-4B"]
WEIGHTS, TEACHERS = 4 * STUDENT.parameters, 2 * TEACHER.parameters
TINY = Shape(2, 48, 80, 3, 1, 16, 32, True)
FULL_KL = "objective={kind: divergence}"


def work_of(*overrides, **changes):
    return replace(workload_of(load_recipe("qwen3/lsm_none", list(overrides)), 0.25), **changes)


def memory(*overrides, **changes):
    return memory_of(work_of(*overrides, **changes))


def test_an_offloaded_optimizer_is_there_for_its_step_alone():
    plain, found = memory(), memory("offload=[optimizer]")
    assert found.peak == plain.peak - 2 * WEIGHTS
    assert "AdamW" not in found.resident
    assert found.step == {"gradients": WEIGHTS, "AdamW": 2 * WEIGHTS}
    assert found.saved == plain.saved == 3 * WEIGHTS


def test_the_optimizer_s_step_may_have_the_peak():
    short = "rollout.max_new_tokens=64", "microbatch_tokens=1024"
    found = memory("offload=[optimizer]", *short)
    assert found.peak == sum(found.resident.values()) + 3 * WEIGHTS
    assert memory(*short).peak > found.peak


def test_an_offloaded_teacher_is_there_to_score_alone():
    plain, found = memory(), memory("offload=[teacher]")
    assert found.peak == plain.peak - TEACHERS
    assert "teacher" not in found.resident
    assert found.scoring["teacher"] == TEACHERS
    assert "teacher" not in found.rollout
    assert "target's output embedding" not in found.update


def test_an_offloaded_teacher_that_guides_is_there_in_a_rollout():
    guided = "rollout.kl_budget=0.1"
    assert memory(guided).peak == memory(guided, "offload=[teacher]").peak


def test_a_divergence_over_the_vocabulary_brings_the_teacher_s_head_to_the_update():
    found = memory("offload=[teacher]", FULL_KL)
    assert found.update["target's output embedding"] == 2 * TEACHER.embedding
    assert "target's output embedding" not in memory(FULL_KL).update


def test_the_initial_student_is_offloaded_with_the_teacher():
    held = "terms={held: {coef: 1.0, objective: {kind: divergence, target: initial, support: student}}}"
    assert memory(held).resident["initial student"] == WEIGHTS
    assert memory(held).peak - memory(held, "offload=[teacher]").peak == TEACHERS + WEIGHTS


def test_adapters_are_counted_as_on_a_model():
    config = Qwen3Config(
        hidden_size=TINY.hidden,
        intermediate_size=TINY.intermediate,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        num_key_value_heads=TINY.kv_heads,
        head_dim=TINY.head_dim,
        vocab_size=TINY.vocabulary,
    )
    layers = {n: m for n, m in Qwen3ForCausalLM(config).named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    assert Adapters(4).parameters(TINY) == sum(4 * (m.in_features + m.out_features) for m in layers.values())
    assert Adapters(4).target_parameters(TINY) == sum(m.weight.numel() for m in layers.values())
    some = [m for name, m in layers.items() if name.endswith(("q_proj", "down_proj"))]
    assert Adapters(3, ("q_proj", "down_proj")).parameters(TINY) == sum(
        3 * (m.in_features + m.out_features) for m in some
    )


def test_an_adapter_on_an_unknown_layer_is_named():
    with pytest.raises(InputError, match=r"student.lora.targets = \['c_attn'\].*name some of q_proj"):
        Adapters(4, ("c_attn",)).parameters(STUDENT)


def test_adapters_replace_gradients_and_optimizer_state():
    adapters = Adapters(16)
    plain, found = memory(), memory(adapters=adapters)
    size = 4 * adapters.parameters(STUDENT)
    assert found.resident == plain.resident | {"AdamW": 2 * size, "adapters": size}
    assert found.update == plain.update | {"gradients": size}
    assert found.saved == 3 * size
    merged = memory("student.compute=null", adapters=adapters).rollout["student's copy for decoding"]
    assert merged == 4 * STUDENT.matrices


def test_adapters_on_the_teacher_s_own_weights_need_no_second_model():
    work = work_of(adapters=Adapters(16))
    config = work.config.model_copy(update={"teacher": work.config.teacher.model_copy(update={"path": "student"})})
    assert "teacher" not in memory_of(replace(work, config=config)).resident


def test_settings_without_lora_train_the_weights():
    student = load_recipe("qwen3/lsm_none").student
    assert adapters_of(student) is None

    class Lora:
        rank, targets = 8, ("q_proj",)

    assert adapters_of(student.model_copy(update={"lora": Lora})) == Adapters(8, ("q_proj",))


def test_ranks_share_the_models_and_the_responses():
    one, two = memory(), memory(ranks=2)
    for part in ("student", "AdamW", "teacher"):
        assert two.resident[part] == one.resident[part] / 2
    assert two.update["gradients"] == one.update["gradients"] / 2
    assert two.update["activations"] == one.update["activations"]
    assert two.rollout["student's copy for decoding"] == 2 * STUDENT.parameters
    assert two.rollout["cache"] == one.rollout["cache"] / 2
    layer = STUDENT.matrices / STUDENT.layers
    assert two.update["gathered layers"] == 4 * (STUDENT.embedding + 2 * layer)


def test_ranks_keep_the_output_embedding_whole_that_a_divergence_reads():
    assert "target's output embedding" not in memory(ranks=2).resident
    found = memory(FULL_KL, "offload=[teacher]", ranks=2)
    assert found.resident["target's output embedding"] == 2 * TEACHER.embedding
    assert "target's output embedding" not in found.update


def test_the_shards_of_an_offloaded_teacher_come_a_layer_at_a_time():
    found = memory("offload=[teacher]", ranks=2)
    assert "teacher" not in found.scoring
    assert found.scoring["gathered layers"] == 2 * (TEACHER.embedding + 2 * TEACHER.matrices / TEACHER.layers)
    assert memory(ranks=2).peak - found.peak == TEACHERS / 2


def test_ranks_share_the_time():
    one, two = (estimate_of(work_of(ranks=n)).seconds["H100"] for n in (1, 2))
    assert two.update == pytest.approx(one.update / 2)
    assert two.teacher == pytest.approx(one.teacher / 2)
    assert any("2 processes" in note for note in estimate_of(work_of(ranks=2)).notes)


def test_a_saving_is_the_difference_of_two_runs_peaks():
    plain = "student.gradient_checkpointing=false"
    found = {each.setting: each.saved for each in savings(work_of(plain))}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    before = memory(plain).peak
    for setting, saved in found.items():
        if setting.startswith("--"):
            after = memory(plain, ranks=2).peak
        elif setting.startswith("student.lora"):
            after = memory(plain, adapters=Adapters(16)).peak
        else:
            after = memory(plain, setting).peak
        assert saved == before - after
    together = all_together(work_of(plain))
    assert together.setting.startswith("offload=[teacher,optimizer] ")
    assert together.saved == before - memory(plain, *together.setting.split()).peak
    assert together.saved > max(found[name] for name in together.setting.split()[1:])


def test_what_is_set_already_is_not_advised():
    names = [each.setting for each in savings(work_of("offload=[teacher]", "rollout.batch=8"))]
    assert "offload=[teacher,optimizer]" in names
    assert not any("checkpointing" in name or name.startswith("rollout.batch") for name in names)
    assert all_together(work_of("offload=[teacher,optimizer]", "rollout.batch=8")).setting == ""


def test_the_batch_that_fits_counts_every_phase():
    """The optimiser's step alone can be more than a GPU has."""
    found = estimate_of(work_of("offload=[optimizer]", "microbatch_tokens=1024", "rollout.max_new_tokens=64"))
    small = replace(GPUS[3], memory=1.05 * (sum(found.memory.resident.values()) + sum(found.memory.update.values())))
    assert sum(found.memory.update.values()) < sum(found.memory.step.values())
    assert found.fitting_batch(small) == 0


def test_advice_leaves_out_what_saves_nothing():
    found = memory_savings(load_recipe("sandbox/lsm_block64"))
    assert found
    assert all(saved > 0 for _, saved in found)
    assert all(one[1] >= other[1] for one, other in pairwise(found))


@pytest.mark.parametrize(("count", "text"), [(22.14e9, "22.1 GB"), (3.4e6, "3.4 MB"), (0, "0 MB"), (-2e9, "-2 GB")])
def test_bytes_for_people(count, text):
    assert bytes_text(count) == text


def dry_run(monkeypatch, capsys, *words):
    def refused(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", refused)
    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setattr(sys, "argv", ["driftgate", "train", *words, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_dry_run_tells_and_starts_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = dry_run(monkeypatch, capsys, "qwen3/lsm_none", "--mean-length", "0.5")
    assert "student of 1.72 B parameters, teacher of 4.02 B parameters; 200 steps on one GPU" in told
    assert re.search(r"a step +│ 32 +│ 262,144 +│ 524,288 +│ 524,288 +│ 262,144 ", told)
    assert f"{memory().peak / 1e9:,.2f}" in told
    assert re.search(r"offload=\[teacher\] +│ 8.04 GB", told)
    assert re.search(r"offload=\[optimizer\] +│ 13.8 GB", told)
    assert "student.lora.rank=16" in told
    assert "--processes 2" in told
    assert "fraction of max_new_tokens: 0.5" in told
    assert "examination" not in told
    assert all(gpu.name in told for gpu in GPUS)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_reads_no_more_than_the_configurations(monkeypatch, capsys, tmp_path):
    for name in ("student", "teacher"):
        Qwen3Config(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path / name)
    words = [f"{name}.path={tmp_path / name}" for name in ("student", "teacher")]
    assert "student's sizes: its config.json" in dry_run(monkeypatch, capsys, "sandbox/lsm_block64", *words)


def test_a_dry_run_of_several_processes():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_training(load_recipe("qwen3/lsm_none"), console, 0.3, processes=4)
    told = console.export_text()
    assert "200 steps on 4 GPUs" in told
    assert "each GPU" in told
    assert "--processes 8" in told
    assert "what 4 processes send each other takes time" in told


def test_the_documentation_s_savings_are_the_estimate_s():
    page = (Path(__file__).parents[1] / "docs" / "getting_started.md").read_text()
    told = dict(re.findall(r"^\| `(\S+)` \| (\d+) GB \|", page, re.MULTILINE))
    found = {each.setting: f"{each.saved / 1e9:.0f}" for each in savings(work_of())}
    assert len(told) == 3
    assert told == {setting: found[setting] for setting in told}
