"""Progress bars with the time left. Nothing is shown where the output is not a terminal."""

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
    """A display with one line per task: name, bar, count, time spent, time left, then the columns `more`."""
    what = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*what, *times, *more, console=console, disable=not console.is_terminal)
