"""Optimiser, diagnostics and checkpoints, as settings."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ..settings import NonNegativeFloat, Settings

Decay = Annotated[float, Field(ge=0, lt=1)]


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
