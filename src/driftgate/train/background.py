"""Rollouts that servers write in the background, while the student learns."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import NamedTuple

from ..data.response import Response
from ..stop import Stopped, StopSignal
from ..world import World

Sampled = list[list[Response]]
Write = Callable[[Callable[[int], None]], Sampled]
"""Writes a batch. It is given a function that it calls with the number of responses that have ended, from any thread,
and that raises Stopped once the batch is not wanted any more."""


class Written(NamedTuple):
    """A batch that has come back."""

    sampled: Sampled
    seconds: float
    """It took to write."""


class Background:
    """Rank 0 alone writes, one batch at a time in the order of `start`; all ranks get what it wrote."""

    def __init__(self, world: World, advance: Callable[[int], None]):
        """advance: told of responses that have ended, from another thread."""
        self.world, self.advance = world, advance
        self.pool = ThreadPoolExecutor(1, "driftgate rollouts")
        self.futures: dict[int, Future[Written] | None] = {}
        self.left = threading.Event()

    def start(self, number: int, write: Write) -> None:
        """Begin a batch, after those that have begun before it."""

        def timed() -> Written:
            began = time.perf_counter()
            return Written(write(self._advance), time.perf_counter() - began)

        self.futures[number] = self.pool.submit(timed) if self.world.rank == 0 else None

    def take(self, number: int, stop: StopSignal) -> Written:
        """Wait for a batch. Raises on all ranks what writing it raised on rank 0, and Stopped where any was asked to
        stop; it then is still to be taken."""
        outcome = self.world.share(self._outcome(number, stop))[0]
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        del self.futures[number]
        return outcome

    def leave(self) -> None:
        """Give up what has begun and wait until the thread has ended."""
        self.left.set()
        self.pool.shutdown(cancel_futures=True)

    def _advance(self, responses: int) -> None:
        if self.left.is_set():
            raise Stopped
        self.advance(responses)

    def _outcome(self, number: int, stop: StopSignal) -> Written | Exception | None:
        """On rank 0 the batch, or why there is none; else None."""
        future = self.futures[number]
        if future is None:
            return None
        while True:
            if stop.requested or self.world.asked_to_stop:
                return Stopped()
            try:
                return future.result(timeout=0.1)
            except NotYet:
                if future.done():  # a time limit of its own
                    return future.exception()  # type: ignore[return-value]
            except Exception as error:
                return error
