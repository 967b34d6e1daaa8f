"""What fails on the way: one clear line, the right exit code, nothing lost."""

import re
import resource

import torch
from bad_input import problem, write_prompts
from conftest import make_model

from driftgate.errors import InputError
from driftgate.estimate import training
from driftgate.objectives.lsm import LsmObjective
from driftgate.train import learner


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
    assert code == 1, said
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
    assert "a smaller microbatch_tokens (now 16384) or rollout.batch (now None)" in said
    saved = [float(number) for number in re.findall(r"\(([\d.e-]+) GB", said)]
    assert len(saved) > 1
    assert saved == sorted(saved, reverse=True)
    assert re.search(r"student.gradient_checkpointing=true \([^)]* GB, in another --out\)", said)
    assert re.search(r"offload=\[optimizer\] \([^)]* GB\)", said)


def test_a_full_gpu_is_told_also_where_nothing_can_be_estimated(command, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def unknown(*_, **__):
        raise InputError("its sizes are not known")

    monkeypatch.setattr(learner.Learner, "update", full)
    monkeypatch.setattr(training, "workload_of", unknown)
    code, said = command()
    assert code == 1
    assert "the GPU's memory is full (CUDA out of memory.). Go on in the same folder" in said
    assert "by estimate" not in said


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


def test_a_resumed_run_must_find_its_problems(command, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", problem(), problem("9-2="))
    assert command("steps=1", "rollout.allow_truncated=true", prompts=prompts)[0] == 0
    write_prompts(tmp_path / "p.jsonl", problem(), problem("8-2="))
    code, said = command("steps=2", "rollout.allow_truncated=true", prompts=prompts)
    assert code == 2
    assert "not those" in said


def test_two_processes_cannot_share_a_run_folder(command, tmp_path):
    from driftgate.train.folder import lock

    with lock(tmp_path / "run"):
        code, said = command()
    assert code == 2
    assert "another process" in said
