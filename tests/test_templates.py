"""Chat templates by role: which template, system message and arguments student and teacher see."""

import pytest

from driftgate.config import PromptSettings
from driftgate.config.models import TeacherSettings
from driftgate.data.problems import Problem
from driftgate.data.templates import student_view, teacher_view
from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.sandbox.tokenizer import build_tokenizer
from driftgate.train.build import build_run

THINKING = (
    "{%- for tool in tools or [] %}{{ tool.function.name }}+{% endfor %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{ '*' + message.content + '*' }}{% else %}{{ message.content }}{% endif %}"
    "{%- endfor %}"
    "{%- generation %}{% endgeneration %}"
    "{%- if add_generation_prompt %}={% if enable_thinking is defined and not enable_thinking %}0{% endif %}{% endif %}"
)
"""Ends with `=0` where thinking is off, else with `=`."""

PROBLEM = Problem("a", "1+2", solution="3")


def tokenizer(template=THINKING):
    made = build_tokenizer()
    made.chat_template = template
    return made


def student(**settings):
    return student_view(tokenizer(), PromptSettings.model_validate({"path": "x", "chat": True} | settings))


def teacher(shown, own=None, role="teacher", **settings):
    return teacher_view(shown, TeacherSettings.model_validate({"path": "y"} | settings), role, own or tokenizer())


def texts(*views):
    return [view.text(PROBLEM) for view in views]


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
