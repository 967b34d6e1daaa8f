"""What every group of settings is built on, and how two are told apart."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Frozen, strict about names; the docstring under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, nested groups laid open; an empty group is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names, as of `flat`, whose values are not the same in both, or that only one has."""
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key, ...) != other.get(key, ...)]
