"""What every scorer does: say what a model thinks of the tokens of a rollout batch."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ..data.experience import Experience
from ..method.scores import Needs, TokenScores


class Scorer(Protocol):
    """The student, the teacher and the initial student are all scorers."""

    can: Needs
    """What it can score; more is refused before any compute."""

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """The scores of a batch's tokens, on the CPU. groups: the sequences to score, those of a group in forwards of
        their own; None for all of them together. Tokens of other sequences get 0."""
        ...
