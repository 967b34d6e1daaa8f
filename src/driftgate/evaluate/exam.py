"""How a model is examined: one group of settings for `driftgate eval`, studies and the demo."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt

from ..data.benchmarks import benchmark_name
from ..settings import Settings


def _different(benchmarks: tuple[str, ...]) -> tuple[str, ...]:
    if not benchmarks:
        raise ValueError("name at least one benchmark or .jsonl file")
    if len({benchmark_name(name) for name in benchmarks}) < len(benchmarks):
        raise ValueError("names one twice")
    return benchmarks


class ExamSettings(Settings):
    """How a model is examined; the defaults are those of arXiv 2606.24084."""

    benchmarks: Annotated[tuple[str, ...], AfterValidator(_different)]
    """Names or .jsonl files, see docs/evaluation.md."""
    samples: PositiveInt = 8
    """Answers to each problem."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; near 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus of the sampler."""
    max_new_tokens: PositiveInt | None = None
    """null: 16,384, or what the context leaves."""
    limit: PositiveInt | None = None
    """Only the first so many problems of each benchmark."""
    seed: int = 0
    """Of the answers' draws; the same for all models."""
    batch: PositiveInt | None = None
    """Answers decoded at once; null: as many as memory has room for. In bfloat16 the number changes an answer now and
    then, by rounding, so fix it where runs share a GPU or take several kinds."""
    template: str | None = None
    """What the model is shown: text with {problem}; null: as it was trained, else the problem alone."""
    chat: bool | None = None
    """Wrap the problem in the tokenizer's chat template; null: as the model was trained, else not."""
    system: str | None = None
    """System message, only with `chat`; null: as the model was trained, else none."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end an answer; null: as the model was trained, else the model's own."""

    def as_trained(self, prompts: Mapping[str, Any], stop_ids: Sequence[int] | None) -> "ExamSettings":
        """For a model that was trained with these settings of `prompts` and `rollout.stop_ids`: they fill in what is
        left open here."""
        chat = bool(prompts.get("chat")) if self.chat is None else self.chat
        system = prompts.get("system") if self.system is None and chat else self.system
        template = prompts.get("template", "{problem}") if self.template is None else self.template
        stops = tuple(self.stop_ids or stop_ids or ()) or None
        return self.model_copy(update={"template": template, "chat": chat, "system": system, "stop_ids": stops})
