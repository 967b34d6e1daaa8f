"""Forest plot of a study: each arm's difference to its base, with its intervals and seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from .study_style import BLUE, GREY, LOOK, SHADE, WIDTH, Row, shortened

HOLM_LEVEL = 0.05


def effects(summary: Mapping[str, Any]) -> Figure | None:
    """Forest plot: each comparison's difference in points with its 95 and 90 % intervals, a panel for each measure."""
    rows = summary["comparisons"]
    if not rows:
        return None
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    pairs = list(dict.fromkeys((row["arm"], row["against"]) for row in rows))
    with plt.rc_context(LOOK):
        figure, panels = plt.subplots(
            1, len(measures), sharey=True, squeeze=False, figsize=(WIDTH, 1.5 + 0.42 * len(pairs)), layout="constrained"
        )
        for axes, measure in zip(panels[0], measures):
            _forest(axes, [row for row in rows if row["measure"] == measure], pairs)
            axes.set_title(measure, loc="left", fontsize=10, fontweight="bold")
        _name_pairs(panels[0], pairs)
        _effects_legend(figure, rows)
        return figure


def _forest(axes: Axes, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> None:
    """Differences of one measure, in points; y is the place of a row's pair."""
    for row in rows:
        y = pairs.index((row["arm"], row["against"]))
        margin = 100 * row["margin"]
        axes.add_patch(Rectangle((-margin, y - 0.5), 2 * margin, 1, color=SHADE, linewidth=0, zorder=0))
        if row["detectable"] is not None:
            ends = [-100 * row["detectable"], 100 * row["detectable"]]
            axes.plot(ends, [y, y], "|", color=GREY, markersize=11, zorder=1)
        seeds = [100 * value for value in row["per_seed"]]
        axes.plot(seeds, np.full(len(seeds), y + 0.25), "o", color=BLUE, alpha=0.4, markersize=3, linewidth=0)
        axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=BLUE, linewidth=1.2, solid_capstyle="butt")
        if row["low_90"] is not None:
            axes.plot(
                [100 * row["low_90"], 100 * row["high_90"]],
                [y, y],
                color=BLUE,
                linewidth=3.6,
                alpha=0.55,
                solid_capstyle="butt",
            )
        axes.plot(
            100 * row["difference"],
            y,
            "s",
            color=BLUE,
            markerfacecolor=BLUE if _passes_holm(row) else "white",
            markersize=7,
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.margins(x=0.06)


def _name_pairs(panels: Sequence[Axes], pairs: Sequence[tuple[str, str]]) -> None:
    one_base = len({against for _, against in pairs}) == 1
    names = [shortened(arm) if one_base else f"{shortened(arm)}\nminus {shortened(against)}" for arm, against in pairs]
    panels[0].set_yticks(range(len(pairs)), names, fontsize=9.5 if one_base else 8.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"difference to {shortened(pairs[0][1])}, points" if one_base else "difference, points", fontsize=9
        )


def _effects_legend(figure: Figure, rows: Sequence[Row]) -> None:
    """Names what is drawn."""
    marks: list[Any] = [Line2D([], [], marker="s", color=BLUE, markerfacecolor="white", label="95 % interval")]
    if any(map(_passes_holm, rows)):
        marks.append(Line2D([], [], marker="s", color=BLUE, label=f"Holm p below {HOLM_LEVEL}"))
    marks.append(Line2D([], [], marker="o", ls="", color=BLUE, alpha=0.4, markersize=3, label="one seed"))
    if any(row["low_90"] is not None for row in rows):
        marks.append(Line2D([], [], color=BLUE, linewidth=3.6, alpha=0.55, label="90 % (equivalence)"))
    if any(row["detectable"] is not None for row in rows):
        marks.append(Line2D([], [], marker="|", ls="", color=GREY, markersize=10, label="smallest detectable"))
    marks.append(Patch(color=SHADE, label="equivalence margin"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))


def _passes_holm(row: Row) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < HOLM_LEVEL
