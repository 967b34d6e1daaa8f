"""`driftgate train RECIPE --dry-run`: what a run would take, and what would save memory. Starts and loads nothing."""

from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config import TrainConfig
from .estimate import Estimate, estimate_of, workload_of
from .gpus import GB, GPUS
from .savings import all_together, bytes_text, savings
from .table import assumption_lines, fit_text, memory_table
from .time import Seconds
from .workload import Workload

ABOUT_SAVINGS = (
    "Each setting is taken alone, the last line is all of its settings at once; every response is at its limit. "
    "A setting saves nothing at the peak while another phase has it."
)


def print_training(config: TrainConfig, console: Console, mean_length: float, processes: int = 1) -> None:
    """Tokens of a step, memory by component, time by kind of GPU, savings, assumptions.

    mean_length: of a response, as a fraction of its limit. processes: that train together, each on its GPU. Raises
    InputError for a length out of range, and for a model whose sizes are not known.
    """
    work = workload_of(config, mean_length, processes=processes)
    found = estimate_of(work)
    gpus = "one GPU" if processes == 1 else f"{processes} GPUs"
    models = ", ".join(
        f"{role} of {shape.parameters / 1e9:.3g} B parameters"
        for role, shape in {"student": work.student, **work.teachers}.items()
    )
    console.print(f"{models}; {config.steps} steps on {gpus}; nothing is started", highlight=False)
    column = {"one GPU" if processes == 1 else "each GPU": found}
    for part in (_token_table(work), memory_table(column), _time_table(config, found), savings_table(work)):
        console.print(part)
    console.print(ABOUT_SAVINGS, highlight=False)
    for line in assumption_lines({"this run": found}, gpus):
        console.print(line, highlight=False)


def memory_savings(config: TrainConfig, processes: int = 1) -> list[tuple[str, float]]:
    """(setting, bytes of one GPU) for each setting that would save memory at the peak, the one that saves most first.

    Raises InputError for a model whose sizes are not known.
    """
    found = savings(workload_of(config, mean_length=1.0, processes=processes))
    return [(each.setting, each.saved) for each in found if each.saved > 0]


def savings_table(work: Workload) -> Table:
    """Each setting with the bytes that it saves at the peak, alone; then all that leave the training as it is."""
    table = Table("setting", "saved at the peak", title="What would save memory")
    for each in savings(work):
        table.add_row(escape(each.setting), bytes_text(each.saved))
    together = all_together(work)
    if together.setting:
        table.add_section()
        table.add_row(escape(together.setting), bytes_text(together.saved))
    return table


def _token_table(work: Workload) -> Table:
    """Responses and response tokens."""
    table = Table("", "responses", "rollout", "at most", "trained", "teacher's", title="Response tokens")
    steps = work.config.steps
    for name, count in {"a step": 1, "the run": steps}.items():
        tokens = [work.tokens.rollout, steps * work.responses * work.limit, work.tokens.trained, work.tokens.teacher]
        shown = [f"{total * count / steps:,.0f}" for total in (steps * work.responses, *tokens)]
        table.add_row(name, *shown)
    return table


def _time_table(config: TrainConfig, found: Estimate) -> Table:
    table = Table("GPU", "seconds of a step", "rollout", "scoring", "update", "hours of the run", "memory")
    table.title = "Time at the mean length"
    for gpu in GPUS:
        spent = found.seconds[gpu.name]
        parts = (_training(spent), spent.rollout, spent.behaviour + spent.teacher, spent.update)
        shown = [f"{part / config.steps:,.3g}" for part in parts]
        table.add_row(
            f"{gpu.name}, {gpu.memory / GB:.0f} GB",
            *shown,
            f"{_training(spent) / 3600:,.3g}",
            fit_text(found, gpu) or "fits",
        )
    return table


def _training(spent: Seconds) -> float:
    """Without the examination."""
    return replace(spent, evaluation=0.0).total
