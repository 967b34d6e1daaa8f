"""Runs of models with windows, convolutions and recurrent states: resumed, guided, with adapters, of two ranks."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from bad_input import drive
from ranks_case import trained
from rich.console import Console
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from architectures import model_of

from driftgate.config import ModelSettings
from driftgate.launch import launch
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.rollout.cached_reader import CachedReader
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.rollout.prefix import generate_with_prefix
from driftgate.rollout.readers import kind_of_reader
from driftgate.rollout.whole_reader import WholeReader
from driftgate.sandbox.tokenizer import build_tokenizer
from driftgate.stop import Stopped
from driftgate.train import loop
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.world import Alone

QUIET, CPU, EOS = Console(quiet=True), torch.device("cpu"), 1
KINDS = ("Qwen3.5", "Mistral, windows", "RWKV")
"""A hybrid, windows, and one without a cache that fits."""
PROMPTS = [(5, 6, 7, 8), (3,), (20, 21), (9, 9, 9, 9, 10, 11, 12, 13)]
pytestmark = pytest.mark.filterwarnings("ignore:.*transformers has no cache that fits")


def saved(folder, name):
    """A tiny model with the embedded tokenizer."""
    tokenizer = build_tokenizer()
    model_of(name, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: saved(folder / str(number), name) for number, name in enumerate(KINDS)}


def policy_of(path):
    return Policy(load_model(ModelSettings(path=path), "student", CPU))


def requests(samples=2):
    return [Request(prompt, tuple((3, i, n) for n in range(samples))) for i, prompt in enumerate(PROMPTS)]


def ids_of(groups):
    return [[response.ids for response in group] for group in groups]


def test_the_reader_is_the_fastest_that_is_exact(folders):
    kinds = {name: kind_of_reader(policy_of(path).model) for name, path in folders.items()}
    assert kinds == {"Qwen3.5": CachedReader, "Mistral, windows": CachedReader, "RWKV": WholeReader}
    with pytest.warns(UserWarning, match=r"RwkvForCausalLM: transformers has no cache that fits it.*rollout\.engine"):
        kind_of_reader(policy_of(folders["RWKV"]).model)


@pytest.mark.parametrize("name", KINDS)
def test_batching_order_and_neighbours_change_nothing(folders, name):
    policy, how = policy_of(folders[name]), Sampling(20, 0.9, 0.9, (EOS, 2, 3))
    whole = HFEngine(policy).generate(requests(), how)
    assert len({len(ids) for group in ids_of(whole) for ids in group}) > 2
    for batch in (1, 3):
        assert ids_of(HFEngine(policy, batch).generate(requests(), how)) == ids_of(whole)
    backwards = HFEngine(policy).generate(requests()[::-1], how)[::-1]
    assert ids_of(backwards) == ids_of(whole)


@pytest.mark.parametrize("name", KINDS)
def test_decoding_uses_the_live_weights(folders, name):
    policy, how = policy_of(folders[name]), Sampling(20, 1.0, 1.0, (EOS,))
    engine = HFEngine(policy)
    before = engine.generate(requests(), how)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    after = engine.generate(requests(), how)
    assert ids_of(after) != ids_of(before)
    assert ids_of(HFEngine(policy).generate(requests(), how)) == ids_of(after)


@pytest.mark.parametrize(("student", "teacher"), [("Qwen3.5", "Mistral, windows"), ("Mistral, windows", "RWKV")])
def test_a_guide_of_another_kind_and_a_prefix(folders, student, teacher):
    """A budget without bound draws from the guide, whose prompts are of other lengths; a prefix is the teacher's."""
    ours, theirs = policy_of(folders[student]), policy_of(folders[teacher])
    shown = [Request(r.prompt, r.keys, (7, 7, *r.prompt)) for r in requests()]
    plain = Sampling(10, 1.0, 1.0, (EOS,))
    guided = HFEngine(ours, guide=theirs).generate(shown, Sampling(10, 1.0, 1.0, (EOS,), budget=1e9))
    assert ids_of(guided) == ids_of(HFEngine(theirs).generate([Request(r.for_teacher, r.keys) for r in shown], plain))
    begun = generate_with_prefix(HFEngine(ours), HFEngine(theirs), requests(), plain, 4)
    keys = [Request(r.prompt, tuple((*key, "prefix") for key in r.keys)) for r in requests()]
    starts = HFEngine(theirs).generate(keys, Sampling(4, 1.0, 1.0, (EOS,)))
    assert [[ids[:4] for ids in group] for group in ids_of(begun)] == ids_of(starts)


def outcome(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]
    return metrics, {name: w.tolist() for name, w in load_file(final_model(out) / "model.safetensors").items()}


@pytest.mark.parametrize(("student", "teacher"), [("Qwen3.5", "Mistral, windows"), ("Mistral, windows", "RWKV")])
def test_a_run_of_two_steps_is_the_same_when_it_was_stopped(settings, folders, tmp_path, monkeypatch, student, teacher):
    """At the second update of its first step. Right after a rollout, nothing has drifted."""
    changes = {"steps": 2, "student": {"path": folders[student]}, "teacher": {"path": folders[teacher]}}
    config = check_config(
        settings | changes | {"rollout": {"samples": 2, "max_new_tokens": 24, "allow_truncated": True}}
    )
    run(config, tmp_path / "whole", QUIET)
    original = loop.timed_update

    def stopping(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(loop, "timed_update", stopping)
        run(config, tmp_path / "cut", QUIET)
    run(config, tmp_path / "cut", QUIET)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_adapters_decode_merged_and_learn(settings, folders, tmp_path):
    student = {"path": folders["Qwen3.5"], "lora": {"rank": 4}}
    config = check_config(settings | {"steps": 1, "student": student, "teacher": {"path": "student"}})
    run(config, tmp_path / "run", QUIET)
    assert (final_model(tmp_path / "run") / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_it_is_evaluated(folders, tmp_path, monkeypatch, capsys, name):
    words = ["--benchmark", "lock16", "--limit", "2", "--samples", "2", "--max-new-tokens", "4"]
    code, said = drive(monkeypatch, capsys, "eval", folders[name], *words, "--out", str(tmp_path / "exam"))
    assert code == 0, said


def test_two_ranks_compute_what_one_process_computes(values, folders, tmp_path):
    base = values | {"steps": 1, "device": "cpu", "microbatch_tokens": 1, "optimizer": {"lr": 0.001, "eps": 1e-4}}
    base["rollout"] = base["rollout"] | {"max_new_tokens": 16, "allow_truncated": True}
    cases = {
        name: base | {"student": {"path": folders[name]}, "teacher": {"path": folders["Mistral, windows"]}}
        for name in ("Qwen3.5", "Mistral, windows")
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("ranks_case.py")
    assert launch(2, [sys.executable, str(script), str(tmp_path / "cases.json"), str(tmp_path / "2.pt")]) == 0
    together = torch.load(tmp_path / "2.pt", weights_only=False)
    for name, settings in cases.items():
        alone = trained(settings, tmp_path / name, Alone())
        assert alone["responses"] == together[name]["responses"]
        for weight, value in alone["weights"].items():
            torch.testing.assert_close(together[name]["weights"][weight], value, rtol=0, atol=5e-6)
