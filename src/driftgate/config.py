"""Every setting of a training run: its name, type, default and meaning; one source for recipes, overrides and docs.

The settings of the loss are in `loss_config.py`.
"""

import runpy
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from .horizon import share
from .loss_config import Factor, GateSettings, Objective, TermSettings
from .settings import NonNegativeFloat, Settings, Share

Dtype = Literal["float32", "bfloat16", "float64"]
Decay = Annotated[float, Field(ge=0, lt=1)]


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
    columns: dict[str, str] = Field(default={})
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


class Horizon(Settings):
    """How long responses may grow: a limit below `rollout.max_new_tokens`, which stays the upper bound."""

    kind: Literal["growing", "share", "controller"]
    """`growing`: start + increment * floor(step / every), steps from 0. `share`: rho * max_new_tokens. `controller`:
    up by `change` when at least `least_share` of the responses come within `near` tokens of the limit, down by it
    after `patience` steps without."""
    start: PositiveInt = 256
    """First limit (`growing`, `controller`), in tokens."""
    increment: PositiveInt = 256
    """`growing`: tokens added at a time."""
    every: PositiveInt = 10
    """`growing`: steps between additions."""
    rho: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`share`: of `max_new_tokens`."""
    near: PositiveInt = 100
    """`controller`: tokens from the limit that count as near."""
    least_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`controller`: share of near responses that raises the limit."""
    change: PositiveInt = 100
    """`controller`: tokens by which the limit moves."""
    patience: PositiveInt = 3
    """`controller`: steps with too few near responses before the limit falls."""


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
    """Go on even when every response of a step was cut at its limit (so that none shows how to stop)."""
    on_policy: Share = 1.0
    """Share of the responses that the student writes; the others are the prompt's reference solution (GKD's lambda,
    arXiv 2306.13649), drawn for each response."""
    horizon: Horizon | None = None
    """A limit on the responses' length that moves with the run; null stays at `max_new_tokens`."""
    teacher_prefix: Annotated[int, Field(ge=0)] = 0
    """Tokens at the head of each response that the teacher writes; they are context, not loss."""
    teacher_prefix_steps: PositiveInt | None = None
    """Steps over which the prefix shrinks linearly to nothing; null keeps it."""
    kl_budget: NonNegativeFloat = 0.0
    """Sample from p^(1-b) q^b, b per token as large as KL to the student's p stays within so many nats (TRB, arXiv
    2605.31159); 0 samples from the student."""
    kl_budget_steps: PositiveInt | None = None
    """Steps over which the budget falls linearly to 0; null keeps it."""

    @model_validator(mode="after")
    def _horizon_fits(self) -> "RolloutSettings":
        horizon = self.horizon
        if horizon is not None and horizon.kind != "share" and horizon.start > self.max_new_tokens:
            raise ValueError(
                f"horizon.start = {horizon.start} is above max_new_tokens = {self.max_new_tokens}; lower start"
            )
        if horizon is not None and horizon.kind == "controller" and horizon.near >= horizon.start:
            raise ValueError(
                f"horizon.near = {horizon.near} is not below horizon.start = {horizon.start}, so every response would "
                f"count as near; lower near"
            )
        return self

    @property
    def least_limit(self) -> int:
        """Tokens of the shortest limit that a response may have."""
        if self.horizon is None:
            return self.max_new_tokens
        return share(self.horizon.rho, self.max_new_tokens) if self.horizon.kind == "share" else self.horizon.start


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


class DiagnosticSettings(Settings):
    """What is measured beside the loss; the cheap part of it always is."""

    every: Annotated[int, Field(ge=0)] = 10
    """Steps between those whose updates also measure overlap and entropy gap between student and teacher and the
    gradient's norm without weights (a second forward and backward); 0 for never."""
    k: Annotated[int, Field(ge=2)] = 16
    """Most probable tokens of each side that overlap and divergence look at, also as signals of weights."""


class CheckpointSettings(Settings):
    every: PositiveInt = 10
    """Steps between checkpoints; one is always written at the end, and at once on Ctrl-C or SIGTERM."""
    keep: PositiveInt = 2
    """Checkpoints kept; older ones are deleted once a newer one is whole."""


def _run_file(path: str | None) -> str | None:
    """Run the user's Python file, so that what it defines is known when the rest is read."""
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError("there is no such file; give a Python file, relative to where the command runs")
    try:
        runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise ValueError(f"fails when it is run: {type(error).__name__}: {error}") from error
    return path


