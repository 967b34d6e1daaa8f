"""The prompts of a run, as settings."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from ..settings import Settings
from .sources import Columns, Mix, SourceSettings
from .verify import MathSettings, VerifySettings


def shows_problem(template: str) -> str:
    """The same. Raises ValueError for a template that shows nobody the problem."""
    if "{problem" not in template:
        raise ValueError("has no {problem}, so all problems would look alike; write {problem} where its text belongs")
    return template


Template = Annotated[str, AfterValidator(shows_problem)]
"""Text with {problem}."""


class PromptSettings(Settings):
    path: str | None = None
    """A file of problems, by its ending JSONL, JSON, parquet, CSV or TSV; `sandbox` for the embedded tasks;
    `hub:NAME[/CONFIG][@SPLIT]` for a data set on the Hugging Face hub (extra `datasets`). See docs/data.md."""
    mix: Mix = Field(default={})
    """Several sources in place of `path`, by a name of your choice; each with a weight."""
    columns: Columns = Field(default={})
    """Renames columns, ours to theirs: {problem: question}; usual names are found by themselves. With several teachers
    `teacher` is the column that names a problem's teacher: {teacher: domain}."""
    limit: PositiveInt | None = None
    """Only the first so many problems of the file."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the problems that is never trained on; it is written to held_out.jsonl in the run folder."""
    too_long: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of a prompt above `max_tokens`, or without room for its response: it stops the run before it starts,
    or it is left out."""
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
    """Longest allowed prompt, in tokens; see `too_long`."""

    @model_validator(mode="after")
    def _one_way(self) -> "PromptSettings":
        if self.path is None and not self.mix:
            raise ValueError("no problems are named; set prompts.path=FILE, or prompts.mix={NAME: {path: FILE}, ...}")
        if self.path is not None and self.mix:
            raise ValueError(f"prompts.path = {self.path} and prompts.mix both name problems; set prompts.path=null")
        for name in ("columns", "limit"):
            if self.mix and (value := getattr(self, name)):
                raise ValueError(f"prompts.{name} = {value} with prompts.mix: set it in each source, prompts.mix.NAME")
        return self

    @property
    def sources(self) -> dict[str, SourceSettings]:
        """The sources by name, in order of the names; one without a mixture has the name ""."""
        if self.path is not None:
            return {"": SourceSettings(path=self.path, columns=self.columns, limit=self.limit)}
        return {name: self.mix[name] for name in sorted(self.mix)}

    def setting_of(self, source: str | None) -> str:
        """The group of settings that names a source."""
        return f"prompts.mix.{source}" if source else "prompts"

    def verify_of(self, source: str | None) -> VerifySettings:
        """What decides whether a response to a problem of a source is right."""
        own = self.mix[source].verify if source else None
        return own or self.verify

    @property
    def place(self) -> str:
        """Where the problems come from, for messages."""
        if self.path is not None:
            return f"prompts.path = {self.path}"
        return f"prompts.mix = {', '.join(sorted(self.mix))}"
