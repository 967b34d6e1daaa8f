"""Jobs in separate processes, each with a progress bar."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from queue import Empty
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from .progress import advance_job, bars
from .stop import Stopped


class Killed(Exception):  # noqa: N818 - named by what happened, as `Stopped`
    """A job's process ended before the job did."""


class Workers:
    """A pool of `count` processes, each with one CPU thread and, where there are GPUs, one GPU.

    A process keeps its GPU for all its jobs. With fewer GPUs than processes, several share one. Ctrl-C reaches the jobs
    directly; SIGTERM is passed on to them. Both end `wait` with KeyboardInterrupt.
    """

    def __init__(self, console: Console, count: int = 2):
        context = multiprocessing.get_context("spawn")
        self.manager = context.Manager()
        self.others = set(multiprocessing.active_children())
        self.advances = self.manager.Queue()
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
        """Call work(*args, advance) in a separate process; `advance(n)` moves its bar by n of `total`."""
        bar = self.progress.add_task(name, total=total, visible=False)
        job = self.pool.submit(_unless_stopped, work, *args, _Advance(self.advances, bar))
        self.jobs.append(job)
        return job

    def wait(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Wait until all jobs are done. Raises what a job raised, and Killed where a process was killed: it ends all.

        advance(n): called at every job's progress.
        """
        while not all(job.done() for job in self.jobs) or not self.advances.empty():
            with contextlib.suppress(Empty):
                bar, count = self.advances.get(timeout=0.2)
                advance_job(self.progress, bar, count, len(self.jobs))
                advance(count)
        try:
            for job in self.jobs:
                job.result()
        except BrokenProcessPool:
            raise Killed("its process was killed, perhaps for want of memory; run the command again") from None

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.terminate()
        raise KeyboardInterrupt


def _begin(places: Any) -> None:
    """Runs in a process before its first job: sets its GPU and its one thread."""
    place = places.get()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = gpus.split(",") if gpus else [str(number) for number in range(torch.cuda.device_count())]
    if known:
        os.environ["CUDA_VISIBLE_DEVICES"] = known[place % len(known)]
    torch.set_num_threads(1)


_stopped = False


def _unless_stopped(work: Callable[..., Any], *args: object) -> Any:
    """Call `work`. In a process that was stopped, jobs that the pool has already sent to it do not start."""
    global _stopped
    if _stopped:
        raise Stopped
    try:
        return work(*args)
    except (Stopped, KeyboardInterrupt):
        _stopped = True
        raise


@dataclass(frozen=True)
class _Advance:
    """Sends a job's progress from its process to the bar."""

    advances: Any
    bar: Any

    def __call__(self, count: int) -> None:
        self.advances.put((self.bar, count))
