"""Objectives: what a term of the loss asks of each token. Every file of this folder is one; none is listed anywhere."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from .objective import Objective, Outputs

for _, name, _ in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{name}")

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Annotated[Union[tuple(Objective.__subclasses__())], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["AnyObjective", "Objective", "Outputs"]
