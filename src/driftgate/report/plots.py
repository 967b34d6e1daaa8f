"""Plots of runs, as SVG text that stands inside a page."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#4C6A92", "#D1603D", "#5B8E55", "#8A6BA8")
GREY = "#777777"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "driftgate",
}


def read_metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl of one kind: "rollout" or "update"."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def learning_curve(runs: Mapping[str, Path], references: Mapping[str, float]) -> str:
    """Share of right rollouts by step (each step's problems are new), with a running mean; references as lines."""
    with plt.rc_context(STYLE):
        figure, axes = _figure()
        for colour, (name, run) in zip(COLOURS, runs.items()):
            lines = read_metrics(run, "rollout")
            steps, right = [line["step"] for line in lines], [line["correct"] for line in lines]
            axes.plot(steps, right, ".", color=colour, alpha=0.3, markersize=4)
            axes.plot(steps, running_mean(right, 5), color=colour, label=name)
        for name, value in references.items():
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
            axes.text(1, value + 0.015, name, color=GREY, fontsize=9)
        axes.set(xlabel="step (rollout batch)", ylabel="share of rollouts right", ylim=(0, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _finish(figure, axes)


def gate_spread(run: Path, name: str) -> str:
    """Gates of each pass by step: the mean, a band of one standard deviation, and the smallest."""
    with plt.rc_context(STYLE):
        figure, axes = _figure()
        updates = read_metrics(run, "update")
        for colour, number in zip(COLOURS, sorted({line["pass"] for line in updates})):
            lines = [line for line in updates if line["pass"] == number]
            steps = [line["step"] for line in lines]
            mean, std, least = (
                np.array([line[key] for line in lines]) for key in ("gate_mean", "gate_std", "gate_min")
            )
            axes.plot(steps, mean, color=colour, label=f"pass {number}: mean")
            axes.fill_between(steps, mean - std, np.minimum(mean + std, 1), color=colour, alpha=0.25, linewidth=0)
            axes.plot(steps, least, color=colour, linestyle=":", linewidth=1, label=f"pass {number}: smallest")
        axes.set(xlabel="step", ylabel=f"gate before normalisation, {name}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _finish(figure, axes)


def drift_by_pass(runs: Mapping[str, Path]) -> str:
    """Drift in nats by pass: mean |d| over tokens beside the mean over spans of |mean d|, averaged over steps."""
    with plt.rc_context(STYLE):
        figure, axes = _figure()
        passes: list[int] = []
        for place, (colour, (name, run)) in enumerate(zip(COLOURS, runs.items())):
            updates = read_metrics(run, "update")
            passes = sorted({line["pass"] for line in updates})
            for key, alpha, what in (
                ("drift_abs", 1.0, "mean |d|"),
                ("drift_span", 0.45, "|mean d| of a span"),
            ):
                means = [np.mean([line[key] for line in updates if line["pass"] == number]) for number in passes]
                offset = 0.4 * place - 0.3 + (0.18 if key == "drift_span" else 0)
                axes.bar(np.array(passes) + offset, means, 0.17, color=colour, alpha=alpha, label=f"{name}: {what}")
        axes.set(xlabel="pass over the rollout batch", ylabel="drift since the rollout, nats")
        axes.set_xticks(passes)
        return _finish(figure, axes)


def scores(passes: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], measure: str) -> str:
    """One measure of every model on every benchmark and their mean, with 95 % intervals."""
    with plt.rc_context(STYLE):
        figure, axes = _figure()
        groups = list(next(iter(passes.values())))
        colours = (GREY, *COLOURS[: len(passes) - 2], "#222222")
        for place, (colour, (name, results)) in enumerate(zip(colours, passes.items())):
            middle = np.array([results[group][measure]["mean"] for group in groups])
            ends = np.array([[results[group][measure][end] for group in groups] for end in ("low", "high")])
            x = np.arange(len(groups)) + 0.18 * (place - (len(passes) - 1) / 2)
            axes.errorbar(x, middle, np.abs(ends - middle), fmt="o", color=colour, markersize=5, capsize=2, label=name)
        axes.set_xticks(np.arange(len(groups)), groups)
        axes.set(ylabel=measure, ylim=(0, 1.05))
        return _finish(figure, axes)


def running_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over up to `width` values centred on each, fewer at the ends."""
    half = width // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _figure() -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(5.6, 3.8), layout="constrained")


def _finish(figure: Figure, axes: Axes) -> str:
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
