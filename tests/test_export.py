"""`driftgate export`: what it writes loads without driftgate and says what the run's model says."""

import json

import pytest
import torch
from bad_input import drive
from rich.console import Console
from safetensors.torch import load_file
from test_lora import IDS, base_of, logp_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftgate.config.models import LoraSettings
from driftgate.models import lora
from driftgate.recipe import check_config
from driftgate.train.command import run
from driftgate.train.folder import final_model


@pytest.fixture(scope="module")
def runs():
    """Run folders by whether they have an adapter, made once."""
    return {}


@pytest.fixture
def run_of(settings, runs, tmp_path_factory):
    def made(adapters):
        if adapters not in runs:
            student = settings["student"] | ({"lora": {"rank": 4}} if adapters else {})
            runs[adapters] = tmp_path_factory.mktemp("export") / "run"
            run(check_config(settings | {"steps": 1, "student": student}), runs[adapters], Console(quiet=True))
        return runs[adapters]

    return made


def test_an_adapter_is_merged_into_a_plain_model(run_of, settings, tmp_path, monkeypatch, capsys):
    assert drive(monkeypatch, capsys, "export", str(run_of(True)), "--out", str(tmp_path / "model")) == (0, "")
    base = settings["student"]["path"]
    trained = lora.attach(base_of(base), LoraSettings(rank=4), base, 0)
    trained.load(final_model(run_of(True)))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    assert not any("lora" in name for name, _ in found.named_parameters())
    torch.testing.assert_close(logp_of(found), logp_of(trained.model), rtol=0, atol=1e-5)
    assert not torch.allclose(logp_of(found), logp_of(base_of(base)), atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").decode(IDS[0]) != ""


@pytest.mark.parametrize(
    ("adapters", "flags", "file"), [(True, ["--adapter"], lora.WEIGHTS), (False, [], "model.safetensors")]
)
def test_other_folders_are_copied_as_they_are(run_of, tmp_path, monkeypatch, capsys, adapters, flags, file):
    out = tmp_path / "deep" / "copy"
    assert drive(monkeypatch, capsys, "export", str(run_of(adapters)), "--out", str(out), *flags) == (0, "")
    ours, theirs = load_file(out / file), load_file(final_model(run_of(adapters)) / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert AutoModelForCausalLM.from_pretrained(out)


def test_what_cannot_be_exported_is_refused_with_the_mend(run_of, tmp_path, monkeypatch, capsys):
    def said(*words):
        code, text = drive(monkeypatch, capsys, "export", *map(str, words))
        assert code == 2
        return text

    empty, full, begun = tmp_path / "empty", tmp_path / "full", tmp_path / "begun"
    for folder in (empty, full, begun):
        folder.mkdir()
    (full / "mine").write_text("")
    (begun / "config.yaml").write_text((run_of(False) / "config.yaml").read_text())
    for folder in (empty, tmp_path / "nowhere"):
        assert "is no run folder (it has no config.yaml)" in said(folder, "--out", tmp_path / "x")
    assert "has no checkpoint yet" in said(begun, "--out", tmp_path / "x")
    assert "was trained without student.lora" in said(run_of(False), "--out", tmp_path / "x", "--adapter")
    assert "is there already; choose a new folder" in said(run_of(False), "--out", full)
    assert json.dumps([p.name for p in full.iterdir()]) == '["mine"]'
    assert not (tmp_path / "x").exists()
