"""One answer as token ids, whoever wrote it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """One sampled answer."""

    ids: tuple[int, ...]
    """Token ids, the stop token included where one was drawn."""
    logprobs: tuple[float, ...]
    """The engine's own log-probability of each id, in nats, at the sampling temperature, over the whole vocabulary.

    The student's, whatever mixture the id was drawn from; the teacher's for the first `prefix` ids.
    """
    finished: bool
    """False for a response that was cut at the limit (truncated)."""
    prefix: int = 0
    """Leading ids that the teacher wrote."""
    reference: bool = False
    """Whether this is a reference solution, which no model wrote."""
    version: int = 0
    """Optimiser updates that the weights had seen which wrote it."""
