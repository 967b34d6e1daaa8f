"""Jobs in processes of their own, each with a progress bar."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from queue import Empty
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from .progress import bars
from .stop import Stopped


class Workers:
    """So many processes; on a CPU of one thread each, on GPUs of one GPU each.

    A job is handed the GPU that its process was given for good; with fewer GPUs than processes they share. Ctrl-C
    reaches the jobs by itself, SIGTERM is passed on to them; both end the wait with KeyboardInterrupt.
    """

    SHOWN = 6
    """Jobs whose bars stay in sight when they are done; of more, only those that run."""

    def __init__(self, console: Console, count: int = 2):
        context = multiprocessing.get_context("spawn")
        self.manager = context.Manager()
        self.others = set(multiprocessing.active_children())
        self.told = self.manager.Queue()
        places = self.manager.Queue()
        for place in range(count):
            places.put(place)
        self.pool = ProcessPoolExecutor(count, context, _begin, (places,))
        self.jobs: list[Future[Any]] = []
        self.progress = bars(console)

    def __enter__(self) -> "Workers":
        self.previous = signal.signal(signal.SIGTERM, self._terminate)
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)
        self.pool.shutdown(cancel_futures=True)
        self.manager.shutdown()
        self.progress.stop()

    def start(self, name: str, total: int, work: Callable[..., Any], *args: object) -> Future[Any]:
        """work(*args, tell) in a process of its own; `tell(n)` moves its bar on."""
        bar = self.progress.add_task(name, total=total, visible=False)
        job = self.pool.submit(_unless_stopped, work, *args, _Teller(self.told, bar))
        self.jobs.append(job)
        return job

    def wait(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Until all jobs are done. Raises what a job raised. advance: is told of every job's progress."""
        while not all(job.done() for job in self.jobs) or not self.told.empty():
            with contextlib.suppress(Empty):
                bar, count = self.told.get(timeout=0.2)
                self.progress.update(bar, advance=count, visible=True)
                advance(count)
            for task in self.progress.tasks:
                if task.finished and len(self.jobs) > self.SHOWN:
                    self.progress.update(task.id, visible=False)
        for job in self.jobs:
            job.result()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.terminate()
        raise KeyboardInterrupt


def _begin(places: Any) -> None:
    """In a process before its first job."""
    place = places.get()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = gpus.split(",") if gpus else [str(number) for number in range(torch.cuda.device_count())]
    if known:
        os.environ["CUDA_VISIBLE_DEVICES"] = known[place % len(known)]
    torch.set_num_threads(1)


_stopped = False


def _unless_stopped(work: Callable[..., Any], *args: object) -> Any:
    """In a worker process that has been stopped, the jobs that are already on their way to it do not begin."""
    global _stopped
    if _stopped:
        raise Stopped
    try:
        return work(*args)
    except (Stopped, KeyboardInterrupt):
        _stopped = True
        raise


@dataclass(frozen=True)
class _Teller:
    """Carries a job's progress out of its process."""

    told: Any
    bar: Any

    def __call__(self, count: int) -> None:
        self.told.put((self.bar, count))
