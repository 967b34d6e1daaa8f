"""What every rollout engine takes and gives: token ids, never text that is tokenised again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One prompt and the addresses (see `keyed.generator`) of the responses wanted for it."""

    prompt: tuple[int, ...]
    keys: tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True)
class Response:
    """One sampled answer."""

    ids: tuple[int, ...]
    """Token ids, the stop token included where one was drawn."""
    logprobs: tuple[float, ...]
    """The engine's own log-probability of each id, in nats, at the sampling temperature, over the whole vocabulary."""
    finished: bool
    """False for a response that was cut at the limit (truncated)."""


@dataclass(frozen=True)
class Sampling:
    """How to draw."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]


class Engine(Protocol):
    """Anything that samples from the student's current weights."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """Responses of each request, in order of its keys. `advance(n)` is told of every n responses that end."""
        ...
