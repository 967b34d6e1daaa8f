"""Tiny models with random weights and the embedded tokenizer: what is tested is the machinery, not the mathematics."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from bad_input import drive
from fake_vllm import FakeVLLM
from transformers import Qwen3Config, Qwen3ForCausalLM

from driftgate.recipe import check_config
from driftgate.rollout import vllm_server
from driftgate.sandbox.tokenizer import build_tokenizer
from driftgate.serving.client import Limits
from driftgate.train.build import build_run
from driftgate.train.portions import Portion, spans_of, with_ahead

torch.set_num_threads(1)
SOLUTIONS = ["3+4=7", "12-7=5\n5+1=6\n\\boxed{6}", "5*5=25\n25-2=23", "40+2=42\n42-33=9", "9", "1+1=2"]


def make_model(folder, seed, hidden=32, layers=2, tied=False, std=0.3, **changes):
    """A random Qwen3 with the embedded tokenizer, saved to `folder`."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=changes.pop("vocab_size", len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=changes.pop("kv_heads", 1),
        head_dim=hidden // 2,
        max_position_embeddings=changes.pop("context", 256),
        initializer_range=std,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=changes.pop("eos", tokenizer.eos_token_id),
        bos_token_id=None,
        **changes,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def collected(config, out):
    """A run and its first rollout batch, by whose responses they are."""
    made = build_run(config, out)
    out.mkdir(exist_ok=True)
    return made, made.source.take(made.position).responses


def portions_of(config, made, responses, sequences):
    """What an optimiser batch of these student sequences takes of each group of responses: of the others everything."""
    chosen = {name: range(len(batch.responses)) for name, batch in responses.items()} | {"student": sequences}
    return {
        name: Portion(
            with_ahead(config, name, batch, 0), chosen[name], *spans_of(config, name, batch, made.newline_ids)
        )
        for name, batch in responses.items()
    }


def learn(config, made, responses, sequences, moment, diagnose=False):
    """One optimiser update as the loop makes it. Returns its metrics."""
    updated = made.learner.update(portions_of(config, made, responses, sequences), moment, diagnose)
    if updated.old_logp is not None:
        responses["student"] = responses["student"].with_behaviour(updated.old_logp)
    return updated.metrics


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """(student, teacher) folders."""
    folder = tmp_path_factory.mktemp("pair")
    return make_model(folder / "student", 1), make_model(folder / "teacher", 2, hidden=48)


@pytest.fixture
def fake(pair):
    """A server that speaks vLLM's JSON and has the student's weights."""
    with FakeVLLM(pair[0]) as server:
        yield server


@pytest.fixture
def quick(monkeypatch):
    """Short waits for servers, whatever the settings say."""

    def limits(answer, lost):
        return Limits(connect=5.0, answer=answer, retries=1, pause=0.01, lost=min(lost, 120.0), health=0.05)

    monkeypatch.setattr(vllm_server, "Limits", limits)


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["3+4=", "12-7+1=", "5*5-2=", "40+2-11*3=", "9=", "1+1="]
    rows = [{"id": f"p{i}", "problem": text, "answer": "7"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(pair, prompt_file):
    """A run small enough to test with: values to be changed and passed to `check_config`."""
    student, teacher = pair
    return {
        "seed": 3,
        "steps": 3,
        "passes": 2,
        "minibatch": 6,
        "student": {"path": student},
        "teacher": {"path": teacher},
        "prompts": {"path": str(prompt_file), "per_step": 4},
        "rollout": {"samples": 3, "max_new_tokens": 40},
        "objective": {"kind": "lsm", "k": 6},
        "gate": {"spans": "block", "size": 8, "tau": 5.0},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every": 2},
        "threads": 1,
    }


@pytest.fixture
def config(settings):
    return check_config(settings)


@pytest.fixture
def command(settings, tmp_path, monkeypatch, capsys):
    """Run `driftgate train` in this process on changed settings: (exit code, what it said on stderr)."""

    def call(*overrides, out=None, **changes):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings | changes))
        words = ["train", str(recipe), *overrides, "--out", str(out or tmp_path / "run")]
        return drive(monkeypatch, capsys, *words)

    return call


@pytest.fixture
def values(settings, tmp_path):
    """Settings with a solution for every problem and room for cut responses."""
    rows = [json.loads(line) for line in Path(settings["prompts"]["path"]).read_text().splitlines()]
    path = tmp_path / "solved.jsonl"
    path.write_text("".join(json.dumps(row | {"solution": text}) + "\n" for row, text in zip(rows, SOLUTIONS)))
    changed = copy.deepcopy(settings) | {"minibatch": None, "gate": {"spans": "none"}}
    changed["prompts"] = {"path": str(path), "per_step": 4}
    changed["rollout"] |= {"allow_truncated": True}
    return changed
