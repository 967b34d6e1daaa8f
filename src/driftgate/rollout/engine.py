"""What every rollout engine takes and gives: token ids, never text that is tokenised again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..data.response import Response
from ..models.policy import Policy


@dataclass(frozen=True)
class Request:
    """One prompt and the addresses (see `keyed.generator`) of the responses wanted for it."""

    prompt: tuple[int, ...]
    keys: tuple[tuple[int | str, ...], ...]
    teacher_prompt: tuple[int, ...] | None = None
    """The prompt as a teacher that takes part is shown it; None for the same ids."""

    @property
    def for_teacher(self) -> tuple[int, ...]:
        return self.prompt if self.teacher_prompt is None else self.teacher_prompt


@dataclass(frozen=True)
class Sampling:
    """How to draw."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]
    budget: float | None = None
    """KL(sampler || student) in nats that each token may spend on the guide, see `blend`; None or 0 for none."""


class Engine(Protocol):
    """Anything that samples from a model."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """Responses of each request, in order of its keys, each with the version that wrote it. `advance(n)` is called
        for every n responses that end."""
        ...

    def load(self, policy: Policy, version: int) -> None:
        """Sample from these weights from now on. version: optimiser updates that they have seen."""
        ...
