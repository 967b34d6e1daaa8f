"""What a user gets wrong, and what fails on the way: one clear line, the right exit code, nothing lost."""

import json
import resource
import shutil
import sys

import pytest
import torch
import yaml
from conftest import make_model
from tokenizers import AddedToken
from transformers import AutoTokenizer

from driftgate import cli
from driftgate.objectives.lsm import LsmObjective
from driftgate.train import learner


@pytest.fixture
def command(settings, tmp_path, monkeypatch, capsys):
    """Run `driftgate train` in this process on changed settings: (exit code, what it said on stderr)."""

    def call(*overrides, out=None, **changes):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings | changes))
        words = ["train", str(recipe), *overrides, "--out", str(out or tmp_path / "run")]
        return drive(monkeypatch, capsys, *words)

    return call


def drive(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["driftgate", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    return code, capsys.readouterr().err


def write_prompts(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return {"path": str(path), "per_step": 2}


def problem(text="3+4=", **more):
    return json.dumps({"problem": text, **more})


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
    ],
)
def test_a_bad_value_is_named_with_its_mend(command, override, expected):
    code, said = command(override)
    assert code == 2
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def reference_term(**settings):
    return {"sft": {"responses": "reference", "objective": {"kind": "nll"}} | settings}


ON_TOP_K = {"kind": "divergence", "support": "teacher"}
ONE_UPDATE = {"passes": 1, "minibatch": None}
UNKNOWN = "no such signal; did you mean drift?"
ONE_SIDE = "give either above or below"


@pytest.mark.parametrize(
    ("changes", "setting", "mend"),
    [
        ({"objective": ON_TOP_K | {"mass": "raw"}}, "objective: reverse_kl on raw mass", "set mass=renormalised or"),
        (
            {"terms": {"x": {"objective": ON_TOP_K | {"mass": "raw"}}}},
            "terms.x.objective: reverse_kl on raw mass",
            "or allow_raw_reverse_kl=true",
        ),
        (
            {"objective": ON_TOP_K | {"mass": "raw", "divergence": "jsd"}},
            "objective: jsd on raw mass",
            "set mass=tail or renormalised",
        ),
        ({"objective": ON_TOP_K | {"k": 1}}, "objective: k = 1 with mass = renormalised", "set k=2 or more"),
        ({"weights": {"w": {"signal": "drifft"}}}, "weights.w.signal = 'drifft'", UNKNOWN),
        ({"weights": {"w": {"signal": {"signal": "drifft", "above": 1}}}}, "weights.w.signal.signal", UNKNOWN),
        (
            {"weights": {"w": {"signal": "gap", "where": {"signal": "drifft", "above": 1}}}},
            "weights.w.where.signal = 'drifft'",
            UNKNOWN,
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"kind": "threshold", "above": 1, "below": 2}}}},
            "weights.w.map",
            ONE_SIDE,
        ),
        ({"weights": {"w": {"signal": "gap", "map": "threshold"}}}, "weights.w.map", ONE_SIDE),
        ({"weights": {"w": {"signal": {"signal": "gap", "above": 1, "below": 2}}}}, "weights.w.signal", ONE_SIDE),
        ({"weights": {"w": {"signal": "gap", "where": {"signal": "gap"}}}}, "weights.w.where", ONE_SIDE),
        (
            {"weights": {"w": {"signal": "gap", "reduce": "share"}}},
            "weights.w: reduce = share with partition token",
            "share goes with prefix alone",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "prefix", "reduce": "max"}}},
            "weights.w: reduce = max with partition prefix",
            "reduced by sum, mean or share",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"kind": "sigmoid", "width": 0}}}},
            "weights.w.map.width = 0",
            "give a width above 0, or below 0",
        ),
        ({"weights": {"w": {"signal": "age"}}}, "weights.w: signal = age", "set normalise=none"),
        (
            {"weights": {"w": {"signal": {"signal": "age", "above": 1}, "normalise": "sequence"}}},
            "weights.w: signal = age",
            "set normalise=none",
        ),
        (ONE_UPDATE, "gate.spans = block with passes = 1", "set passes=2, a smaller minibatch, or gate.spans=none"),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "drift"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch, or take the weight out",
        ),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "gap", "partition": "changepoint"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            ONE_UPDATE
            | {
                "gate": {"spans": "none"},
                "terms": {"x": {"objective": {"kind": "nll"}, "weights": {"w": {"signal": "ratio"}}}},
            },
            "terms.x.weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            {"terms": reference_term(objective={"kind": "sampled_token"})},
            "terms.sft: objective.kind = sampled_token on responses = reference",
            "use divergence or nll",
        ),
        (
            {"terms": reference_term(objective={"kind": "candidates"})},
            "terms.sft: objective.kind = candidates on responses = reference",
            "use divergence or nll",
        ),
        (
            {"terms": reference_term(weights={"w": {"signal": "drift"}})},
            "terms.sft: weights.w on responses = reference",
            "take the factor out or set responses=student",
        ),
        (
            {"terms": reference_term(weights={"w": {"signal": "correct"}}, responses="teacher")},
            "terms.sft: weights.w on responses = teacher",
            "take the factor out or set responses=student",
        ),
        ({"terms": {"main": {"objective": {"kind": "nll"}}}}, "terms.main", "give the other term another name"),
        ({"weights": {"gate": {"signal": "gap"}}}, "weights.gate", "give the other another name"),
        (
            {"rollout": {"max_new_tokens": 40, "teacher_prefix": 40}},
            "rollout.teacher_prefix = 40 leaves the student nothing of a response of 40 tokens",
            "lower it",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "teacher_prefix": 4, "kl_budget": 0.1}},
            "rollout.teacher_prefix and rollout.kl_budget",
            "set one to 0",
        ),
        (
            {"weights": {"w": {"signal": "gap", "control": "shuffle_boundaries"}}},
            "weights.w: control = shuffle_boundaries with partition = token",
            "use block, newline or changepoint",
        ),
        (
            {"gate": {"spans": "none", "target_ess": 0.9}},
            "gate: target_ess is set but spans = none",
            "gate.spans=block64",
        ),
        (
            {"gate": {"spans": "none", "control": "inverse"}},
            "gate: control is set but spans = none",
            "gate.spans=block64",
        ),
        ({"gate": {"spans": "sequence", "scope": "sequence"}}, "gate: spans = sequence with scope", "scope=minibatch"),
        (
            {"gate": {"spans": "sequence", "control": "shuffle_within"}},
            "gate: control = shuffle_within with spans = sequence",
            "use shuffle_across",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "control": "shuffle_within"}}},
            "weights.w: control = shuffle_within with partition = sequence",
            "use shuffle_across",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "normalise": "sequence"}}},
            "weights.w: partition = sequence with normalise = sequence",
            "set normalise=minibatch, or none",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "map": "before_drop"}}},
            "weights.w: map = before_drop on partition sequence",
            "use newline or block",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "newline", "reduce": "max", "map": "before_drop"}}},
            "weights.w: map = before_drop looks at the spans' means",
            "set reduce=mean",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": "keep_top", "where": {"signal": "gap", "above": 0}}}},
            "weights.w: map = keep_top holds its share over all tokens",
            "take `where` out",
        ),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "age", "normalise": "none"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            {"objective": {"kind": "sampled_token"}, "rollout": {"on_policy": 0.5}},
            "rollout.on_policy = 0.5 with objective.kind = sampled_token",
            "set on_policy=1",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "horizon": {"kind": "growing", "start": 50}}},
            "rollout: horizon.start = 50 is above max_new_tokens = 40",
            "lower start",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "horizon": {"kind": "controller", "start": 30, "unpruned_by": "w"}}},
            "rollout.horizon.unpruned_by = w: there is no weights.w",
            "name one of `weights`",
        ),
        (
            {
                "weights": {"w": {"signal": "ratio", "map": "affine"}},
                "rollout": {"max_new_tokens": 40, "horizon": {"kind": "controller", "start": 30, "unpruned_by": "w"}},
            },
            "rollout.horizon.unpruned_by = w: needs a weight with map.kind=affine",
            "choose another weight",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"tau": 3}}}},
            "weights.w.map.kind: missing",
            "set weights.w.map.kind",
        ),
        ({"weights": {"map": {"signal": "gap", "tau": 3}}}, "weights.map.tau: unknown setting", "did you mean"),
        ({"terms": {"coef": {"objective": "nll", "coef": -1}}}, "terms.coef.coef = -1", "greater than or equal to 0"),
        (
            {"gate": {"spans": "token", "control": "shuffle_boundaries"}},
            "gate: control = shuffle_boundaries with spans = token",
            "use block, newline or changepoint",
        ),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_before_anything_is_loaded(
    command, tmp_path, monkeypatch, changes, setting, mend
):
    monkeypatch.setattr("driftgate.train.command.run", None)
    code, said = command(**changes)
    assert code == 2
    assert setting in said
    assert mend in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_weight_that_needs_no_reuse_is_not_refused_for_want_of_it(command):
    weight = {"signal": "gap", "map": "exp", "where": {"signal": "current_gap", "below": 0}}
    changes = ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": weight}}
    assert command("steps=1", **changes) == (0, "")


