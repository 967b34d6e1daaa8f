"""Bare names for groups of settings that come in kinds."""

import re
from typing import Any


def by_kind(value: Any) -> Any:
    """A bare name as {kind: name}; block64 as {kind: block, size: 64}."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"block(\d+)", value)
    return {"kind": "block", "size": int(match[1])} if match else {"kind": value}
