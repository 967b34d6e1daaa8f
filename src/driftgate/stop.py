"""Ctrl-C and SIGTERM. At the first one, the run stops at its next check and saves. At a second one, it ends at once."""

import signal
from types import FrameType


class Stopped(Exception):  # noqa: N818 - a stop at the user's wish is not an error
    """The user stopped the run; its state is saved."""


class StopSignal:
    """A context manager around a run. `check()` raises Stopped once a signal has arrived."""

    Stopped = Stopped

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self.requested:
            raise Stopped

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self.previous[signal.Signals(number)])