NEEDS_VERDICTS = {"weights": {"w": {"signal": "correct", "normalise": "none"}}}
NEEDS_SOLUTIONS = {"terms": reference_term()}
SAMPLED = {"samples": 3, "max_new_tokens": 40}


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        (NEEDS_VERDICTS, "answer", "a weight reads the verifier's verdict"),
        (NEEDS_SOLUTIONS, "solution", "reference solutions are learned from"),
        ({"rollout": SAMPLED | {"on_policy": 0.5}}, "solution", "rollout.on_policy"),
    ],
    ids=["verifier", "reference", "on_policy"],
)
def test_problems_that_lack_what_the_loss_reads(command, tmp_path, changes, field, why):
    whole = problem(id="a", answer="7", solution="7")
    without = json.dumps({key: value for key, value in json.loads(whole).items() if key != field} | {"id": "b"})
    code, said = command("steps=1", prompts=write_prompts(tmp_path / "p.jsonl", whole, without), **changes)
    assert code == 2
    assert "prompts.path = " in said
    assert why in said
    assert f"problem 'b' has no {field} (1 of 2 lack it)" in said
    assert "add it, rename with prompts.columns, or take that setting out" in said
    assert not (tmp_path / "run").exists()
    prompts = write_prompts(tmp_path / "p.jsonl", whole)
    assert command("steps=1", "rollout.allow_truncated=true", prompts=prompts, **changes) == (0, "")


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


