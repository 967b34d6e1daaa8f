"""A study's jobs as tasks on a Ray cluster, with the face of `workers.Workers`.

Made for ray 2.60.
"""

import os
import signal
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from ..progress import advance_job, bars
from ..stop import Stopped
from ..workers import Killed
from .cluster import Place, check_nodes, connect, shared_place

TRIES = 3
"""How often a job is begun whose process is killed each time."""


@dataclass
class _Task:
    """A job that is not done yet."""

    name: str
    bar: Any
    work: Callable[..., Any]
    args: tuple[object, ...]
    done: Future[Any] = field(default_factory=Future)
    begun: int = 0


class RayWorkers:
    """At most `count` tasks at a time, each with `cpus` CPUs and, where nodes have GPUs and `gpu` is true, one GPU.

    Ctrl-C and SIGTERM end `wait` with KeyboardInterrupt; the tasks then save and stop. A job whose process is killed is
    begun again, on any node, and so resumes. out: a folder that every node must see.
    Raises InputError before any compute: see `connect` and `check_nodes`.
    """

    def __init__(self, console: Console, count: int, out: Path, cpus: int = 1, gpu: bool = True):
        self.count, self.console, self.progress = count, console, bars(console)
        self.waiting: deque[_Task] = deque()
        self.running: dict[Any, _Task] = {}
        self.jobs: list[Future[Any]] = []
        self.stopping = False
        with ExitStack() as stack:
            previous = signal.getsignal(signal.SIGTERM)
            stack.callback(lambda: signal.signal(signal.SIGTERM, previous))  # Ray sets its own
            self.ray = connect()
            stack.callback(self.ray.shutdown)
            self.place = stack.enter_context(shared_place(out))
            gpus = int(gpu and self.ray.cluster_resources().get("GPU", 0) > 0)
            check_nodes(self.ray, self.place, cpus, gpus)
            self._call = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")(
                _begin
            )
            self.tally = self._make_tally()
            self.stack = stack.pop_all()

    def __enter__(self) -> "RayWorkers":
        signal.signal(signal.SIGTERM, _interrupt)
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what runs, and wait until it has saved."""
        self.stopping = True
        try:
            for task in self.waiting:
                task.done.cancel()
            self.waiting.clear()
            for reference in self.running:
                self.ray.cancel(reference)
            while self.running:
                self._collect()
        finally:
            self.progress.stop()
            self.stack.close()

    def start(self, name: str, total: int, work: Callable[..., Any], *args: object) -> Future[Any]:
        """Call work(*args, advance) in a task; `advance(n)` moves its bar by n of `total`."""
        task = _Task(name, self.progress.add_task(name, total=total, visible=False), work, args)
        self.waiting.append(task)
        self.jobs.append(task.done)
        return task.done

    def wait(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Wait until all jobs are done. Raises what a job raised, and Killed where all tries were killed.

        advance(n): called at every job's progress.
        """
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.count:
                self._send(self.waiting.popleft())
            self._show(advance)
            self._collect()
        self._show(advance)
        for job in self.jobs:
            job.result()

    def _make_tally(self) -> Any:
        """On this node, so that it does not end with another one."""
        here = self.ray.get_runtime_context().get_node_id()
        near = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        return self.ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=near)(Tally).remote()

    def _send(self, task: _Task) -> None:
        task.begun += 1
        reference = self._call.remote(self.place, task.work, task.args, Advance(self.tally, task.bar))
        self.running[reference] = task

    def _show(self, advance: Callable[[int], None]) -> None:
        """Move the bars by what tasks have counted since the last time."""
        try:
            counts = self.ray.get(self.tally.take.remote(), timeout=10)
        except self.ray.exceptions.RayError:
            return  # bars are worth no failure
        for bar, count in counts.items():
            advance_job(self.progress, bar, count, len(self.jobs))
            advance(count)

    def _collect(self) -> None:
        """Take in the tasks that end within a moment."""
        ended, _ = self.ray.wait(list(self.running), timeout=0.2)
        for reference in ended:
            self._end(self.running.pop(reference), reference)

    def _end(self, task: _Task, reference: Any) -> None:
        try:
            task.done.set_result(self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Stopped):
                self._lose(task)
            else:
                task.done.set_exception(error.cause)
        except self.ray.exceptions.RayError:  # the process or its node is gone, or the task was cancelled
            self._lose(task)

    def _lose(self, task: _Task) -> None:
        """A task that did not end by itself: begin it again, unless the user stops the study."""
        if self.stopping:
            task.done.set_exception(Stopped())
        elif task.begun < TRIES:
            self.waiting.appendleft(task)
            self._say(f"{task.name}: its process was killed; it is begun again ({task.begun} of {TRIES - 1})")
        else:
            why = f"its process was killed {TRIES} times, perhaps for want of memory; run the command again"
            self._say(f"{task.name}: FAILED: {why}")
            task.done.set_exception(Killed(why))

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _begin(place: Place, work: Callable[..., Any], args: tuple[object, ...], advance: "Advance") -> Any:
    """On a node: call `work` as `Workers` does, in the folder of the command and with one thread."""
    place.enter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
    return work(*args, advance)


class Tally:
    """Runs on the user's node: what the tasks have done since it was last asked, by bar."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()

    def add(self, bar: Any, count: int) -> None:
        self.counts[bar] += count

    def take(self) -> Counter[Any]:
        taken, self.counts = self.counts, Counter()
        return taken


@dataclass(frozen=True)
class Advance:
    """Sends a task's progress to the tally. It does not wait for an answer."""

    tally: Any
    bar: Any

    def __call__(self, count: int) -> None:
        self.tally.add.remote(self.bar, count)
