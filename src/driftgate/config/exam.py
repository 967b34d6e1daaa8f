"""How a model is evaluated: the one group of settings that `driftgate eval`, a study and the demo share."""

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from ..settings import Settings
from .engine import EngineSettings, HFSettings
from .prompts import Template
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
    stop_ids: tuple[int, ...] | None = None
    """Token ids that end a response; null: as it was trained, else the model's own."""

    verify: VerifySettings | None = None
    """What decides whether an answer is right; null: as it was trained, else `math`."""
    engine: EngineSettings = HFSettings()
    """What writes the samples, as `rollout.engine`."""

    def described(self) -> dict[str, Any]:
        """All that samples depend on, as JSON holds it: which servers write them is left out, but not that servers
        do; and the verifier only where it is not the one for mathematics."""
        served = {"engine": {"kind": self.engine.kind}} if self.engine.kind != "hf" else {}
        own = {"verify": self.verify.model_dump(mode="json")} if self.verify and self.verify.kind != "math" else {}
        return self.model_dump(mode="json", exclude={"engine", "verify"}) | served | own

    def as_trained(self, config: TrainConfig) -> "ExamSettings":
        """The same with what is null filled in from the run that trained the model."""
        shown = config.prompts
        trained = {"template": shown.template, "chat": shown.chat, "stop_ids": config.rollout.stop_ids}
        trained["verify"] = shown.verify
        known = {name: value for name, value in trained.items() if getattr(self, name) is None}
        chat = known.get("chat", self.chat)
        system = shown.system if chat and self.system is None else self.system
        return self.model_copy(update=known | {"system": system})
