"""Settings of a run, from recipes and overrides. Each group is in the file of its name."""

from .factor import Factor
from .gate import GateSettings
from .models import ModelSettings, StudentSettings
from .prompts import PromptSettings
from .run import TrainConfig
from .terms import TermSettings

__all__ = [
    "Factor",
    "GateSettings",
    "ModelSettings",
    "PromptSettings",
    "StudentSettings",
    "TermSettings",
    "TrainConfig",
]