def test_vocabulary_mismatch_shows_a_token(command, pair, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(pair[1], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("☃")])
    tokenizer.save_pretrained(folder)
    code, said = command(teacher={"path": str(folder)})
    assert code == 2
    assert "'☃' is absent for the student" in said


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


def certain_model(folder, token):
    """A model that always says `token`."""
    make_model(folder, 1, std=0.01)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[token] = 5.0
    model.save_pretrained(folder)
    return str(folder)


def test_every_response_truncated(command, tmp_path):
    folder = certain_model(tmp_path / "babbler", token=6)
    code, said = command(student={"path": folder})
    assert code == 1
    assert "cut at rollout.max_new_tokens = 40" in said
    assert command("rollout.allow_truncated=true", "steps=1", student={"path": folder}, out=tmp_path / "b")[0] == 0


def test_every_response_empty(command, tmp_path):
    code, said = command(student={"path": certain_model(tmp_path / "mute", token=1)})
    assert code == 1
    assert "responses is empty" in said


def test_everything_dropped(command, tmp_path):
    folder = certain_model(tmp_path / "mute", token=1)
    code, said = command("drop_tokens=[1]", student={"path": folder})
    assert code == 1
    assert "drop fewer tokens" in said


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(command, tmp_path, monkeypatch):
    original, seen = LsmObjective.loss, []

    def poisoned(*args):
        losses = original(*args)
        seen.append(1)
        return losses * float("nan") if len(seen) == 11 else losses

    with monkeypatch.context() as patched:
        patched.setattr(LsmObjective, "loss", poisoned)
        code, said = command()
    assert code == 1
    assert "the loss is nan at step 3, update 3, pass 2, minibatch 1" in said
    assert "step-000002" in said
    weights = tmp_path / "run" / "checkpoints" / "step-000002"
    assert weights.is_dir()
    assert command() == (0, "")  # and the same command goes on from there


def test_a_full_gpu_names_what_to_lower(command, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")

    monkeypatch.setattr(learner.Learner, "update", full)
    code, said = command()
    assert code == 1
    assert "lower microbatch_tokens (now 16384)" in said


def test_gates_that_vanish_are_told(command):
    code, said = command("gate.tau=1e30")
    assert code == 1
    assert "lower it" in said


def test_a_full_disk_keeps_what_was_saved_before(command, tmp_path):
    assert command("checkpoint.every=1", "steps=1")[0] == 0
    kept = tmp_path / "run" / "checkpoints" / "step-000001"
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # the model is larger, the logs are not
    try:
        code, said = command("checkpoint.every=1", "steps=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "could not be written" in said
    assert "the one before is kept" in said
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in kept.parent.iterdir()] == ["step-000001"]
    assert command("checkpoint.every=1", "steps=2") == (0, "")


def test_a_head_that_is_no_plain_product_is_refused(command, pair, monkeypatch):
    from transformers import Qwen3ForCausalLM

    original = Qwen3ForCausalLM.forward

    def capped(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", capped)
    code, said = command()
    assert code == 2
    assert "plain head" in said


def test_sliding_windows_are_refused(command, tmp_path):
    folder = make_model(tmp_path / "m", 1, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    code, said = command(student={"path": folder})
    assert code == 2
    assert "full attention" in said


def test_a_window_that_the_cache_would_not_keep_is_refused(command, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    from driftgate.sandbox.tokenizer import build_tokenizer

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=48, num_key_value_heads=1, sliding_window=8, eos_token_id=1, **shape)
    MistralForCausalLM(config).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    code, said = command(student={"path": str(tmp_path / "m")})
    assert code == 2
    assert "sliding window of 8" in said


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


def test_a_resumed_run_must_find_its_problems(command, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", problem(), problem("9-2="))
    assert command("steps=1", "rollout.allow_truncated=true", prompts=prompts)[0] == 0
    write_prompts(tmp_path / "p.jsonl", problem(), problem("8-2="))
    code, said = command("steps=2", "rollout.allow_truncated=true", prompts=prompts)
    assert code == 2
    assert "not those" in said


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


def test_two_processes_cannot_share_a_run_folder(command, tmp_path):
    from driftgate.train.folder import lock

    with lock(tmp_path / "run"):
        code, said = command()
    assert code == 2
    assert "another process" in said


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
