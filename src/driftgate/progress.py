"""Progress bars with the time left. Nothing is shown where the output is not a terminal."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bars(console: Console, *more: ProgressColumn) -> Progress:
    """A display with one line per task: name, bar, count, time spent, time left, then the columns `more`."""
    what = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*what, *times, *more, console=console, disable=not console.is_terminal)


VISIBLE_BARS = 6
"""Up to so many jobs, the bars of finished jobs stay visible. With more, only those of running jobs."""


def advance_job(progress: Progress, bar: TaskID, count: int, jobs: int) -> None:
    """Move the bar of one of so many jobs."""
    progress.update(bar, advance=count, visible=True)
    for task in progress.tasks:
        if task.finished and jobs > VISIBLE_BARS:
            progress.update(task.id, visible=False)