class TrainConfig(Settings):
    code: Annotated[str | None, AfterValidator(_run_file)] = None
    """A Python file that is run before the other settings are read: define signals of your own in it."""
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
    """What the main term, on the student's rollouts, asks of each token."""
    gate: GateSettings = GateSettings()
    """The main term's drift gate."""
    weights: dict[str, Factor] = Field(default={})
    """More factors of the main term's weight, by a name of your choice."""
    denominator: Literal["tokens", "kept"] = "tokens"
    """Of the main term: all tokens of the optimiser batch, or those with a weight above 0."""
    terms: dict[str, TermSettings] = Field(default={})
    """More terms of the loss, by a name of your choice."""
    drop_tokens: tuple[int, ...] = ()
    """Sampled token ids whose positions leave the loss (the special-token mask)."""
    log_drift: bool = True
    """Measure the drift also where no weight needs it (an ungated LSM run then spends a pass over the head on it)."""
    diagnostics: DiagnosticSettings = DiagnosticSettings()
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

    @model_validator(mode="after")
    def _names(self) -> "TrainConfig":
        if "main" in self.terms:
            raise ValueError("terms.main: `main` is the term of `objective`; give the other term another name")
        if "gate" in self.weights and self.gate.spans != "none":
            raise ValueError("weights.gate: `gate` is the factor of the group `gate`; give the other another name")
        return self

    @model_validator(mode="after")
    def _reuse(self) -> "TrainConfig":
        """A weight by drift is 1 throughout where the student never drifts."""
        one_update = self.passes == 1 and self.updates_per_step == 1
        if one_update and self.gate.spans != "none":
            raise ValueError(
                f"gate.spans = {self.gate.spans} with passes = 1 and one minibatch per rollout: the student never "
                f"drifts, so every gate is 1; set passes=2, a smaller minibatch, or gate.spans=none"
            )
        for place, factor in self.factors():
            if one_update and (factor.of_drift or {"age", "freshness"} & set(factor.signals)):
                raise ValueError(
                    f"{place} with passes = 1 and one minibatch per rollout: every rollout is learned from once, by "
                    f"the student that wrote it; set passes=2 or a smaller minibatch, or take the weight out"
                )
        return self

    @model_validator(mode="after")
    def _rollout_fits(self) -> "TrainConfig":
        if self.rollout.teacher_prefix and self.rollout.kl_budget:
            raise ValueError("rollout.teacher_prefix and rollout.kl_budget both hand the teacher the pen; set one to 0")
        least = self.rollout.least_limit
        if self.rollout.teacher_prefix >= least:
            raise ValueError(
                f"rollout.teacher_prefix = {self.rollout.teacher_prefix} leaves the student nothing of a response of "
                f"{least} tokens (max_new_tokens, or where the horizon begins); lower it"
            )
        for name, term in self.all_terms.items():
            if self.rollout.on_policy < 1 and term.stream == "student" and not term.off_policy:
                setting = "objective" if name == "main" else f"terms.{name}.objective"
                raise ValueError(
                    f"rollout.on_policy = {self.rollout.on_policy} with {setting}.kind = {term.objective.kind}: a "
                    f"policy gradient needs the student's own samples; set on_policy=1, or use divergence, lsm or nll"
                )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimiser updates of one pass over a rollout batch."""
        responses = self.prompts.per_step * self.rollout.samples
        return -(-responses // (self.minibatch or responses))

    @property
    def all_terms(self) -> dict[str, TermSettings]:
        """The loss, whole: the main term, then the others."""
        gate = {"gate": self.gate.factor} if self.gate.spans != "none" else {}
        main = TermSettings(objective=self.objective, weights=gate | self.weights, denominator=self.denominator)
        return {"main": main, **self.terms}

    def terms_at(self, step: int) -> dict[str, TermSettings]:
        """The terms of the loss at a step, counted from 0; a term whose coefficient is 0 then is left out."""
        return {name: term for name, term in self.all_terms.items() if name == "main" or term.coef_at(step) > 0}

    def factors(self) -> list[tuple[str, Factor]]:
        """(setting, factor) of every configured weight but the gate."""
        main = [(f"weights.{name}", factor) for name, factor in self.weights.items()]
        others = [(f"terms.{t}.weights.{n}", f) for t, term in self.terms.items() for n, f in term.weights.items()]
        return main + others

    @property
    def reads(self) -> set[str]:
        """The streams of the student's rollouts that any term or metric reads."""
        wanted = {name for term in self.all_terms.values() if term.stream == "student" for name in term.reads}
        return wanted | ({"logp", "behaviour_logp"} if self.log_drift else set())
