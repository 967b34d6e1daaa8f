"""How a role is shown a problem: text, system message, chat template and what is passed to it."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from ..config import PromptSettings
from ..config.models import OWN, TeacherSettings
from ..errors import InputError
from .problems import Problem


@dataclass(frozen=True)
class Chat:
    """A chat template and what is passed to it. `setting`, `args_setting` name where they come from."""

    source: str
    setting: str
    args: Mapping[str, Any]
    args_setting: str
    system: str | None
    replaces_system: bool = False
    """Whether `system` takes the place of a conversation's own."""


@dataclass(frozen=True)
class View:
    """What a role sees of a problem. chat: None for plain text."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    template_setting: str
    chat: Chat | None

    def text(self, problem: Problem) -> str:
        """The prompt with its special tokens as text. Raises InputError for a template that cannot be rendered."""
        filled = _fill(self.template, problem, self.template_setting)
        if self.chat is not None:
            return _render(self.tokenizer, self.chat, _messages(self.chat, problem, filled))
        if problem.messages is not None:
            raise InputError(f"prompts.chat = false: problem {problem.id!r} is a conversation; set prompts.chat=true")
        return filled

    def ending(self, problem: Problem) -> str:
        """What follows the last field of the template; in chat, the user's message."""
        if self.chat is None:
            return self.template.rpartition("}")[2]
        filled = _fill(self.template, problem, self.template_setting)
        return self.text(problem).rpartition(filled.strip())[2]

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of the prompt. Raises InputError where there are none."""
        text = self.text(problem)
        ids = self.tokenizer(text, add_special_tokens=self.chat is None)["input_ids"]
        # some tokenizers add EOS to every text, which would end the response before it begins
        while ids and self.chat is None and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        if not ids:
            raise InputError(
                f"{self.template_setting}: the text {text!r} has no tokens; add text to the template or the problem"
            )
        return tuple(ids)


def student_view(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> View:
    """What the student sees. Raises InputError for a chat template that cannot be read, or names in
    `prompts.template_args` that it does not use."""
    chat = None
    if settings.chat:
        args, setting = settings.template_args, "prompts.chat_template"
        source = _source(tokenizer, settings.chat_template, setting, args, "prompts.chat = true: the student")
        chat = Chat(source, setting, args, "prompts.template_args", settings.system)
        _check_args(chat)
    return View(tokenizer, settings.template, "prompts.template", chat)


def teacher_view(student: View, settings: TeacherSettings, role: str, tokenizer: PreTrainedTokenizerBase) -> View:
    """What a teacher sees: the student's view but for what its own settings change. role: the teacher's name in the
    settings. tokenizer: the teacher's, for its own chat template. Raises InputError as `student_view`."""
    found = student
    if settings.context is not None:
        found = replace(found, template=settings.context, template_setting=f"{role}.context")
    if found.chat is None:
        return found
    chat = found.chat
    if settings.template_args is not None:
        chat = replace(chat, args=settings.template_args, args_setting=f"{role}.template_args")
    if settings.system is not None:
        chat = replace(chat, system=settings.system, replaces_system=True)
    if settings.chat_template is not None:
        own = settings.chat_template == OWN
        found = replace(found, tokenizer=tokenizer) if own else found
        path, setting = None if own else settings.chat_template, f"{role}.chat_template"
        source = _source(found.tokenizer, path, setting, chat.args, f"{setting} = own: the teacher")
        chat = replace(chat, source=source, setting=setting)
    _check_args(chat)
    return replace(found, chat=chat)


def _fill(template: str, problem: Problem, setting: str) -> str:
    values = {"problem": problem.problem, "solution": problem.solution, "answer": problem.answer}
    try:
        text = template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"{setting} = {template!r}: cannot be filled in ({error!r}); fields are {{problem}}, {{solution}} and "
            f"{{answer}}, write other braces twice"
        ) from None
    for name, value in values.items():
        if value is None and f"{{{name}}}" in template:
            raise InputError(f"{setting} uses {{{name}}}, but problem {problem.id!r} has no {name}; add it")
    return text


def _messages(chat: Chat, problem: Problem, text: str) -> list[dict[str, str]]:
    """text: in place of the last user's message of a conversation. Its own system message stays, unless the role is a
    teacher with one."""
    turns = problem.messages or (("user", text),)
    if turns[-1][0] != "user":
        raise InputError(
            f"prompts.path: the conversation of problem {problem.id!r} ends with a message of {turns[-1][0]!r}; the "
            f"next turn is the student's to write, so end it with the user's"
        )
    own = [content for role, content in turns if role == "system"]
    system = [chat.system] if chat.system is not None and (chat.replaces_system or not own) else own
    said = [(role, content) for role, content in turns[:-1] if role != "system"]
    every = [*(("system", content) for content in system if content), *said, ("user", text)]
    return [{"role": role, "content": content} for role, content in every]


def _render(tokenizer: PreTrainedTokenizerBase, chat: Chat, messages: list[dict[str, str]]) -> str:
    how = {**chat.args, "chat_template": chat.source, "tokenize": False, "add_generation_prompt": True}
    try:
        return str(tokenizer.apply_chat_template(messages, **how))
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(
            f"{chat.setting}: the chat template cannot be rendered with {chat.args_setting} = {dict(chat.args)}: "
            f"{' '.join(str(error).split())}; mend the template or what is passed to it"
        ) from None


def _source(
    tokenizer: PreTrainedTokenizerBase, path: str | None, setting: str, args: Mapping[str, Any], whose: str
) -> str:
    """The chat template in the file `path`, None for the tokenizer's own."""
    if path is None:
        if not tokenizer.chat_template:
            raise InputError(
                f"{whose}'s tokenizer has no chat template; set prompts.chat=false, or {setting} to a file with one"
            )
        return tokenizer.get_chat_template(tools=args.get("tools"))
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting} = {path}: cannot be read ({error}); give a file with a Jinja template") from None


TAKEN = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "conversation")
"""What the run itself passes to a chat template."""


def _check_args(chat: Chat) -> None:
    """Jinja passes over names that a template does not use, so a misspelt one would change nothing."""
    for name in chat.args:
        if name in TAKEN:
            raise InputError(f"{chat.args_setting}.{name}: the run itself sets it; take it out")
    known = sorted(_variables(chat) - {*TAKEN})
    for name in chat.args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"{chat.args_setting}.{name}: the chat template does not use it; {hint}"
                f"It uses {', '.join(known) or 'no such names'}"
            )


def _variables(chat: Chat) -> set[str]:
    """Names that the template reads from outside. `generation` is a tag of transformers that changes no text."""
    source = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", chat.source)
    try:
        return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source))
    except TemplateError as error:
        raise InputError(f"{chat.setting}: not a Jinja template ({error}); mend it") from None
