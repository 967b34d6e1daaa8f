"""Numbers, exact or within a tolerance."""

import re
from fractions import Fraction

from ..config.verify import NumberSettings
from .boxed import last_boxed, plain_commas
from .verifier import Verifier

LONGEST_NUMBER = 1_000
"""Characters beyond which a number is not read."""

_NUMBER = re.compile(
    r"(?<![A-Za-z_0-9])(?<![0-9]\.)"  # not inside a word or another number
    r"(?P<sign>[-+\u2212]?)"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?P<part>\.[0-9]+)?"
    r"(?P<power>[eE][-+]?[0-9]+)?"
)
LARGEST_POWER = 9_999
"""Powers of ten beyond which a number is not read: 1e999999999 would fill the memory."""


class WithinTolerance(Verifier):
    """Right where the response's number differs from the answer's by at most `tolerance`; both are fractions here, so
    0 compares exactly."""

    def __init__(self, settings: NumberSettings) -> None:
        self.tolerance = Fraction(str(settings.tolerance))

    def check(self, gold: str) -> None:
        if number_of(gold) is None:
            raise ValueError("holds no number")

    def grade(self, text: str, gold: str | None) -> bool:
        given, wanted = number_of(text), number_of(gold or "")
        return given is not None and wanted is not None and abs(given - wanted) <= self.tolerance

    def answer_of(self, text: str) -> str | None:
        number = number_of(text)
        return None if number is None else _spelled(number)


def number_of(text: str) -> Fraction | None:
    """The last number of the last box or, without a box, of the text; None if there is none.

    A number has ASCII digits, perhaps with commas between thousands, decimals, and a power of ten: 1,234.5 and 1.2e-3.
    A sign counts unless a letter or digit stands before it: 5-3 ends with 3. What stands around it (units, $, %) is not
    read, and neither is a slash: 3/4 ends with 4. Time linear in the text.
    """
    box = last_boxed(text)
    last = None
    for match in _NUMBER.finditer(plain_commas(text if box is None else box)):
        if match["whole"] or match["part"]:
            last = match
    if last is None or len(last.group()) > LONGEST_NUMBER:
        return None
    power = int((last["power"] or "e0")[1:])
    if abs(power) > LARGEST_POWER:
        return None
    size = Fraction((last["whole"] or "0").replace(",", "") + (last["part"] or "")) * Fraction(10) ** power
    return size if last["sign"] in ("", "+") else -size


def _spelled(number: Fraction) -> str:
    """Equal numbers have equal text; hexadecimal, as Python bounds the digits of decimal texts."""
    if number.denominator == 1 and abs(number) < 10**18:
        return str(number.numerator)
    return f"{number.numerator:x}/{number.denominator:x}"
