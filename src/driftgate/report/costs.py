"""Plot of a study: what arms score against what their runs cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from .study_style import GREY, LOOK, PASSES, WIDTH


def costs(summary: Mapping[str, Any]) -> Figure | None:
    """Each arm's scores against what its runs cost, in rollout tokens and in CPU-seconds of training, a row for each
    measure; None where all arms cost about the same."""
    measures = list(dict.fromkeys(row["measure"] for row in summary["comparisons"]))
    known = {arm: cost for arm in summary["arms"] if arm in summary["scores"] and (cost := _cost(summary, arm))}
    spread = [max(column) / max(min(column), 1e-9) for column in zip(*known.values())]
    if not measures or not spread or max(spread) < 1.5:
        return None
    with plt.rc_context(LOOK):
        figure, grid = plt.subplots(
            len(measures), 2, sharex="col", sharey="row", squeeze=False, figsize=(WIDTH, 0.9 + 3.2 * len(measures))
        )
        figure.set_layout_engine("constrained")
        for line, measure in zip(grid, measures):
            line[0].set_ylabel(f"{measure}, %")
            for axes, place in zip(line, (0, 1)):
                _cost_panel(axes, summary, measure, {arm: cost[place] for arm, cost in known.items()}, apart=not place)
        for axes, what in zip(grid[-1], ("rollout tokens of a run, thousands", "CPU-seconds of a run's training")):
            axes.set_xlabel(what)
        numbers = sorted({summary["passes"][arm] for arm in known})
        marks = [
            Line2D([], [], marker="o", ls="", color=_doubled(n), label=f"{n} pass{'es' * (n > 1)}") for n in numbers
        ]
        shapes = (("o", "no weights"), ("s", "weights"))
        marks += [Line2D([], [], marker=m, ls="", color=GREY, mfc="white", label=text) for m, text in shapes]
        figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))
        return figure


def _cost(summary: Mapping[str, Any], arm: str) -> tuple[float, float] | None:
    """Thousands of rollout tokens and CPU-seconds of a run, on average."""
    runs = [run for run in summary["runs"] if run["arm"] == arm and run["status"] == "done"]
    if not runs:
        return None
    return tuple(
        float(np.mean([run[key] for run in runs])) / by for key, by in (("rollout_tokens", 1e3), ("cpu_seconds", 1))
    )  # type: ignore[return-value]


def _cost_panel(axes: Axes, summary: Mapping[str, Any], measure: str, costs: Mapping[str, float], apart: bool) -> None:
    """apart: an arm stands 4 points further to the right for each doubling of its passes, 2 with weights, so that arms
    of the same cost do not hide one another."""
    for arm, cost in costs.items():
        score, colour = summary["scores"][arm][measure]["mean"], _doubled(summary["passes"][arm])
        shape, face = ("s", "white") if summary["gates"].get(arm) else ("o", colour)
        doublings = summary["passes"][arm].bit_length() - 1
        right = (4 * doublings + 2 * (shape == "s") if apart else 0) / 72
        where = axes.transData + ScaledTranslation(right, 0, axes.figure.dpi_scale_trans)
        low, middle, high = (100 * score[key] for key in ("low", "mean", "high"))
        axes.plot([cost, cost], [low, high], color=colour, linewidth=1, alpha=0.6, transform=where)
        axes.plot(cost, middle, shape, color=colour, markerfacecolor=face, markersize=6, transform=where)
        axes.update_datalim([(cost, low), (cost, high)])
    axes.autoscale_view()
    axes.set_xlim(left=0)


def _doubled(passes: int) -> str:
    """A colour for each doubling of the passes."""
    return PASSES[min(max(passes, 1).bit_length() - 1, len(PASSES) - 1)]
