"""Ctrl-C and SIGTERM: the run finishes what cannot be cut, saves, and ends; a second one ends it at once."""

import signal
from types import FrameType


class Stopped(Exception):  # noqa: N818 - being asked to stop is no error
    """The run was asked to stop; its state is saved."""


class StopSignal:
    """Use as a context around a run; `check()` raises Stopped once a signal has come."""

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
