"""What every verifier can do."""

from collections.abc import Iterable
from typing import Self


class Verifier:
    """Says of a response whether it is right; each kind is a subclass in the file of its name.

    Use it inside a `with` block, which ends its process if it has one, and from one thread. Nothing that a response
    holds may raise or stop the run.
    """

    votes = True
    """Whether `answer_of` finds answers, so that samples can vote (maj@k)."""

    needs_answer = True
    """Whether a problem without an answer has no verdict."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process, where there is one."""

    def check(self, gold: str) -> None:
        """Raises ValueError, saying why, for an answer of a problem that no response could be compared with."""

    def grade(self, text: str, gold: str | None) -> bool:
        """Whether the response `text` is right. gold: the problem's answer; None only where `needs_answer` is
        false."""
        raise NotImplementedError

    def grade_many(self, pairs: Iterable[tuple[str, str | None]]) -> list[bool]:
        """One verdict for each (text, gold), in order; equal pairs are judged once."""
        known: dict[tuple[str, str | None], bool] = {}
        verdicts = []
        for pair in pairs:
            if pair not in known:
                known[pair] = self.grade(*pair)
            verdicts.append(known[pair])
        return verdicts

    def answer_of(self, text: str) -> str | None:
        """What the response answers, spelled so that equal answers are equal text; None for no answer."""
        return None
