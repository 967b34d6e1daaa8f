"""Evaluation with the chat template that a model was trained with, or another."""

import hashlib
import json
import sys

import pytest
from chat_case import THINKING

from driftgate import cli
from driftgate.config.exam import ExamSettings
from driftgate.errors import InputError
from driftgate.evaluate.command import _as_trained
from driftgate.evaluate.evaluate import evaluate, load_examinee

EXAM = ExamSettings(benchmarks=("lock16",))


def test_a_model_is_evaluated_with_the_chat_template_that_it_was_trained_with(tmp_path):
    prompts = {
        "path": "x",
        "chat": True,
        "system": "7",
        "chat_template": "a",
        "template_args": {"enable_thinking": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"prompts": prompts}))
    trained = _as_trained(str(tmp_path), EXAM)
    for name in ("system", "chat_template", "template_args"):
        assert getattr(trained, name) == trained.described()[name] == prompts[name]
    told = EXAM.model_copy(update={"template_args": {}, "chat_template": "b", "system": ""})
    shown = _as_trained(str(tmp_path), told)
    assert (shown.template_args, shown.chat_template, shown.system) == ({}, "b", "")
    plain = _as_trained(str(tmp_path), EXAM.model_copy(update={"chat": False}))
    assert (plain.template_args, plain.chat_template, plain.system) == (None, None, None)


def test_an_evaluation_without_a_template_of_its_own_is_described_as_before():
    assert not {"chat_template", "template_args"} & EXAM.described().keys()


def evaluated(pair, folder, **settings):
    """What an evaluation of two short answers kept of its settings."""
    file = folder / "own.jsonl"
    file.write_text(json.dumps({"id": "a", "problem": "1+2", "answer": "3"}) + "\n")
    known = {"benchmarks": [str(file)], "samples": 2, "max_new_tokens": 4, "chat": True} | settings
    evaluate(load_examinee(pair[0]), ExamSettings.model_validate(known), folder / "eval")
    return json.loads((folder / "eval" / "eval.json").read_text())["settings"]


def test_an_evaluation_is_known_by_the_text_of_its_chat_template(pair, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(THINKING)
    kept = evaluated(pair, tmp_path, chat_template=str(path), template_args={"enable_thinking": False})
    assert kept["chat_template"] == hashlib.sha256(THINKING.encode()).hexdigest()
    path.write_text(THINKING + "1")
    with pytest.raises(InputError, match="chat_template"):
        evaluated(pair, tmp_path, chat_template=str(path), template_args={"enable_thinking": False})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--template-args", "{a: 1}"], "--template-args: belongs to a chat template; add --chat"),
        (["--system", "7"], "--system: belongs to a chat template"),
        (["--template-args", "{a"], "--template-args {a: not valid YAML"),
        (["--chat", "--chat-template", "no.jinja"], "prompts.chat_template = no.jinja: cannot be read"),
    ],
)
def test_flags_of_the_template_that_cannot_be_are_refused(pair, tmp_path, monkeypatch, capsys, words, said):
    command = ["driftgate", "eval", str(pair[0]), "--benchmark", "lock16", "--out", str(tmp_path / "eval"), *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
