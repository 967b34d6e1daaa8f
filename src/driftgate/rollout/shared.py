"""Engines of several ranks: each writes a share, or rank 0 alone talks to servers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from ..data.response import Response
from ..errors import InputError, RunError
from ..models.policy import Policy
from ..serving.client import ServingError
from ..stop import Stopped
from ..world import World
from .engine import Engine, Request, Sampling
from .vllm_server import Sync, VLLMEngine

Result = TypeVar("Result")


class SharedEngine:
    """Every rank asks for all responses, writes its share of them, and gets all."""

    concurrent = False
    """All ranks have to take part."""

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


class LedEngine:
    """Rank 0 alone has the servers. All ranks gather the weights, ask for all responses, and get them."""

    concurrent = False
    """All ranks have to take part in `generate`."""

    def __init__(self, make: Callable[[], VLLMEngine], world: World):
        """make: called on rank 0 alone. Raises on every rank what it raises there."""
        self.world, self.made = world, []

        def begin() -> tuple[int, float | None]:
            self.made.append(make())
            return self.engine.context, self.engine.settings.tolerance

        self.context, self.tolerance = of_first(world, begin)

    @property
    def engine(self) -> VLLMEngine:
        """The one that talks to the servers; on rank 0 alone."""
        return self.made[0]

    def check_room(self, longest: int, new: int) -> None:
        of_first(self.world, lambda: self.engine.check_room(longest, new))

    def load(self, policy: Policy, version: int) -> None:
        sync = Sync.of(policy, self.context, self.tolerance)
        of_first(self.world, lambda: self.engine.send(sync, version))

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`. advance: called on rank 0 alone."""

        def call(count: int) -> None:
            if self.world.asked_to_stop:
                raise Stopped
            if advance is not None:
                advance(count)

        return of_first(self.world, lambda: self.engine.generate(requests, sampling, call))

    def close(self) -> None:
        for engine in self.made:
            engine.close()


def of_first(world: World, work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, where alone it is called. An error of the user, of servers or of the run is raised
    on every rank."""
    found, error = None, None
    if world.rank == 0:
        try:
            found = work()
        except (Stopped, InputError, RunError) as raised:
            kinds = Stopped, InputError, ServingError, RunError
            error = next(kind for kind in kinds if isinstance(raised, kind)), str(raised)
    found, error = world.share((found, error))[0]
    if error is not None:
        raise error[0](error[1])
    return cast(Result, found)


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
