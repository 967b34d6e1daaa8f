"""How a report prints numbers, names and paragraphs; formatted here once, so that both pages hold the same."""

import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from .verdict import points as in_points

NONE = "–"
"""Stands for a number that is not there."""
LINE = 120
"""Characters of a line of prose in Markdown."""


def percent(score: Mapping[str, float] | None) -> str:
    """A score with its 95 % interval, in percent."""
    if not score or not known(score["mean"]):
        return NONE
    ends = ends_of(score["low"], score["high"])
    return bare_points(score["mean"]) + (f" {ends}" if ends != NONE else "")


def difference(row: Mapping[str, Any]) -> str:
    """A comparison's difference with its 95 % interval, in points."""
    ends = ends_of(row["low"], row["high"])
    return points(row["difference"]) + (f" {ends}" if known(row["difference"]) and ends != NONE else "")


def interval_90(row: Mapping[str, Any]) -> str:
    """The interval that goes with the test of equivalence, in points."""
    return ends_of(row["low_90"], row["high_90"])


def ends_of(low: float | None, high: float | None) -> str:
    return f"[{bare_points(low)}, {bare_points(high)}]" if known(low) and known(high) else NONE


def points(share: float | None) -> str:
    """With its sign."""
    return in_points(share) if share is not None and known(share) else NONE


def bare_points(share: float | None) -> str:
    return in_points(share, "") if share is not None and known(share) else NONE


def p(value: float | None) -> str:
    """A probability; never rounded to 0."""
    if not known(value):
        return NONE
    assert value is not None
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def number(value: float | None) -> str:
    return f"{value:.1f}" if known(value) else NONE  # type: ignore[str-format]


def count(value: float | None) -> str:
    return f"{value:,.0f}" if known(value) else NONE  # type: ignore[str-format]


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def markdown(text: object) -> str:
    """Text that neither ends a table's cell nor is taken for mark-up."""
    return re.sub(r"([\\`*<>|~]|\b_(?!\w)|(?<!\w)_\b|(?<=\])\()", r"\\\1", " ".join(str(text).split()))


def wrapped(text: str, indent: int = 0) -> str:
    """A paragraph in lines of at most 120 characters, all but the first indented, as an item of a list needs.

    No line begins with what Markdown takes for the mark of a list, a quotation or a heading.
    """
    joined = re.sub(r" (?=(?:[-+*#>]|\d+[.)])(?: |$))", "\0", " ".join(text.split()))
    lines = textwrap.wrap(joined, LINE, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def duration(seconds: float | None) -> str:
    """1 h 5 min, 3.4 min, 12 s."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
