"""The base class of every group of settings, and the comparison of two groups."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Frozen; an unknown name is an error. The docstring under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def named(value: Any) -> Any:
    """A bare name as {kind: name}, for a group of settings that comes in kinds."""
    return {"kind": value} if isinstance(value, str) else value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, for all nested groups. An empty group counts as a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, or that only one of both has. Both are in the form of `flat`."""
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key, ...) != other.get(key, ...)]
