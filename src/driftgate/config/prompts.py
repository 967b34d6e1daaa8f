"""The prompts of a run, as settings."""

from pydantic import Field, PositiveInt

from ..settings import Settings


class PromptSettings(Settings):
    path: str
    """A JSONL file with `problem` (and optionally `id`, `answer`, `solution`) on each line; `sandbox` for the embedded
    tasks; `hub:NAME[/CONFIG][@SPLIT]` for a data set on the Hugging Face hub (extra `datasets`)."""
    columns: dict[str, str] = Field(default={})
    """Renames columns, ours to theirs: {problem: question}. With several teachers `teacher` is the column that names a
    problem's teacher: {teacher: domain}."""
    template: str = "{problem}"
    """What the student is shown, with {problem} filled in."""
    chat: bool = False
    """Wrap the prompt as a user's message in the tokenizer's chat template."""
    system: str | None = None
    """System message; only with `chat`."""
    per_step: PositiveInt = 4
    """Prompts of one rollout batch."""
    max_tokens: PositiveInt = 2048
    """Longest allowed prompt, in tokens; a longer one stops the run before it starts."""
