"""A process for each way of making a step. It makes one step for each order, and reports what the step cost."""

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import measure
from clock import clocked, clocked_function

Step = dict[str, Any]
"""Cost of a step: `cpu_s`, `kernel`, `parts` (CPU-seconds of each part's calls in turn) and, but for TRL, `loss`."""
START = {False: "spawn", True: "fork"}
"""How a process starts, by `quick`. A fork has everything imported, but its memory is not its own alone."""


@dataclass
class WorkerEnd:
    """The process's end of the pipe: waits for orders and sends costs."""

    pipe: Any
    began: float = 0.0
    kernel: float = 0.0
    parts: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """CPU-seconds of each call of each part, in the current step."""

    def begin(self) -> int | None:
        """Wait for an order. Returns the passes over the rollout; None if there are no more steps."""
        passes = self.pipe.recv()
        for seconds in self.parts.values():
            seconds.clear()
        self.kernel, self.began = os.times().system, time.process_time()
        return passes

    def end(self, **more: float) -> None:
        """Send the step's cost."""
        spent = {"cpu_s": time.process_time() - self.began, "kernel": os.times().system - self.kernel}
        parts = {name: seconds for name, seconds in self.parts.items() if seconds}
        self.pipe.send(spent | {"parts": parts} | more)

    def send_memory(self, name: str, source: str) -> None:
        """The process's memory in MB. source: VmRSS or VmHWM, see `measure.memory_mb`."""
        self.pipe.send({name: measure.memory_mb(source)})

    def part(self, name: str):
        """A block that is a part of the step."""
        return clocked(self.parts[name])

    def as_part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call a part of the step."""
        return clocked_function(function, self.parts[name])


class Worker:
    """The benchmark's end: a process that makes the steps of one way."""

    def __init__(self, name: str, serve: Callable[..., None], setting: Any, quick: bool):
        """serve: called in the process with its WorkerEnd, the name and the setting."""
        context = multiprocessing.get_context(START[quick])
        self.name, (self.pipe, theirs) = name, context.Pipe()
        self.process = context.Process(target=serve, args=(WorkerEnd(theirs), name, setting), daemon=True)
        self.process.start()
        theirs.close()
        self.baseline: dict[str, float] | None = None

    def step(self, passes: int) -> Step:
        """Have one step made. The first waits until the models are loaded."""
        if self.baseline is None:
            self.baseline = self._received()
        self.pipe.send(passes)
        return self._received()

    def close(self) -> dict[str, float]:
        """End the process. Returns its `baseline_mb` and `peak_mb`."""
        self.pipe.send(None)
        peak = self._received()
        self.process.join()
        return (self.baseline or {}) | peak

    def _received(self) -> dict[str, Any]:
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.name} ended early; its own message is above") from None
