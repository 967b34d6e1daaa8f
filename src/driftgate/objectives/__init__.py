"""Objectives: the loss that a term of the training loss computes for each token.

Each file of this folder holds one objective, or a part of one. Importing the folder finds them all; there is no list to
edit.
"""

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
