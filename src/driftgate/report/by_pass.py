"""Plots of a study by pass over a rollout batch: the distribution of the weights, and the drift."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .study_style import GREY, LOOK, PASSES, WIDTH, Row, shortened


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
    axes.set_yticks([float(np.mean(p)) for p in places.values()], [shortened(arm) for arm in places], fontsize=9.5)
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
