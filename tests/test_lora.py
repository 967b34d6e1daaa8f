"""LoRA: what is trained and saved is the adapter alone; its base is the initial student and can be the teacher."""

import json
import sys

import pytest
import torch
import yaml
from bad_input import drive
from conftest import collected, make_model
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from driftgate.config import ModelSettings
from driftgate.config.models import LoraSettings
from driftgate.errors import InputError
from driftgate.models import lora
from driftgate.models.identity import fingerprint
from driftgate.models.load import load_model, load_tokenizer
from driftgate.models.policy import Policy
from driftgate.models.views import AdapterView
from driftgate.recipe import check_config, load_recipe
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.train import policies
from driftgate.train.command import run
from driftgate.train.folder import final_model

QUIET, CPU = Console(quiet=True), torch.device("cpu")
IDS = torch.tensor([[3, 5, 8, 4, 9, 10, 11, 6]])


def base_of(path, **settings):
    return load_model(ModelSettings.model_validate({"path": path} | settings), "student", CPU)


def adapted(path, rank=4, targets="all-linear", seed=3, **settings):
    """A student whose adapters are not 0."""
    model = base_of(path, **settings)
    adapters = lora.attach(model, LoraSettings(rank=rank, targets=targets), path, seed)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in adapters.parameters(lora.TRAINED):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return Policy(model, adapters=adapters)


@torch.no_grad()
def logp_of(model):
    return model(input_ids=IDS, use_cache=False).logits.double().log_softmax(-1)


@pytest.fixture
def lora_settings(settings):
    return settings | {"student": settings["student"] | {"lora": {"rank": 4}}}


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


@pytest.mark.parametrize("tied", [False, True])
def test_a_fresh_adapter_changes_no_bit_and_the_base_stays_what_it_was(tmp_path, tied):
    path = make_model(tmp_path / "m", 1, tied=tied)
    before, fresh = base_of(path), base_of(path)
    lora.attach(fresh, LoraSettings(rank=4), path, 0)
    assert torch.equal(logp_of(fresh), logp_of(before))
    student = adapted(path)
    assert not torch.allclose(logp_of(student.model), logp_of(before))
    with student.adapters.using(None):
        assert torch.equal(logp_of(student.model), logp_of(before))
    assert "lm_head" not in student.adapters.layers
    tokenizer = load_tokenizer(ModelSettings(path=path), "student")
    assert fingerprint(AdapterView(student, None), tokenizer) == fingerprint(Policy(before), tokenizer)


def test_the_adapters_begin_as_the_seed_says_whatever_was_drawn_before(pair):
    def factors(seed):
        torch.rand(seed + 1)
        adapters = lora.attach(base_of(pair[0]), LoraSettings(rank=4), pair[0], seed)
        return torch.cat([p.detach().flatten() for p in adapters.parameters(lora.TRAINED)])

    assert torch.equal(factors(0), factors(0))
    assert not torch.equal(factors(0), factors(1))


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "float32"), ("float32", "float32")])
def test_adapters_are_float32_over_any_smaller_base(pair, dtype, expected):
    student = adapted(pair[0], dtype=dtype)
    assert {p.dtype for p in student.adapters.parameters(lora.TRAINED)} == {getattr(torch, expected)}
    student.adapters.add_copy("teacher", 0)
    assert {p.dtype for p in student.adapters.parameters(lora.FOLLOWER)} == {getattr(torch, expected)}


@pytest.mark.parametrize("lent", [{"path": "student"}, {"path": "student", "follow": {"every": 1}}])
def test_only_the_adapter_is_trained_and_nothing_shared_is_frozen(lora_settings, tmp_path, lent):
    config = check_config(lora_settings | {"teacher": lent, "gate": {"spans": "none"}})
    made, _ = collected(config, tmp_path / "run")
    trained = {id(p) for p in made.policy.parameters() if p.requires_grad}
    assert (
        trained
        == {id(p) for p in made.policy.adapters.parameters(lora.TRAINED)}
        == {id(p) for p in made.learner.parameters}
    )
    assert isinstance(made.targets["teacher"], AdapterView)
    assert not list(made.targets["teacher"].parameters())


