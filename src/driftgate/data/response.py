"""One response as token ids, of the student, the teacher or a reference solution."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """One response."""

    ids: tuple[int, ...]
    """Token ids, with the stop token where one was sampled."""
    logprobs: tuple[float, ...]
    """The engine's log-probability of each id, in nats, at the sampling temperature, over the whole vocabulary.

    They are the teacher's for the first `prefix` ids, else the student's, even where an id was drawn from a mixture.
    """
    finished: bool
    """False for a response that was cut at the length limit (truncated)."""
    prefix: int = 0
    """Number of leading ids that the teacher wrote."""
    reference: bool = False
    """Whether this is a reference solution, which no model sampled."""
    version: int = 0
    """Optimiser updates that the weights which wrote it had seen."""
