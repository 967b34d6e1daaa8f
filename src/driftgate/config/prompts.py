"""The prompts of a run, as settings."""

import difflib
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt

from ..settings import Settings
from .verify import MathSettings, VerifySettings

COLUMNS = ("id", "problem", "answer", "solution", "messages", "teacher")
"""What is read of a row."""


def _known_columns(columns: dict[str, str]) -> dict[str, str]:
    for name, theirs in columns.items():
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            if theirs in COLUMNS:
                hint = f"; our name comes first: write {{{theirs}: {name}}}."
            raise ValueError(f"{name} is not read of a row{hint or '.'} There are {', '.join(COLUMNS)}")
    return columns


def shows_problem(template: str) -> str:
    """The same. Raises ValueError for a template that shows nobody the problem."""
    if "{problem" not in template:
        raise ValueError("has no {problem}, so all problems would look alike; write {problem} where its text belongs")
    return template


Template = Annotated[str, AfterValidator(shows_problem)]
"""Text with {problem}."""


class PromptSettings(Settings):
    path: str
    """A JSONL file with `problem` (and optionally `id`, `answer`, `solution`) on each line, or a conversation as
    `messages`; `sandbox` for the embedded tasks; `hub:NAME[/CONFIG][@SPLIT]` for a data set on the Hugging Face hub
    (extra `datasets`)."""
    columns: Annotated[dict[str, str], AfterValidator(_known_columns)] = Field(default={})
    """Renames columns, ours to theirs: {problem: question}. With several teachers `teacher` is the column that names a
    problem's teacher: {teacher: domain}."""
    template: Template = "{problem}"
    """What the student is shown, with {problem} filled in."""
    chat: bool = False
    """Wrap the prompt as a user's message in the tokenizer's chat template."""
    system: str | None = None
    """System message; only with `chat`."""
    chat_template: str | None = None
    """A file with a Jinja chat template; null for the tokenizer's own. Only with `chat`. See docs/templates.md."""
    template_args: dict[str, Any] = Field(default={})
    """Passed to the chat template, such as {enable_thinking: false}; a name that it does not use is an error. Only with
    `chat`."""
    verify: VerifySettings = MathSettings()
    """What decides whether a response is right, see docs/verifiers.md."""
    per_step: PositiveInt = 4
    """Prompts of one rollout batch."""
    max_tokens: PositiveInt = 2048
    """Longest allowed prompt, in tokens; a longer one stops the run before it starts."""
