"""An engine whose responses are written by all ranks, a share by each."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..data.response import Response
from ..models.policy import Policy
from ..stop import Stopped
from ..world import World
from .engine import Engine, Request, Sampling


class SharedEngine:
    """Every rank asks for all responses, writes its share of them, and gets all."""

    def __init__(self, engine: Engine, world: World):
        self.engine, self.world = engine, world

    def load(self, policy: Policy, version: int) -> None:
        self.engine.load(policy, version)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`. Where a rank was asked to stop (its `advance` raises Stopped), all stop.

        advance: told of this rank's responses alone, times the number of ranks.
        """
        own = share_of(requests, self.world.rank, self.world.size)
        written: list[list[Response]] = []
        stopped = False
        try:
            written = self.engine.generate(own, sampling, self._advancing(advance))
        except Stopped:
            stopped = True
            self.world.ask_to_stop()
        if self.world.agree(stopped):
            raise Stopped
        return _grouped(requests, self.world.share(written))

    def _advancing(self, advance: Callable[[int], None] | None) -> Callable[[int], None]:
        def call(count: int) -> None:
            if self.world.asked_to_stop:
                raise Stopped
            if advance is not None:
                advance(count * self.world.size)

        return call


def share_of(requests: Sequence[Request], rank: int, size: int) -> list[Request]:
    """A rank's share: consecutive responses, as many as others have, so that most prompts are encoded by one rank."""
    flat = [(index, key) for index, request in enumerate(requests) for key in request.keys]
    own = flat[rank * len(flat) // size : (rank + 1) * len(flat) // size]
    keys: dict[int, list] = {}
    for index, key in own:
        keys.setdefault(index, []).append(key)
    return [replace(requests[index], keys=tuple(part)) for index, part in keys.items()]


def _grouped(requests: Sequence[Request], shares: Sequence[list[list[Response]]]) -> list[list[Response]]:
    """The responses of all ranks, by request."""
    flat = iter([response for share in shares for group in share for response in group])
    return [[next(flat) for _ in request.keys] for request in requests]
