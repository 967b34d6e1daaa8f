"""Progress bars with the time left; nothing where the output is no terminal."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bars(console: Console, *more: ProgressColumn) -> Progress:
    """A display of tasks: name, bar, count, time spent, time left, and further columns."""
    what = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*what, *times, *more, console=console, disable=not console.is_terminal)
