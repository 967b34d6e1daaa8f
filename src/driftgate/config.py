"""Every setting of a training run: its name, type, default and meaning; one source for recipes, overrides and docs."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Dtype = Literal["float32", "bfloat16", "float64"]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Frozen, strict about names; the docstring under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSettings(Settings):
    path: str
    """A folder or hub name of a Hugging Face causal LM; `sandbox/student`, `sandbox/teacher` for the embedded pair;
    `smol/SmolLM2-135M-Instruct` for the weights that the `smol` extra carries."""
    dtype: Dtype = "float32"
    """Type of the weights. At a small learning rate keep a student's float32: bfloat16 weights swallow its updates."""
    compute: Literal["bfloat16"] | None = None
    """Type that the body's matrix products run in (autocast); null runs them in `dtype`."""


class StudentSettings(ModelSettings):
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class TeacherSettings(ModelSettings):
    context: str | None = None
    """Prompt that the teacher sees instead of the student's, with {problem}, {solution} and {answer} filled in from the
    prompt file: self-distillation from privileged context. Null shows it the student's prompt."""


class PromptSettings(Settings):
    path: str
    """A JSONL file with `problem` (and optionally `id`, `answer`, `solution`) on each line; `sandbox` for the embedded
    tasks; `hub:NAME[/CONFIG][@SPLIT]` for a data set on the Hugging Face hub (extra `datasets`)."""
    columns: dict[str, str] = {}
    """Renames columns, ours to theirs: {problem: question}."""
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


class RolloutSettings(Settings):
    samples: PositiveInt = 8
    """Responses per prompt."""
    max_new_tokens: PositiveInt = 16384
    """Longest response; what reaches it is marked truncated and still learned from."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. All log-probabilities, the teacher's too, are taken at it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus of the sampler. Log-probabilities are of the whole distribution."""
    batch: PositiveInt | None = None
    """Responses decoded at once; null decodes a whole rollout batch."""
    stop_ids: tuple[int, ...] | None = None
    """Token ids that end a response; null takes them from the student's generation config and tokenizer."""
    allow_truncated: bool = False
    """Go on even when every response of a step was cut at `max_new_tokens` (so that none shows how to stop)."""


class SampledTokenObjective(Settings):
    kind: Literal["sampled_token"]
    advantage: Literal["frozen", "recomputed"] = "frozen"
    """Whose log-probability the advantage subtracts: the student that wrote the rollout, or the current one."""
    clip: PositiveFloat = 0.2
    """PPO clip of the probability ratio."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound on the loss of a token with negative advantage, in units of the advantage."""
    drop_tokens: tuple[int, ...] = ()
    """Sampled token ids whose positions leave the loss (the special-token mask)."""


class LsmObjective(Settings):
    kind: Literal["lsm"]
    k: Annotated[int, Field(ge=2)] = 32
    """Teacher tokens in the support of a position."""
    drop_tokens: tuple[int, ...] = ()
    """Sampled token ids whose positions leave the loss (the special-token mask)."""


Objective = Annotated[SampledTokenObjective | LsmObjective, Field(discriminator="kind")]


class GateSettings(Settings):
    spans: Literal["none", "block", "newline"] = "none"
    """What a gate averages the drift over: `block` of `size` tokens, `newline` for lines of text, `none` for no gate.
    `block64` is short for `block` with size 64."""
    size: PositiveInt = 64
    """Tokens of a block (and of the blocks that a response without any newline falls back to)."""
    min_tokens: PositiveInt = 16
    """Newline spans: a shorter one joins the next."""
    max_tokens: PositiveInt = 128
    """Newline spans: a longer one is cut."""
    tau: PositiveFloat = 1.0
    """Gate = exp(-tau * drift of the span in nats)."""
    statistic: Literal["abs_mean", "mean_abs", "rms"] = "abs_mean"
    """Drift of a span from its tokens' shifts; the paper's is the absolute value of the mean."""
    scope: Literal["minibatch", "sequence"] = "minibatch"
    """Gates have mean 1 over the whole optimiser batch, or inside each sequence."""

    @model_validator(mode="before")
    @classmethod
    def _block_shorthand(cls, values: Any) -> Any:
        match = re.fullmatch(r"block(\d+)", str(values.get("spans"))) if isinstance(values, dict) else None
        return {**values, "spans": "block", "size": int(match[1])} if match else values

    @model_validator(mode="after")
    def _bounds(self) -> "GateSettings":
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}; raise max_tokens")
        return self


class OptimizerSettings(Settings):
    """AdamW."""

    lr: PositiveFloat = 2e-6
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimiser updates of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to zero at the run's last update."""
    clip_norm: PositiveFloat = 1.0
    """Largest gradient norm; a larger gradient is scaled down to it."""


class CheckpointSettings(Settings):
    every: PositiveInt = 10
    """Steps between checkpoints; one is always written at the end, and at once on Ctrl-C or SIGTERM."""
    keep: PositiveInt = 2
    """Checkpoints kept; older ones are deleted once a newer one is whole."""


class TrainConfig(Settings):
    seed: int = 0
    """Keys every random draw: prompt order and sampling."""
    steps: PositiveInt = 200
    """Rollout batches."""
    passes: PositiveInt = 2
    """Optimiser passes over each rollout batch."""
    minibatch: PositiveInt | None = None
    """Responses of one optimiser update; null takes the whole rollout batch."""
    microbatch_tokens: PositiveInt = 16384
    """Tokens, prompt and padding included, of one forward; changes memory and time, not results."""
    student: StudentSettings
    teacher: TeacherSettings
    prompts: PromptSettings
    rollout: RolloutSettings = RolloutSettings()
    objective: Objective
    gate: GateSettings = GateSettings()
    log_drift: bool = True
    """Measure the drift also where no gate needs it (an ungated LSM run then spends a pass over the head on it)."""
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: PositiveInt | None = None
    """CPU threads; null takes torch's choice. A resumed run uses what it began with, as sums depend on it."""

    @field_validator("prompts")
    @classmethod
    def _system_needs_chat(cls, prompts: PromptSettings) -> PromptSettings:
        if prompts.system is not None and not prompts.chat:
            raise ValueError("prompts.system is set but prompts.chat is false; set prompts.chat=true")
        return prompts

    @property
    def needs_behaviour(self) -> bool:
        """Whether anything reads the log-probabilities of the student that wrote the rollout."""
        return self.gate.spans != "none" or self.log_drift or self.objective.kind == "sampled_token"
