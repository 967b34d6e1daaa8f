"""A small chat template and the views that are made with it."""

from driftgate.config import PromptSettings
from driftgate.config.models import TeacherSettings
from driftgate.data.problems import Problem
from driftgate.data.templates import student_view, teacher_view
from driftgate.sandbox.tokenizer import build_tokenizer

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
