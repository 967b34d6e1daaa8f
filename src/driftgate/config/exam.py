"""How a model is evaluated: the one group of settings that `driftgate eval`, a study and the demo share."""

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from ..settings import Settings
from .engine import EngineSettings, HFSettings
from .prompts import PromptSettings, Template
from .run import TrainConfig
from .verify import VerifySettings


class ExamSettings(Settings):
    """How models are evaluated; the defaults are those of arXiv 2606.24084."""

    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names or files, see docs/evaluation.md."""
    samples: PositiveInt = 8
    """Responses to each problem."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; near 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus of the sampler."""
    max_new_tokens: PositiveInt | None = None
    """Longest response; null: 16,384, or what the context leaves."""
    limit: PositiveInt | None = None
    """Only the first so many problems of each benchmark."""
    seed: int = 0
    """Keys the draws; the same for all models."""
    batch: PositiveInt | None = None
    """Responses decoded at once; null: as many as memory has room for, at most 256. In bfloat16 the number changes a
    response now and then, by rounding, so fix it where runs share a GPU or take several kinds."""
    template: Template | None = None
    """What the model is shown: text with {problem}; null: as it was trained, else the problem alone."""
    chat: bool | None = None
    """Wrap problems in the tokenizer's chat template; null: as it was trained, else no."""
    system: str | None = None
    """System message; null: as it was trained, else none."""
    chat_template: str | None = None
    """A file with a Jinja chat template; null: as it was trained, else the tokenizer's own. See docs/templates.md."""
    template_args: dict[str, Any] | None = None
    """Passed to the chat template, such as {enable_thinking: false}; null: as it was trained, else nothing."""
    stop_ids: tuple[int, ...] | None = None
    """Token ids that end a response; null: as it was trained, else the model's own."""
    verify: VerifySettings | None = None
    """What decides whether an answer is right; null: as it was trained, else `math`."""
    engine: EngineSettings = HFSettings()
    """What writes the samples, as `rollout.engine`."""

    def described(self) -> dict[str, Any]:
        """All that samples depend on, as JSON holds it: which servers write them is left out, but not that servers
        do; and the verifier, the chat template and its arguments only where they are not what they are by default."""
        served = {"engine": {"kind": self.engine.kind}} if self.engine.kind != "hf" else {}
        own = {"verify": self.verify.model_dump(mode="json")} if self.verify and self.verify.kind != "math" else {}
        chat = {name: value for name in ("chat_template", "template_args") if (value := getattr(self, name))}
        known = self.model_dump(mode="json", exclude={"engine", "verify", "chat_template", "template_args"})
        return known | chat | served | own

    def as_trained(self, config: TrainConfig) -> "ExamSettings":
        """The same with what is null filled in from the run that trained the model."""
        return self.shown_as(config.prompts, config.rollout.stop_ids)

    def shown_as(self, prompts: PromptSettings, stop_ids: tuple[int, ...] | None) -> "ExamSettings":
        """The same with what is null filled in from how a model was trained."""
        trained: dict[str, Any] = {"template": prompts.template, "chat": prompts.chat, "verify": prompts.verify}
        trained["stop_ids"] = stop_ids
        if self.chat or (self.chat is None and prompts.chat):
            trained |= {"system": prompts.system, "chat_template": prompts.chat_template}
            trained["template_args"] = prompts.template_args or None
        return self.model_copy(update={name: v for name, v in trained.items() if getattr(self, name) is None})
