"""The models of a run, as settings."""

from typing import Literal

from ..settings import Settings

Dtype = Literal["float32", "bfloat16", "float64"]


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
