"""The interface of every rollout engine: token ids in and out, never text that is tokenised again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..data.response import Response
from ..models.policy import Policy


@dataclass(frozen=True)
class Request:
    """One prompt and the random keys (see `keyed.generator`) of its responses, one key per response."""

    prompt: tuple[int, ...]
    keys: tuple[tuple[int | str, ...], ...]
    teacher_prompt: tuple[int, ...] | None = None
    """The prompt for a teacher that takes part in sampling; None for the same ids."""

    @property
    def for_teacher(self) -> tuple[int, ...]:
        return self.prompt if self.teacher_prompt is None else self.teacher_prompt


@dataclass(frozen=True)
class Sampling:
    """Sampling settings."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]
    budget: float | None = None
    """Largest KL(mixture || student) per token, in nats, by which draws may lean towards the guide, see `blend`. None
    or 0 for no guide."""


class Engine(Protocol):
    """Samples responses from a model."""

    concurrent: bool
    """Whether `generate` may run in a thread while the student trains: it uses neither the policy nor the ranks."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """Responses of each request, in the order of its keys, each with the version that wrote it.

        Calls `advance(n)` when n more responses have ended.
        """
        ...

    def load(self, policy: Policy, version: int) -> None:
        """Sample from these weights from now on. version: optimiser updates that they have seen."""
        ...
