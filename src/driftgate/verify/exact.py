"""Text that is equal, character by character."""

from ..config.verify import ExactSettings
from .boxed import last_boxed
from .verifier import Verifier


class Exact(Verifier):
    """Right where the compared part of the response and the problem's answer are the same text, without the white space
    around them and, with `fold_case`, without upper and lower case (str.casefold).

    The part is the whole response, the content of its last box, or the rest of the line behind the last `after`. An
    empty part is no answer, and wrong.
    """

    def __init__(self, settings: ExactSettings) -> None:
        self.settings = settings

    def check(self, gold: str) -> None:
        if not gold.strip():
            raise ValueError("is empty, and an empty response is never right")
        if self.settings.after is not None and "\n" in gold.strip():
            raise ValueError("has several lines, but verify.after reads one")

    def grade(self, text: str, gold: str | None) -> bool:
        return gold is not None and self.answer_of(text) == self._folded(gold)

    def answer_of(self, text: str) -> str | None:
        part = self._part(text)
        return None if part is None else self._folded(part) or None

    def _part(self, text: str) -> str | None:
        if self.settings.part == "box":
            return last_boxed(text)
        if self.settings.after is None:
            return text
        _, marker, rest = text.rpartition(self.settings.after)
        return rest.partition("\n")[0] if marker else None

    def _folded(self, text: str) -> str:
        return text.strip().casefold() if self.settings.fold_case else text.strip()
