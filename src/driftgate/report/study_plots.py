"""Plots of a study, from its summary: each function gives a figure, or None where there is nothing to draw.

Many arms stay readable because they stand below one another or in panels of their own; colour tells passes apart,
never arms, and differs in lightness, so that it also reads without hue.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from .plots import STYLE, running_mean

BLUE, ORANGE, GREY, SHADE = "#0072B2", "#D55E00", "#777777", "#E8EDF2"
PASSES = ("#081D58", "#1D91C0", "#7FCDBB", "#B8A000", "#F0C000")
"""Of passes 1, 2, ...; from dark to light. More passes take shades between."""
LOOK: Any = {**STYLE, "text.parse_math": False, "legend.fontsize": 8.5}
WIDTH = 10.0
"""Inches of every figure."""
HOLM_LEVEL = 0.05
COLUMNS = 4
"""Panels side by side."""

Row = Mapping[str, Any]


def effects(summary: Mapping[str, Any]) -> Figure | None:
    """Forest plot: each comparison's difference in points with its 95 % interval, a panel for each measure."""
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
            axes.set_title(_short(arm), fontsize=9, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for place in range(len(curves)):
            panels[place].tick_params(labelbottom=place + COLUMNS >= len(curves))
        figure.supxlabel("step (rollout batch)", fontsize=9)
        figure.supylabel("share of rollouts right", fontsize=9)
        _learning_legend(figure, base if base in curves else None, max(len(seeds) for _, seeds in curves.values()))
        return figure


def gates(summary: Mapping[str, Any]) -> Figure | None:
    """Weights of each gated arm, a row for each pass: quantile boxes, the effective sample size beside them."""
    arms = {arm: passes for arm, passes in summary["gates"].items() if passes}
    if not arms:
        return None
    rows = _pass_rows(arms)
    colours = _colours(rows)
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.21 * len(rows) + 0.1 * len(arms)), layout="constrained")
        for place, _, number, row in rows:
            _gate_row(axes, place, colours[number], row)
            _beside(axes, place, _ess_text(row))
        axes.axvline(1, color=GREY, linewidth=0.8, zorder=0)
        _weight_scale(axes, [value for *_, row in rows for _, value in row["quantiles"]])
        axes.set_xlabel("weight of a token")
        _beside(axes, -1.1, "ESS, % of tokens")
        _name_arms(axes, rows)
        _pass_legend(figure, rows)
        return figure


def drift(summary: Mapping[str, Any]) -> Figure | None:
    """Drift of each arm by pass, in nats, on a logarithmic axis; a pass without any drift is not drawn."""
    arms = {arm: passes for arm, passes in summary["drift"].items() if passes}
    moved = {arm: {n: row for n, row in passes.items() if row.get("abs")} for arm, passes in arms.items()}
    rows = _pass_rows({arm: passes for arm, passes in moved.items() if passes})
    if not rows:
        return None
    values = [row[key] for *_, row in rows for key in ("abs", "span") if row.get(key)]
    colours = _colours(rows)
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.19 * len(rows) + 0.1 * len(arms)), layout="constrained")
        for place, _, number, row in rows:
            for key, face in (("abs", colours[number]), ("span", "white")):
                if row.get(key):
                    axes.plot(row[key], place, "o", color=colours[number], markerfacecolor=face, markersize=6)
        _drift_scale(axes, values)
        axes.set_xlabel("drift since the rollout, nats a token")
        _name_arms(axes, rows)
        dots = (("mean |d| over tokens", GREY), ("mean over spans of |mean d|", "white"))
        _pass_legend(figure, rows, [Line2D([], [], marker="o", ls="", color=GREY, mfc=f, label=t) for t, f in dots])
        return figure


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


def base_of(summary: Mapping[str, Any]) -> str | None:
    """The arm that most comparisons are with."""
    against = [row["against"] for row in summary["comparisons"]]
    return max(dict.fromkeys(against), key=against.count) if against else None


def smoothing(steps: int) -> int:
    """Steps that a learning curve's running mean goes over: a tenth of the arm's run, odd, three at least."""
    return max(3, steps // 10 // 2 * 2 + 1)


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
        axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=BLUE, linewidth=2)
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
    names = [_short(arm) if one_base else f"{_short(arm)}\nminus {_short(against)}" for arm, against in pairs]
    panels[0].set_yticks(range(len(pairs)), names, fontsize=9.5 if one_base else 8.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"difference to {_short(pairs[0][1])}, points" if one_base else "difference, points", fontsize=9
        )


