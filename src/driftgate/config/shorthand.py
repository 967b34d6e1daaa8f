"""Bare names for groups of settings that come in kinds."""

import re
from typing import Any

from ..settings import named


def by_kind(value: Any) -> Any:
    """A bare name as {kind: name}; block64 as {kind: block, size: 64}."""
    match = re.fullmatch(r"block(\d+)", value) if isinstance(value, str) else None
    return {"kind": "block", "size": int(match[1])} if match else named(value)
