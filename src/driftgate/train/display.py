"""What a run shows on the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import TextColumn

from ..progress import bars


class Display:
    """On a terminal: a progress bar with the time left. In a log file: one line per step."""

    def __init__(self, console: Console, steps: int, done: int, advance: Callable[[int], None] | None = None):
        """steps: of the whole run; done: those of earlier sessions; advance: called with each number of steps done."""
        self.console, self.steps, self.report = console, steps, advance or (lambda steps: None)
        self.report(done)
        self.progress = bars(console, TextColumn("{task.fields[note]}"))
        self.steps_bar = self.progress.add_task("steps", total=steps, completed=done, note="")
        self.responses_bar = self.progress.add_task("responses", total=None, visible=False, note="")

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def rollout(self, responses: int) -> None:
        """A rollout begins; it will have so many responses."""
        self.progress.reset(self.responses_bar, total=responses, visible=True)

    def advance(self, responses: int) -> None:
        """So many more responses have ended."""
        self.progress.advance(self.responses_bar, responses)

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step has ended. metrics: of its rollout and its last update. step: steps done so far."""
        shown = ("loss", "correct", "gate_mean", "gate_min", "drift_abs", "tokens_mean", "truncated")
        parts = [f"{name} {metrics[name]:.3g}" for name in shown if metrics.get(name) is not None]
        self.report(1)
        self.progress.update(self.steps_bar, completed=step, note="  ".join(parts[:2]))
        if not self.console.is_terminal:
            self.console.print(f"step {step}/{self.steps}  {'  '.join(parts)}", highlight=False, soft_wrap=True)
