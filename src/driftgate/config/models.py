"""The models of a run, as settings."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..settings import Settings
from .prompts import Template

STUDENT = "student"
"""`teacher.path` of a teacher that is the student itself."""

OWN = "own"
"""`teacher.chat_template` of a teacher whose prompts are in its own tokenizer's template."""

Dtype = Literal["float32", "bfloat16", "float64"]


class ModelSettings(Settings):
    path: str
    """A folder or hub name of a Hugging Face causal LM; `sandbox/student`, `sandbox/teacher` for the embedded pair;
    `smol/SmolLM2-135M-Instruct` for the weights that the `smol` extra carries."""
    dtype: Dtype = "float32"
    """Type of the weights. At a small learning rate keep a student's float32: bfloat16 weights swallow its updates."""
    compute: Literal["bfloat16"] | None = None
    """Type that the body's matrix products run in (autocast); null runs them in `dtype`."""
    quantise: Literal["4bit"] | None = None
    """Hold the linear layers' weights in 4 bits (NF4; extra `quantise` and a GPU); products run in `dtype`. Of the
    student only with `lora`."""

    @model_validator(mode="after")
    def _quantised_products(self) -> Self:
        if self.quantise and self.compute:
            raise ValueError(
                f"quantise = {self.quantise} with compute = {self.compute}: products with 4-bit weights run in dtype; "
                f"set dtype=bfloat16 and compute=null"
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685), by peft. The base stays frozen. See docs/lora.md."""

    rank: PositiveInt
    """Rank of an adapter: numbers between its two factors."""
    alpha: PositiveFloat | None = None
    """An adapter's product is multiplied by alpha / rank; null takes 2 * rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter, such as [q_proj, v_proj]; `all-linear` for all of them but the
    output embedding."""


class StudentSettings(ModelSettings):
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: LoraSettings | None = None
    """Train adapters instead of the weights (extra `lora`); null trains the weights."""

    @model_validator(mode="after")
    def _quantised_is_frozen(self) -> Self:
        if self.quantise and self.lora is None:
            raise ValueError(
                f"quantise = {self.quantise} without lora: 4-bit weights cannot be trained; set student.lora.rank=16"
            )
        return self


class FollowSettings(Settings):
    """How a teacher that is the student itself follows it."""

    every: PositiveInt | None = None
    """Copy the student after every so many steps; give this or `ema`."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """After every step: teacher = ema * teacher + (1 - ema) * student. With LoRA, of each adapter's two factors."""

    @model_validator(mode="after")
    def _one_way(self) -> "FollowSettings":
        if (self.every is None) == (self.ema is None):
            raise ValueError("give every or ema, one of the two, such as teacher.follow={ema: 0.99}")
        return self


class TeacherSettings(ModelSettings):
    kind: Literal["local", "server"] = "local"
    """`local`: the model is loaded by the run. `server`: it runs on servers of vLLM at `urls`, see docs/teachers.md."""
    urls: tuple[str, ...] = ()
    """Of kind `server`: addresses of servers of one model, such as [http://10.0.0.5:8000], that share the work."""
    concurrency: PositiveInt = 8
    """Of kind `server`: sequences that a server scores at once. Answers with many log-probabilities are large."""
    timeout: PositiveFloat = 1800.0
    """Of kind `server`: seconds that one answer may take before its server counts as dead."""
    patience: PositiveFloat = 600.0
    """Of kind `server`: seconds that a run waits when no server is left; then it stops with a checkpoint."""
    path: str
    """As `student.path`. Of kind `server`, the model whose tokenizer the served one has; its weights are not loaded.
    `student` is the initial student: with LoRA the student's own base with the adapter off, no second copy, of the
    student's `dtype` and `compute`; else a frozen copy. A folder of that name is `./student`."""
    follow: FollowSettings | None = None
    """The teacher follows the student; only with `path: student`. Null keeps the initial student."""
    context: Template | None = None
    """Prompt that the teacher sees instead of the student's, with {problem}, {solution} and {answer} filled in from the
    prompt file: self-distillation from privileged context. Null shows it the student's prompt."""
    chat_template: str | None = None
    """Chat template of the teacher's prompts: a file, or `own` for its tokenizer's; null for the student's. Only with
    `prompts.chat`. See docs/templates.md."""
    template_args: dict[str, Any] | None = None
    """Passed to its chat template in place of the student's, such as {enable_thinking: true}; null for the student's.
    Only with `prompts.chat`."""
    system: str | None = None
    """System message that the teacher sees; null for the student's, an empty text for none. Only with
    `prompts.chat`."""
    cache: str | None = None
    """A folder that keeps the teacher's scores, to be read where the same responses are scored again: by a resumed run,
    or by runs that share rollouts. Keyed by content; several runs may share it. See docs/teachers.md."""

    @property
    def served(self) -> bool:
        """Whether the model runs on servers."""
        return self.kind == "server"

    @model_validator(mode="after")
    def _servers(self) -> Self:
        if self.served != bool(self.urls):
            raise ValueError(
                f"kind = {self.kind} with urls = {list(self.urls)}: servers need addresses, and a local model has "
                f"none; set kind=server and urls=[http://127.0.0.1:8000], or neither"
            )
        for name in ("quantise", "compute", "follow"):
            if self.served and (value := getattr(self, name)) is not None:
                raise ValueError(f"{name} = {value} with kind = server, which holds the model itself; set {name}=null")
        return self
