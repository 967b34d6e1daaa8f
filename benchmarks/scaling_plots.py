"""The figure of benchmarks/scaling.py: a panel a size, log-log, each line with its slope.

    python benchmarks/scaling_plots.py [scaling.json]

draws it again from the results.
"""

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from driftgate.report.plots import COLOURS, GREY, STYLE

DPI = 110
BLUE, RED, GREEN, VIOLET = COLOURS
LOOKS: dict[str, tuple[str, str]] = {
    "gated sampled token, full logits": (BLUE, "--"),
    "gated sampled token, ours": (BLUE, "-"),
    "gated LSM, full logits": (RED, "--"),
    "gated LSM, ours": (RED, "-"),
    "ungated LSM, ours": (GREEN, "-"),
    "teacher's top K, ours": (VIOLET, "-"),
    "gate's arithmetic": (GREY, "-"),
    "a rollout batch": (BLUE, "-"),
    "an optimiser update": (RED, "-"),
}
TOP = 0.95
"""Highest place of a name beside the axes, as a share of their height."""
AXES = {"tokens": "response tokens N", "vocabulary": "vocabulary V (tokens)", "support": "support K (tokens)"}


def draw(found: Mapping[str, Any], out: Path) -> None:
    """All panels into one PNG."""
    with plt.rc_context({**STYLE, "font.size": 9}):
        figure, grid = plt.subplots(3, 3, figsize=(14.6, 10.4))
        figure.subplots_adjust(left=0.055, right=0.885, bottom=0.06, top=0.955, wspace=0.86, hspace=0.4)
        for row, name in enumerate(AXES):
            size_panels(grid[row][0], grid[row][1], found, name)
        block_panel(grid[0][2], found)
        passes_panel(grid[1][2], found["passes"]["cpu_s"])
        shares_panel(grid[2][2], found["gate_shares"])
        save(figure, out)
        plt.close(figure)


def save(figure: Figure, out: Path) -> None:
    """In 256 colours, which makes a small file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def size_panels(time: Axes, memory: Axes, found: Mapping[str, Any], name: str) -> None:
    """CPU-seconds and memory along one size."""
    sweep = found[name]
    base = sweep["base"]
    symbols = {"tokens": "N", "vocabulary": "V", "support": "K"}
    fixed = ", ".join(f"{symbols[key]} {base[key]:,}" for key in symbols if key != name)
    lines = dict(sweep["cpu_s"])
    if name == "tokens":
        lines["gate's arithmetic"] = found["gate"]["cpu_s"]["tokens"]
    plot_lines(time, lines)
    time.set(title=f"head, forward + backward ({fixed})", xlabel=AXES[name], ylabel="CPU-seconds")
    plot_lines(memory, sweep.get("memory_mb", {}))
    memory.set(title=f"peak memory above inputs ({fixed})", xlabel=AXES[name], ylabel="MB")


def block_panel(axes: Axes, found: Mapping[str, Any]) -> None:
    gate = found["gate"]
    lines = {"gate's arithmetic": scaled(gate["cpu_s"]["block"], 1000)}
    plot_lines(axes, lines)
    largest = lines["gate's arithmetic"]["sizes"][-1]
    ticks = lines["gate's arithmetic"]["sizes"]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), f"whole\n({largest:,})"])
    axes.set(xlabel="block size (tokens)", ylabel="CPU-milliseconds a call")
    axes.set_title(f"spans + gate + mean 1, {gate['tokens']:,} tokens")
    low, high = min(gate["share_of_head"]), max(gate["share_of_head"])
    note(axes, f"{low:.3%} to {high:.3%} of the head's part\nof an LSM update on as many tokens")


def scaled(line: Mapping[str, Any], by: float) -> dict[str, Any]:
    return {**line, **{key: [by * value for value in line[key]] for key in ("median", "least", "most")}}


def passes_panel(axes: Axes, lines: Mapping[str, Any]) -> None:
    plot_lines(axes, lines)
    axes.set(xlabel="passes over a rollout batch", ylabel="CPU-seconds")
    axes.set_title("embedded pair, rollout + scores + updates")
    whole = lines["a rollout batch"]
    note(axes, f"a rollout batch: {whole['at_zero']:.2f} s + {whole['each']:.2f} s a pass")


def note(axes: Axes, text: str) -> None:
    axes.text(0.03, 0.04, text, transform=axes.transAxes, fontsize=8, color=GREY)


def plot_lines(axes: Axes, lines: Mapping[str, Any]) -> None:
    """Medians with their range, each line named at its end with its slope."""
    axes.set(xscale="log", yscale="log")
    for name, line in lines.items():
        colour, dash = LOOKS[name]
        axes.plot(line["sizes"], line["median"], dash, color=colour, marker="o", markersize=3.5, linewidth=1.4)
        axes.fill_between(line["sizes"], line["least"], line["most"], color=colour, alpha=0.2, linewidth=0)
    axes.set_visible(bool(lines))
    if lines:
        tidy(axes, lines)
        name_ends(axes, lines)


def tidy(axes: Axes, lines: Mapping[str, Any]) -> None:
    """Ticks at the sizes that were measured; whole decades on the other axis, and steps between where there are few."""
    sizes = sorted({size for line in lines.values() for size in line["sizes"]})
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    values = [value for line in lines.values() for value in (*line["least"], *line["most"])]
    low, high = min(values) / 1.6, max(values) * 1.6
    middle, reach = math.sqrt(low * high), max(math.sqrt(high / low), 4.5)
    axes.set_ylim(middle / reach, middle * reach)  # never so close that noise looks like growth
    numbers(axes.yaxis, (1, 2, 5) if reach < 30 else (1,))


def numbers(axis: Any, steps: Sequence[float]) -> None:
    """steps: what is written out of each decade."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """4,096 as 4k, 151,936 as 152k."""
    if value < 1024:
        return f"{value:.0f}"
    return f"{value / 1024:.0f}k" if value % 1024 == 0 else f"{value / 1000:.0f}k"


def name_ends(axes: Axes, lines: Mapping[str, Any]) -> None:
    """Names right of the axes at the height of the lines' ends, moved apart where they would touch."""
    low, high = axes.get_ylim()
    heights = {n: math.log(line["median"][-1] / low) / math.log(high / low) for n, line in lines.items()}
    for name, place in apart(heights, 0.15).items():
        line = lines[name]
        text = f"{name}\nslope {line['slope']:.2f} ± {line['standard_error']:.2f}"
        axes.text(1.03, place, text, transform=axes.transAxes, color=LOOKS[name][0], fontsize=7.5, va="center")
    axes.title.set_fontsize(9.5)


def apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """The same order, neighbours pushed apart to `gap`, none above TOP."""
    order = sorted(heights, key=lambda name: heights[name])
    places = [heights[name] for name in order]
    for _ in range(200):
        for below in range(len(places) - 1):
            lacking = max(gap - (places[below + 1] - places[below]), 0)
            places[below] -= lacking / 2
            places[below + 1] += lacking / 2
        places[-1] = min(places[-1], TOP)
    return dict(zip(order, places))


def shares_panel(axes: Axes, shares: Mapping[str, Any]) -> None:
    """The gate's costs, of a step and of an update, on both models, with the range; points, as the axis has no 0."""
    box = axes.get_position()
    axes.set_position((box.x0 + 0.062, box.y0, box.width + 0.03, box.height))
    rows = [(model, cost, of) for model in shares for cost in COSTS for of in ("of_step", "of_update")]
    for place, (model, cost, of) in enumerate(reversed(rows)):
        found = shares[model]["shares"][cost]
        value, ends = found[of], [found[f"{of}_least"], found[f"{of}_most"]]
        axes.plot(ends, [place, place], color=COSTS[cost], linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(value, place, "o" if of == "of_step" else "s", color=COSTS[cost], markersize=5)
        axes.text(max(ends) * 1.35, place, f"{value:.2%}", va="center", fontsize=8, bbox=WHITE)
    axes.set_yticks(range(len(rows)), [label(*row) for row in reversed(rows)], fontsize=8)
    axes.set(xscale="log", xlim=(3e-5, 10), ylim=(-0.6, len(rows) - 0.4))
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01%", "0.1%", "1%", "10%", "100%"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(0.01, color=GREY, linestyle="--", linewidth=1)
    axes.set_title("what the gate is of a step (2 passes), of an update", fontsize=9.5)
    axes.set_xlabel("share of CPU-seconds; dashed: aim for the arithmetic")


WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
COSTS = {"arithmetic": RED, "log-probability passes": BLUE}


def label(model: str, cost: str, of: str) -> str:
    model = {"embedded pair": "pair", "wide model": "wide"}[model]
    return f"{model}: {'arithmetic' if cost == 'arithmetic' else 'logp passes'}, {of.split('_')[1]}"


def main(arguments: Sequence[str]) -> None:
    path = Path(arguments[0]) if arguments else Path(__file__).parent / "results" / "scaling.json"
    draw(json.loads(path.read_text()), path.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
