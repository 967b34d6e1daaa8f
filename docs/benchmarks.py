"""The page of benchmarks: `benchmarks.j2` filled in from what `make bench` left; part of `docs/generate.py`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
NAMES = ("head", "step", "rollout", "scaling", "profile", "weights", "lora", "ranks", "overlap")

Found = Mapping[str, Any]
"""What a benchmark left, or a part of it."""


def page() -> str:
    """Every benchmark's tables, with how they were made."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in NAMES}
    tables = {
        "head": head(found["head"]["figures"]),
        "step": {f"{int(v):,}": step(figures) for v, figures in found["step"]["figures"].items()},
        "rollout": rollout(found["rollout"]["figures"]),
        "engines": engines(json.loads((RESULTS / "engines.json").read_text())["engines"]),
        "growth": growth(found["scaling"]),
        "shares": shares(found["scaling"]["gate_shares"]),
        "profile": {name: profile(one) for name, one in found["profile"]["figures"].items()},
        "weights": weights(found["weights"]["figures"]),
        "lora": lora(found["lora"]["figures"]),
        "overlap": overlap(found["overlap"]["figures"]),
        "ranks": {section: ranks(section, rows) for section, rows in found["ranks"]["figures"].items()},
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string((HERE / "benchmarks.j2").read_text()).render(**found, tables=tables, how=how)


def how(found: Found) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}`, {found['seconds']} s, {versions}."


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(one: Found) -> str:
    """A ratio with its range over rounds."""
    if one["least"] == one["most"]:
        return f"{one['ratio']:.2f}"
    return f"{one['ratio']:.2f} [{one['least']:.2f}, {one['most']:.2f}]"


def head(figures: Found) -> str:
    heading = ("way", "CPU-s", "time against full logits", "peak MB", "memory against full logits")
    rows = [
        (name, f"{one['cpu_s']:.2f}", spread(one), f"{one['peak_mb']:.0f}", f"{one['memory_ratio']:.3f}")
        for name, one in figures.items()
    ]
    return table(heading, rows)


def step(figures: Found) -> str:
    parts = ("rollout", "teacher", "update")
    heading = ("way", "CPU-s an update", "of TRL's", "peak MB", *(f"{part}, CPU-s" for part in parts))
    rows = []
    for name, one in figures.items():
        each = [f"{one[part]:.2f}" if part in one else "" for part in parts]
        rows.append([name, f"{one['cpu_s']:.2f}", spread(one), f"{one['peak_mb']:.0f}", *each])
    return table(heading, rows)


def rollout(figures: Found) -> str:
    heading = ("workload", "way", "useful tokens a CPU-second", "against generate", "mean / longest answer", "peak MB")
    rows = []
    for case, ways in figures.items():
        for way, one in ways.items():
            lengths = f"{one['mean_length']:.0f} / {one['max_length']:.0f}"
            rows.append([case, way, f"{one['tokens_per_s']:,.0f}", spread(one), lengths, f"{one['peak_mb']:.0f}"])
    return table(heading, rows)


def engines(figures: Found) -> str:
    """Ranges of two runs of each workload."""
    heading = ("engine", "training batch, tokens a CPU-second", "examination", "weight sync, CPU-s", "start, CPU-s")
    rows = []
    for name, one in figures.items():
        ranges = ["{:,} to {:,}".format(*one[of]) if of in one else "" for of in ("recipe", "evaluation")]
        rows.append([name, *ranges, str(one.get("weight_sync_cpu_s", "")), str(one["start_cpu_s"])])
    return table(heading, rows)


def growth(found: Found) -> str:
    heading = ("size", "way", "slope of CPU time", "slope of memory", "CPU-s, least to largest", "MB, least to largest")
    rows = []
    for key, name in {"tokens": "response tokens", "vocabulary": "vocabulary", "support": "support K"}.items():
        for way, time in found[key]["cpu_s"].items():
            memory = found[key]["memory_mb"].get(way)
            sizes = f"{name}, {time['sizes'][0]:,} to {time['sizes'][-1]:,}"
            rows.append([sizes, way, slope(time), slope(memory), ends(time, ".3f"), ends(memory, ".0f")])
    return table(heading, rows)


def slope(fit: Found | None) -> str:
    return "" if fit is None else f"{fit['slope']:.2f} ± {fit['standard_error']:.2f}"


def ends(fit: Found | None, form: str) -> str:
    return "" if fit is None else f"{fit['median'][0]:{form}} to {fit['median'][-1]:{form}}"


def shares(found: Found) -> str:
    rows = [
        (where, what, percent(one, "of_step"), percent(one, "of_update"))
        for where, of in found.items()
        for what, one in of["shares"].items()
        if not what.startswith("of which")
    ]
    return table(("model", "part", "% of a step", "% of an update"), rows)


def percent(one: Found, of: str) -> str:
    return f"{100 * one[of]:.2f} [{100 * one[f'{of}_least']:.2f}, {100 * one[f'{of}_most']:.2f}]"


def profile(found: Found) -> str:
    heading = ("phase", "CPU-s", "floor", "times the floor", "largest operations, CPU-s by the profiler")
    rows = []
    for phase, one in found["phases"].items():
        if one["floor_s"]:
            seconds, floor = one["cpu_s"], one["floor_s"]
            most = [f"{name.removeprefix('aten::')} {own:.2f}" for name, own, _ in found["operations"][phase][:3]]
            rows.append([phase, f"{seconds:.3f}", f"{floor:.3f}", f"{seconds / floor:.1f}", ", ".join(most)])
    rest = found["step_cpu_s"] - sum(one["cpu_s"] for one in found["phases"].values())
    rows += [["files, grading, metrics", f"{rest:.3f}", "", "", ""], ["step", f"{found['step_cpu_s']:.3f}", "", "", ""]]
    speed = f"{found['rates']['gflops']:.0f} GFLOP/s and {found['rates']['gb_per_s']:.0f} GB/s measured"
    return f"{found['work']['tokens']:,} tokens, two passes; {speed}.\n\n{table(heading, rows)}"


def weights(figures: Found) -> str:
    rows = [(f"`{name}`", f"{one['cpu_s']:.2f}", spread(one)) for name, one in figures.items()]
    return table(("recipe", "CPU-s an update", "against its base"), rows)


def lora(figures: Found) -> str:
    heading = (
        "way",
        "CPU-s a step",
        "against full",
        "rollout",
        "update",
        "peak MB",
        "trained",
        "model MB",
        "checkpoint MB",
    )
    rows = []
    for name, one in figures.items():
        parts = [f"{one[part]:.1f}" for part in ("rollout", "update")]
        sizes = [f"{one['trained'] / 1e6:.1f} M", *(f"{one[f'{part}_mb']:,.0f}" for part in ("model", "checkpoint"))]
        rows.append([name, f"{one['cpu_s']:.1f}", spread(one), *parts, f"{one['peak_mb']:,.0f}", *sizes])
    return table(heading, rows)


def overlap(figures: Found) -> str:
    heading = ("", "seconds a step", "against lag 0", "seconds waited for rollouts", "drift at a batch's first update")
    rows = [
        (
            f"`rollout.{name.replace(' ', '=')}`",
            f"{one['step_s']:.2f}",
            spread(one),
            f"{one['waited_s']:.2f}",
            f"{one['drift']:.4f}",
        )
        for name, one in figures.items()
    ]
    return table(heading, rows)


def ranks(section: str, figures: Found) -> str:
    """Rows without a ratio are of what one process does not do. What all ranks have together is said of work and
    memory alone."""
    summed = section in ("CPU-seconds", "MB of memory")
    every = ["all ranks against it"] if summed else []
    heading = ("", "a rank against one process", *every, "one process", "the busiest rank")
    rows = []
    for name, one in figures.items():
        ratios = [spread(one) if "ratio" in one else ""] + ([f"{one['total']:.2f}"] if summed else [])
        rows.append([name, *ratios, *(f"{one[of]:,.{1 if one[of] < 100 else 0}f}" for of in ("one", "rank"))])
    return table(heading, rows)
