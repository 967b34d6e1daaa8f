"""What the plots of a study share: colours, sizes, names, files.

Each plot is a function from the study's summary to a figure, or None where there is nothing to draw. Many arms stay
readable because they stand below one another or in panels of their own; colour tells passes apart, never arms, and
differs in lightness, so that it also reads without hue.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .plots import STYLE

BLUE, GREY, SHADE = "#0072B2", "#777777", "#E8EDF2"
PASSES = ("#081D58", "#1D91C0", "#7FCDBB", "#B8A000", "#F0C000")
"""Of passes 1, 2, ...; from dark to light. More passes take shades between."""
LOOK: Any = {**STYLE, "text.parse_math": False, "legend.fontsize": 8.5}
WIDTH = 10.0
"""Inches of every figure."""

Row = Mapping[str, Any]


def base_of(summary: Mapping[str, Any]) -> str | None:
    """The arm that most comparisons are with."""
    against = [row["against"] for row in summary["comparisons"]]
    return max(dict.fromkeys(against), key=against.count) if against else None


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element to stand inside a page."""
    text = io.StringIO()
    with plt.rc_context(LOOK):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save_png(figure: Figure, path: Path) -> None:
    """The figure at 150 dots an inch. The layout stays as it is found here."""
    with plt.rc_context(LOOK):
        figure.savefig(path, dpi=150, facecolor="white")
    figure.set_layout_engine("none")


def shortened(name: str) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= 30 else f"{name[:29]}…"
