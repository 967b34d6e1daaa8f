"""Learning curves of a study: share of right rollouts by step, a panel for each arm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .plots import running_mean
from .study_style import BLUE, GREY, LOOK, WIDTH, base_of, shortened

COLUMNS = 4
"""Panels side by side."""


def learning(summary: Mapping[str, Any]) -> Figure | None:
    """A panel for each arm: mean over seeds of a running mean of the share of right rollouts, band from the least to
    the largest seed; the base's mean in grey."""
    curves = {arm: found for arm in summary["curves"] if (found := _mean_curve(summary, arm)) is not None}
    if not curves:
        return None
    base = base_of(summary)
    with plt.rc_context(LOOK):
        figure, panels = _grid(len(curves), 2.1)
        for axes, (arm, (steps, seeds)) in zip(panels, curves.items()):
            if base in curves and arm != base:
                axes.plot(curves[base][0], curves[base][1].mean(0), color=GREY, linewidth=1.2, linestyle="--")
            if len(seeds) > 1:
                axes.fill_between(steps, seeds.min(0), seeds.max(0), color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(steps, seeds.mean(0), color=BLUE, linewidth=1.5)
            axes.set_title(shortened(arm), fontsize=9, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for place in range(len(curves)):
            panels[place].tick_params(labelbottom=place + COLUMNS >= len(curves))
        figure.supxlabel("step (rollout batch)", fontsize=9)
        figure.supylabel("share of rollouts right", fontsize=9)
        _learning_legend(figure, base if base in curves else None, max(len(seeds) for _, seeds in curves.values()))
        return figure


def smoothing(steps: int) -> int:
    """Steps that a learning curve's running mean goes over: a tenth of the arm's run, odd, three at least."""
    return max(3, steps // 10 // 2 * 2 + 1)


def _mean_curve(summary: Mapping[str, Any], arm: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [n] and smoothed shares [seeds, n] of an arm's runs, over the steps in which all of them had rollouts
    graded; runs that failed are left out."""
    failed = {(run["arm"], str(run["seed"])) for run in summary["runs"] if run["status"] != "done"}
    curves = [
        {step: share for step, share in zip(curve["step"], curve["correct"]) if share is not None}
        for seed, curve in summary["curves"][arm].items()
        if (arm, str(seed)) not in failed and curve["step"]
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    return np.array(steps), np.array([running_mean([c[s] for s in steps], smoothing(len(steps))) for c in curves])


def _learning_legend(figure: Figure, base: str | None, seeds: int) -> None:
    marks: list[Any] = [Line2D([], [], color=BLUE, label="mean over seeds" if seeds > 1 else "the one seed")]
    if seeds > 1:
        marks.append(Patch(color=BLUE, alpha=0.25, label="least to largest seed"))
    if base is not None:
        marks.append(Line2D([], [], color=GREY, linestyle="--", label=f"mean of {shortened(base)}"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels for `count` arms with common axes, the spare ones taken away."""
    columns = min(COLUMNS, max(count, 2))
    lines = -(-count // columns)
    figure, grid = plt.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, figsize=(WIDTH, 0.9 + height * lines)
    )
    figure.set_layout_engine("constrained")
    panels = list(grid.flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]
