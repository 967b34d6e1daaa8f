"""Estimates as tables for the terminal."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from rich.console import Group
from rich.table import Table

from .assumptions import Assumptions
from .estimate import Estimate
from .gpus import GB, GPUS, Gpu
from .memory import EXAM_ROWS_LIMIT, PHASES, Memory
from .shapes import Shape
from .workload import Tokens


def estimate_table(estimates: Mapping[str, Estimate], seeds: int = 1) -> Group:
    """Runs and tokens, memory by component, time and fit by kind of GPU, then what was assumed.

    estimates: of one run of each arm; seeds: runs of each arm.
    """
    parts: list[Any] = [_token_table(estimates, seeds), memory_table(estimates), _time_table(estimates, seeds)]
    examined = f"- an examination decodes exam.batch responses at once, else what fits, at most {EXAM_ROWS_LIMIT}"
    return Group(*parts, *assumption_lines(estimates), examined)


def _token_table(estimates: Mapping[str, Estimate], seeds: int) -> Table:
    table = Table("arm", "student", "teacher", "runs", "rollout", "trained", "teacher's", "evaluation")
    table.title = "Response tokens of all runs, in millions"
    for name, found in estimates.items():
        shown = [f"{seeds * getattr(found.tokens, part.name) / 1e6:,.2f}" for part in fields(Tokens)]
        sizes = [f"{shape.parameters / 1e9:.3g} B" for shape in (found.student, found.teacher) if shape]
        sizes += ["none"] * (2 - len(sizes))
        table.add_row(name, *sizes, str(seeds), *shown)
    totals = [sum(getattr(e.tokens, part.name) for e in estimates.values()) for part in fields(Tokens)]
    table.add_section()
    table.add_row("all", "", "", str(seeds * len(estimates)), *(f"{seeds * total / 1e6:,.2f}" for total in totals))
    return table


def memory_table(estimates: Mapping[str, Estimate]) -> Table:
    """One column for all arms that need the same. There are many components, so these are the rows."""
    columns = _alike(estimates, lambda e: _memory_cells(e.memory))
    table = Table("phase", "component", *columns, title="Memory on one GPU, GB")
    memories = [e.memory for e in columns.values()]
    for phase in PHASES:
        components = dict.fromkeys(name for memory in memories for name in getattr(memory, phase))
        for place, component in enumerate(components):
            cells = [_gb(getattr(memory, phase).get(component, 0.0)) for memory in memories]
            table.add_row("" if place else phase, component, *cells, end_section=place == len(components) - 1)
    table.add_section()
    table.add_row("peak", "all responses at their limit", *(_gb(memory.peak) for memory in memories))
    table.add_row("", "at the mean length", *(_gb(memory.peak_mean) for memory in memories))
    return table


def _memory_cells(memory: Memory) -> list[Any]:
    """All that the table shows of it."""
    parts = [sorted((name, _gb(count)) for name, count in getattr(memory, phase).items()) for phase in PHASES]
    return [parts, _gb(memory.peak), _gb(memory.peak_mean)]


def _alike(estimates: Mapping[str, Estimate], shown: Callable[[Estimate], Any]) -> dict[str, Estimate]:
    """One estimate for all arms that show the same, under their names."""
    groups: dict[str, list[str]] = {}
    for name, found in estimates.items():
        groups.setdefault(repr(shown(found)), []).append(name)
    if len(groups) == 1 and len(estimates) > 1:
        return {"each arm": next(iter(estimates.values()))}
    return {", ".join(names): estimates[names[0]] for names in groups.values()}


def _time_table(estimates: Mapping[str, Estimate], seeds: int) -> Table:
    table = Table("arm", *(f"{gpu.name}, {gpu.memory / GB:.0f} GB" for gpu in GPUS))
    table.title = "Hours of one run with its examination (rollout, scoring, update, examination)"
    for name, found in _alike(estimates, lambda e: [_time_cell(e, gpu) for gpu in GPUS]).items():
        table.add_row(name, *(_time_cell(found, gpu) for gpu in GPUS))
    totals = [sum(seeds * e.seconds[gpu.name].total for e in estimates.values()) for gpu in GPUS]
    table.add_section()
    table.add_row(f"all {seeds * len(estimates)} runs", *(f"{total / 3600:,.2f}" for total in totals))
    return table


def _time_cell(found: Estimate, gpu: Gpu) -> str:
    spent = found.seconds[gpu.name]
    parts = (spent.rollout, spent.behaviour + spent.teacher, spent.update, spent.evaluation)
    shown = ", ".join(f"{part / 3600:,.2f}" for part in parts)
    fit = fit_text(found, gpu)
    return f"{spent.total / 3600:,.2f} ({shown})" + (f"\n{fit}" if fit else "")


def fit_text(found: Estimate, gpu: Gpu) -> str:
    """Whether a run fits on a kind of GPU, and what to change; empty where it does."""
    fit, batch = found.fits(gpu), found.fitting_batch(gpu)
    if fit == "yes":
        return ""
    advice = f"; safe with rollout.batch={batch}" if batch else ""
    return f"{'does not fit' if fit == 'no' else 'fits at the mean length only'}{advice}"


def assumption_lines(estimates: Mapping[str, Estimate], gpus: str = "one GPU") -> list[str]:
    """What was assumed and what was not counted. gpus: those of one run."""
    first = next(iter(estimates.values()))
    lines = [f"Arithmetic, not measurement; {gpus}; times are not estimated for a CPU. Assumed:"]
    lines += [f"- {f.metadata['meaning']}: {getattr(first.assumptions, f.name):g}" for f in fields(Assumptions)]
    lines.append(
        "- the longest response of each batch reaches its limit; padding, checkpoints and grading cost nothing"
    )
    shapes = {f"- {role}: {shape.source}" for e in estimates.values() for role, shape in _roles(e)}
    notes = [f"- not counted, {name}: {note}" for name, e in estimates.items() for note in e.notes]
    return [*lines, *sorted(shapes), *notes]


def _roles(found: Estimate) -> tuple[tuple[str, Shape], ...]:
    shapes = {"student's sizes": found.student, "teacher's sizes": found.teacher}
    return tuple((role, shape) for role, shape in shapes.items() if shape is not None)


def _gb(count: float) -> str:
    return f"{count / GB:,.2f}"
