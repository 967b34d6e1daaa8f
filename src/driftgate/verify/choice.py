"""The letter of a multiple choice."""

import re

from .boxed import last_boxed
from .verifier import Verifier

_SOLE = re.compile(r"[\s*_$(\[]*([A-Z])[\s*_$)\].:]*")
_BOX = re.compile(r"[\s*_$(\[]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[\s(]*([A-Z])[\s)]*\}?[\s*_$)\].:]*")
_SAID = re.compile(
    r"\banswer\b[\s*_]{0,9}(?::|is:?)[\s*_$]{0,9}"
    r"(?:(?:option|choice)[\s*_]{1,9})?"
    r"(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<bare>[A-Z])(?=[*_$]{0,4}(?:[.,;:)!]|\s*(?:\n|\Z))))",
    re.IGNORECASE | re.ASCII,
)


class Choice(Verifier):
    """Right where the response names the answer's letter and no other.

    A response names a letter by three rules, and one that names two different letters by them is wrong:
    1. Its last box holds a letter A to Z and nothing else but brackets, a full stop or a font: (B), B., \\text{B}. A
       response whose last box holds anything else is wrong.
    2. Each "answer is", "answer:" or "answer is:" (also with "option" or "choice") that is followed by (B), or by a B
       with punctuation or the end of the line behind it. A letter without brackets must be a capital.
    3. Its last line that is not blank is a sole capital letter, perhaps in brackets or bold.
    """

    def check(self, gold: str) -> None:
        if _letter(gold) is None:
            raise ValueError("is no letter from A to Z")

    def grade(self, text: str, gold: str | None) -> bool:
        given = self.answer_of(text)
        return given is not None and given == _letter(gold or "")

    def answer_of(self, text: str) -> str | None:
        named = set()
        if (box := last_boxed(text)) is not None:
            match = _BOX.fullmatch(box[:100])
            if match is None:
                return None
            named.add(match[1])
        named |= {found for match in _SAID.finditer(text) if (found := _said(match)) is not None}
        lines = text.rstrip().rpartition("\n")[2]
        if match := _SOLE.fullmatch(lines[:100]):
            named.add(match[1])
        return named.pop() if len(named) == 1 else None


def _letter(gold: str) -> str | None:
    match = _SOLE.fullmatch(gold.strip().upper())
    return match[1] if match else None


def _said(match: re.Match[str]) -> str | None:
    """The letter of rule 2; the words before it may have any case, a bare letter may not."""
    if match["bracketed"]:
        return match["bracketed"].upper()
    return match["bare"] if match["bare"].isupper() else None
