"""What a user gets wrong in settings, models and prompts: one clear line, the right exit code, nothing started."""

import json
import shutil

import pytest
import torch
from bad_input import drive, problem, reference_term, write_prompts
from transformers import AutoTokenizer


def test_the_settings_of_these_tests_are_good(command):
    assert command("steps=1") == (0, "")


def test_unknown_recipe_names_the_nearest(monkeypatch, capsys):
    code, said = drive(monkeypatch, capsys, "train", "sandbox/lsm_blok64")
    assert code == 2
    assert "did you mean sandbox/lsm_block64?" in said


def test_missing_recipe_file(monkeypatch, capsys):
    assert drive(monkeypatch, capsys, "train", "nowhere.yaml")[0] == 2


def test_unknown_setting_names_the_nearest(command):
    code, said = command("gate.taus=3")
    assert code == 2
    assert "gate.taus: unknown setting; did you mean gate.tau?" in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gate.tau=-1", "gate.tau = -1: input should be greater than or equal to 0"),
        ("passes=0", "passes = 0"),
        ("gate.spans=sentences", "gate.spans = 'sentences'"),
        ("objective.k=1", "objective.k = 1"),
        ("gate.tau", "write key=value"),
        ("steps.many=3", "steps is a value"),
        ("gate={min_tokens: 9, max_tokens: 3}", "raise max_tokens"),
        ("objective.kind=ppo", "objective"),
        ("diagnostics.k=1", "diagnostics.k = 1: input should be greater than or equal to 2"),
        ("prompts.system=hello", "set prompts.chat=true"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1"),
        ("student.compute=float64", "student.compute"),
        ("prompts.template={problem.x}", "prompts.template"),
        ("prompts.verify=maths", "prompts.verify"),
        ("prompts.verify={kind: regex, pattern: (}", "prompts.verify.pattern = '(': is no regular expression"),
        ("prompts.verify={kind: number, tolerance: -1}", "prompts.verify.tolerance = -1"),
        ("prompts.verify={kind: exact, part: box, after: x}", "take one of the two out"),
        ("prompts.verify={kind: json_schema, equal: true}", "give the schema as file"),
        ("prompts.verify={kind: json_schema, file: nowhere.json}", "verify.file = nowhere.json: cannot be read"),
        ("prompts.verify={kind: function, path: checks.py}", "write module:function"),
        ("prompts.verify={kind: code, seconds: 0}", "prompts.verify.seconds = 0: input should be greater than 0"),
        ("prompts.verify={kind: code, workers: 0}", "prompts.verify.workers = 0: input should be greater than 0"),
        ("prompts.verify={kind: code, memory_gib: 0.1}", "prompts.verify.memory_gib = 0.1"),
        ("prompts.verify=code", "the answer '7' of problem 'p0' holds no assert: any response would pass"),
        ("prompts.verify=codes", "prompts.verify"),
    ],
)
def test_a_bad_value_is_named_with_its_mend(command, override, expected):
    code, said = command(override)
    assert code == 2
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def test_several_bad_values_are_told_at_once(command):
    code, said = command("gate.tau=-1", "steps=-3")
    assert code == 2
    assert "gate.tau" in said
    assert "steps" in said


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_missing_model(command, tmp_path, role):
    code, said = command(**{role: {"path": str(tmp_path / "nowhere")}})
    assert code == 2
    assert f"{role}.path" in said
    assert "nowhere" in said