def _effects_legend(figure: Figure, rows: Sequence[Row]) -> None:
    """Names what is drawn."""
    marks: list[Any] = [Line2D([], [], marker="s", color=BLUE, markerfacecolor="white", label="95 % interval")]
    if any(map(_passes_holm, rows)):
        marks.append(Line2D([], [], marker="s", color=BLUE, label=f"the same, Holm p below {HOLM_LEVEL}"))
    marks.append(Line2D([], [], marker="o", ls="", color=BLUE, alpha=0.4, markersize=3, label="one seed"))
    if any(row["detectable"] is not None for row in rows):
        marks.append(Line2D([], [], marker="|", ls="", color=GREY, markersize=10, label="smallest detectable effect"))
    marks.append(Patch(color=SHADE, label="equivalence margin"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))


def _passes_holm(row: Row) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < HOLM_LEVEL


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
        marks.append(Line2D([], [], color=GREY, linestyle="--", label=f"mean of {_short(base)}"))
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


def _pass_rows(arms: Mapping[str, Mapping[str, Row]]) -> list[tuple[float, str, int, Row]]:
    """(place on the y axis, arm, pass, what is known of it); a gap between arms."""
    rows: list[tuple[float, str, int, Row]] = []
    place = 0.0
    for arm, passes in arms.items():
        for number in sorted(passes, key=int):
            rows.append((place, arm, int(number), passes[number]))
            place += 1
        place += 0.6
    return rows


def _name_arms(axes: Axes, rows: Sequence[tuple[float, str, int, Row]]) -> None:
    """An arm's name at the middle of its rows, a thin line between arms."""
    places: dict[str, list[float]] = {}
    for place, arm, _, _ in rows:
        places.setdefault(arm, []).append(place)
    axes.set_yticks([float(np.mean(p)) for p in places.values()], [_short(arm) for arm in places], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for above, below in pairwise(places.values()):
        axes.axhline((above[-1] + below[0]) / 2, color="#DDDDDD", linewidth=0.8)
    axes.set_ylim(rows[-1][0] + 0.8, -0.8)


def _pass_legend(figure: Figure, rows: Sequence[tuple[float, str, int, Row]], more: Sequence[Any] = ()) -> None:
    marks = [Line2D([], [], marker="s", ls="", color=c, label=f"pass {n}") for n, c in _colours(rows).items()]
    figure.legend(handles=[*marks, *more], loc="outside upper center", ncols=min(8, len(marks) + len(more)))


def _gate_row(axes: Axes, place: float, colour: str, row: Row) -> None:
    """A box from the lower to the upper quartile with the median in it, whiskers to the outermost quantiles known."""
    shares, values = np.array(sorted(row["quantiles"]), dtype=float).T
    low, middle, high = np.interp((0.25, 0.5, 0.75), shares, values)
    axes.plot([values[0], values[-1]], [place, place], color=colour, linewidth=1.2)
    axes.add_patch(Rectangle((low, place - 0.32), high - low, 0.64, facecolor=colour, edgecolor=colour, alpha=0.55))
    axes.plot([middle, middle], [place - 0.36, place + 0.36], color="black", linewidth=1.6)


def _weight_scale(axes: Axes, values: Sequence[float]) -> None:
    """Linear; linear to 1 and logarithmic beyond where weights grow large."""
    if max(values) > 6:
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    elif max(values) - min(values) < 0.02:  # else a flat gate's rounding would fill the axis
        axes.set_xlim(0.9, 1.1)
    axes.set_xlim(left=max(axes.get_xlim()[0], 0 if min(values) < 0.3 else -np.inf))


def _ess_text(row: Row) -> str:
    return "" if row.get("ess") is None else f"{100 * row['ess']:.1f}"


def _beside(axes: Axes, place: float, text: str) -> None:
    """A word at the right end of a row."""
    axes.annotate(
        text, (1, place), xytext=(6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=8, color="#444444", va="center", annotation_clip=False,
    )  # fmt: skip


def _drift_scale(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    span = max(values) / min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=range(1, 10) if span < 4 else (1, 2, 5) if span < 30 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _colours(rows: Sequence[tuple[float, str, int, Row]]) -> dict[int, str]:
    """A colour for each pass, in their order."""
    numbers = sorted({number for _, _, number, _ in rows})
    if numbers[-1] <= len(PASSES):
        return {number: PASSES[number - 1] for number in numbers}
    shades = LinearSegmentedColormap.from_list("passes", PASSES)
    return {number: to_hex(shades((number - 1) / (numbers[-1] - 1))) for number in numbers}


def _short(name: str) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= 30 else f"{name[:29]}…"