@pytest.mark.parametrize(
    ("targets", "cause"),
    [
        (["q_proj", "lm_head"], "lm_head is the output embedding, whose adapter the loss would not see"),
        (["embed_tokens"], "embed_tokens is an embedding, not a linear layer"),
        (["q_proj", "k_prj"], "the model has no k_prj; its linear layers are down_proj, gate_proj, k_proj, lm_head"),
        (["self_attn"], "self_attn is no linear layer; name those inside it"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_targets_that_would_not_be_trained_are_refused(tmp_path, targets, cause, tied):
    path = make_model(tmp_path / "m", 1, tied=tied)
    with pytest.raises(InputError) as caught:
        lora.attach(base_of(path), LoraSettings(rank=2, targets=targets), path, 0)
    assert f"student.lora.targets = {targets}: {cause}" in str(caught.value)


def test_without_the_extra_its_name_is_told(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    code, said = command("student.lora.rank=4")
    assert code == 2
    assert "driftgate[lora]" in said


def test_what_is_saved_is_a_folder_that_peft_and_transformers_load(lora_settings, tmp_path):
    out, path = tmp_path / "run", lora_settings["student"]["path"]
    run(check_config(lora_settings), out, QUIET)
    folder = final_model(out)
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == path
    saved = load_file(folder / lora.WEIGHTS)
    assert len(saved) == 2 * 7 * 2  # factors x linear layers x layers
    assert not any("base_layer" in name for name in saved)
    again = lora.attach(base_of(path), LoraSettings(rank=4), path, 0)
    again.load(folder)
    trained = logp_of(again.model)
    assert not torch.allclose(trained, logp_of(base_of(path)), atol=1e-3)
    torch.testing.assert_close(logp_of(AutoModelForCausalLM.from_pretrained(folder)), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(logp_of(base_of(str(out))), trained, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="of another rank"):
        lora.attach(base_of(path), LoraSettings(rank=3), path, 0).load(folder)


def test_an_adapter_without_a_tokenizer_has_its_base_s(pair, tmp_path):
    adapted(pair[0]).adapters.save(tmp_path)
    tokenizers = [load_tokenizer(ModelSettings(path=str(path)), "student") for path in (tmp_path, pair[0])]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


@pytest.mark.parametrize("compute", [None, "bfloat16"])
def test_decoding_on_the_merged_copy_writes_the_tokens_of_the_adapters(pair, compute):
    student = adapted(pair[0])
    student.compute = compute
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    requests = [Request((3, 5, 8), ((0, n),)) for n in range(6)]
    sampling = Sampling(30, 1.0, 1.0, (1,))
    merged = HFEngine(student).generate(requests, sampling)
    plain = student.for_decoding()
    assert not any("lora" in name for name, _ in plain.named_modules())
    assert plain.get_input_embeddings().weight.dtype == (torch.float32 if compute is None else torch.bfloat16)
    if compute is None:  # bfloat16 rounds the merged product otherwise
        student.for_decoding = lambda: student.model
        through = HFEngine(student).generate(requests, sampling)
        assert [[r.ids for r in group] for group in merged] == [[r.ids for r in group] for group in through]
        torch.testing.assert_close(logp_of(plain), logp_of(student.model), rtol=0, atol=1e-5)
    after = student.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_base_decodes_on_the_live_weights(pair):
    student = adapted(pair[0])
    plain = AdapterView(student, None).for_decoding()
    assert torch.equal(logp_of(plain), logp_of(base_of(pair[0])))
    live = {p.data_ptr() for p in student.model.parameters()}
    assert all(p.data_ptr() in live for p in plain.parameters())


def test_recomputed_activations_give_the_same_gradient(pair):
    def gradients(on):
        student = adapted(pair[0])
        if on:
            student.model.gradient_checkpointing_enable()
        student._ask_for_checkpoints(True)
        student.model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
        return [p.grad for p in student.adapters.parameters(lora.TRAINED)]

    plain, saving = gradients(False), gradients(True)
    assert all(float(g.abs().sum()) > 0 for g in plain)
    assert all(torch.equal(one, other) for one, other in zip(plain, saving))


@pytest.mark.parametrize("adapters", [True, False])
def test_the_student_as_teacher_is_the_initial_student(settings, lora_settings, tmp_path, adapters):
    """Also in the loss over the whole vocabulary, which reads the teacher's head during an update, and as a writer."""
    chosen = lora_settings if adapters else settings
    chosen |= {"rollout": chosen["rollout"] | {"teacher_prefix": 5}}
    loss = {"kind": "divergence", "divergence": "reverse_kl", "support": "vocabulary"}
    for name, path in (("lent", "student"), ("copy", settings["student"]["path"])):
        run(check_config(chosen | {"teacher": {"path": path}, "objective": loss}), tmp_path / name, QUIET)
    assert metrics_of(tmp_path / "lent") == metrics_of(tmp_path / "copy")


def test_a_term_that_holds_to_the_initial_student_needs_no_second_copy(lora_settings, tmp_path, monkeypatch):
    anchor = {"kind": "divergence", "divergence": "reverse_kl", "support": "vocabulary", "target": "initial"}
    config = check_config(lora_settings | {"terms": {"anchor": {"objective": anchor}}})
    run(config, tmp_path / "lent", QUIET)
    loaded = []

    def copied(config, policy, device):
        loaded.append(Policy(base_of(config.student.path)))
        return loaded[-1]

    monkeypatch.setattr(policies, "_initial", copied)
    run(config, tmp_path / "copied", QUIET)
    assert len(loaded) == 1
    assert metrics_of(tmp_path / "lent") == metrics_of(tmp_path / "copied")


def test_a_base_that_has_changed_does_not_resume_a_run(lora_settings, tmp_path):
    path = make_model(tmp_path / "base", 1)
    changed = lora_settings | {"student": {"path": path, "lora": {"rank": 4}}}
    run(check_config(changed | {"steps": 1}), tmp_path / "run", QUIET)
    make_model(tmp_path / "base", 2)
    with pytest.raises(InputError, match=r"the base of student\.lora is not the one"):
        run(check_config(changed), tmp_path / "run", QUIET)


def test_a_group_that_a_run_s_configuration_has_off_can_be_turned_on(settings, tmp_path):
    recipe = tmp_path / "config.yaml"
    recipe.write_text(yaml.safe_dump(check_config(settings).model_dump(mode="json")))
    lora_of = load_recipe(str(recipe), ["student.lora.rank=8"]).student.lora
    assert lora_of is not None
    assert (lora_of.rank, lora_of.alpha) == (8, None)


def test_a_run_is_evaluated_with_its_adapter(lora_settings, tmp_path, monkeypatch, capsys):
    run(check_config(lora_settings | {"steps": 1}), tmp_path / "run", QUIET)
    words = ["--benchmark", "lock16", "--limit", "2", "--samples", "1", "--max-new-tokens", "4"]
    code, said = drive(monkeypatch, capsys, "eval", str(tmp_path / "run"), *words, "--out", str(tmp_path / "exam"))
    assert (code, said) == (0, "")