def test_a_folder_that_holds_no_model(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, said = command(student={"path": str(tmp_path / "empty")})
    assert code == 2
    assert "student.path" in said


def test_vocabulary_mismatch_shows_the_tokens(command, pair, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(pair[1], folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    code, said = command(teacher={"path": str(folder)})
    assert code == 2
    assert "2 tokens differ by more than added tokens at the end" in said
    assert f"{other!r} ({vocabulary[one]}, {vocabulary[other]})" in said
    assert "rollout.on_policy=0" in said


def test_a_teacher_that_stops_elsewhere_is_refused(command, pair, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(pair[1], folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    code, said = command(teacher={"path": str(folder)})
    assert code == 2
    assert "EOS clash" in said
    assert "rollout.stop_ids" in said
    assert command("rollout.stop_ids=[1]", "steps=1", teacher={"path": str(folder)})[0] == 0


def test_a_pad_token_that_is_eos_is_no_clash(command, pair, tmp_path):
    folder = tmp_path / "same"
    shutil.copytree(pair[0], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    assert command("steps=1", student={"path": str(folder)}) == (0, "")


def test_missing_prompt_file(command, tmp_path):
    code, said = command(prompts={"path": str(tmp_path / "none.jsonl")})
    assert code == 2
    assert "prompts.path" in said


def test_empty_prompt_file(command, tmp_path):
    code, said = command(prompts=write_prompts(tmp_path / "p.jsonl", "", "  "))
    assert code == 2
    assert "has no lines" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"problem": "3+', "not valid JSON"),
        ('["3+4="]', "must be an object"),
        ('{"question": "3+4="}', "prompts.columns"),
        ('{"problem": "  "}', "not empty"),
        ('{"problem": 7}', "must be a text"),
    ],
)
def test_a_malformed_prompt_line_is_numbered(command, tmp_path, line, expected):
    code, said = command(prompts=write_prompts(tmp_path / "p.jsonl", problem(), "", line))
    assert code == 2
    assert "p.jsonl:3" in said
    assert expected in said


def test_two_prompts_of_one_id_are_refused(command, tmp_path):
    lines = problem(id="a"), problem("1+1=", id="a")
    code, said = command(prompts=write_prompts(tmp_path / "p.jsonl", *lines))
    assert code == 2
    assert "p.jsonl:2" in said


def test_a_prompt_that_leaves_no_room_in_the_context(command):
    code, said = command("rollout.max_new_tokens=255")
    assert code == 2
    assert "context of 256" in said
    assert "set rollout.max_new_tokens=" in said


def test_a_prompt_longer_than_allowed(command):
    code, said = command("prompts.max_tokens=5")
    assert code == 2
    assert "prompts.max_tokens = 5" in said


def test_a_context_that_needs_a_solution_which_is_not_there(command, pair):
    code, said = command(teacher={"path": pair[1], "context": "{problem} {solution}"})
    assert code == 2
    assert "has no solution" in said


def test_a_template_with_an_unknown_field(command):
    code, said = command("prompts.template={question}")
    assert code == 2
    assert "prompts.template" in said


def test_chat_without_a_template(command, pair, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(pair[0], folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    code, said = command("prompts.chat=true", student={"path": str(folder)})
    assert code == 2
    assert "prompts.chat=false" in said


def test_a_support_wider_than_the_vocabulary(command):
    code, said = command("objective.k=100000")
    assert code == 2
    assert "lower objective.k" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"diagnostics": {"k": 100}},
        {"diagnostics": {"k": 100, "every": 0}, "weights": {"w": {"signal": "overlap"}}},
        {
            "diagnostics": {"k": 100, "every": 0},
            "terms": reference_term(responses="teacher", weights={"w": {"signal": "teacher_margin"}}),
        },
    ],
    ids=["measured", "weight", "weight-on-another-stream"],
)
def test_more_diagnosed_tokens_than_the_vocabulary_has(command, tmp_path, changes):
    code, said = command(**changes)
    assert code == 2
    assert "diagnostics.k = 100: the vocabulary has 48 tokens; lower diagnostics.k" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(command):
    code, said = command("device=cuda")
    assert code == 2
    assert "device=auto" in said


def test_a_run_folder_that_is_a_file(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert command(out=tmp_path / "file")[0] == 2


def test_logits_that_the_head_does_not_make_are_refused(command, pair, monkeypatch):
    from transformers import Qwen3ForCausalLM

    original = Qwen3ForCausalLM.forward

    def capped(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", capped)
    code, said = command()
    assert code == 2
    assert "its logits are off by up to" in said


def test_an_encoder_is_refused(command, tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    from driftgate.sandbox.tokenizer import build_tokenizer

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=48, eos_token_id=1, **shape)).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    code, said = command(student={"path": str(tmp_path / "m")})
    assert code == 2
    assert "student.path" in said
    assert "BertLMHeadModel is not causal" in said


def test_damaged_weights(command, pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    code, said = command(student={"path": str(tmp_path / "cut")})
    assert code == 2
    assert "student.path" in said


def test_a_generation_config_that_cannot_be_saved_is_mended(command, pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "odd")
    path = tmp_path / "odd" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": False, "temperature": 0.6}))
    assert command("steps=1", student={"path": str(tmp_path / "odd")}) == (0, "")


def test_recipes_that_cannot_be_read(monkeypatch, capsys, tmp_path):
    (tmp_path / "a.yaml").write_text(f"extends: {tmp_path}/b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"extends: {tmp_path}/a.yaml\n")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "d.yaml").write_text("extends: 5\n")
    for name, expected in (("a", "extends itself"), ("c", "not UTF-8"), ("d", "recipe 5: unknown")):
        code, said = drive(monkeypatch, capsys, "train", str(tmp_path / f"{name}.yaml"))
        assert code == 2
        assert expected in said


@pytest.mark.parametrize(
    "flag",
    [
        "--samples=0",
        "--batch=0",
        "--limit=0",
        "--limit=-1",
        "--max-new-tokens=-3",
        "--temperature=0",
        "--temperature=nan",
        "--top-p=2",
        "--top-p=0",
        "--dtype=foo",
        "--device=foo",
    ],
)
def test_a_bad_flag_of_eval_is_named(monkeypatch, capsys, tmp_path, pair, flag):
    words = ["eval", pair[0], "--benchmark", "lock16", flag, "--out", str(tmp_path / "e")]
    code, said = drive(monkeypatch, capsys, *words)
    assert code == 2
    assert flag.partition("=")[0] in said


def test_eval_into_a_file_is_refused_before_sampling(monkeypatch, capsys, tmp_path, pair):
    (tmp_path / "file").write_text("")
    words = ["eval", pair[0], "--benchmark", "lock16", "--limit", "1", "--out", str(tmp_path / "file")]
    code, said = drive(monkeypatch, capsys, *words)
    assert code == 2
    assert "--out" in said


def test_eval_of_an_unknown_benchmark(monkeypatch, capsys, tmp_path):
    words = ["eval", "sandbox/student", "--benchmark", "lock17", "--out", str(tmp_path)]
    code, said = drive(monkeypatch, capsys, *words)
    assert code == 2
    assert "did you mean" in said


def test_a_benchmark_without_answers(monkeypatch, capsys, tmp_path, pair):
    (tmp_path / "b.jsonl").write_text(problem() + "\n")
    words = ["eval", pair[0], "--benchmark", str(tmp_path / "b.jsonl"), "--out", str(tmp_path)]
    code, said = drive(monkeypatch, capsys, *words)
    assert code == 2
    assert "no `answer`" in said


def test_nothing_is_written_before_the_input_is_checked(command, tmp_path):
    command(prompts={"path": str(tmp_path / "none.jsonl")})
    assert not (tmp_path / "run").exists()
