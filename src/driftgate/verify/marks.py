r"""What math-verify leaves out of a comparison, and an answer must nevertheless share with its reference.

The base of a number (52_8), the power of a unit (cm^2), words that change a number ("negative 7"), and the number of
answers in the box. Units themselves are not compared: 27, $27 and 27 miles are one answer.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from .boxed import plain_commas
from .words import unwrapped

_BASE = re.compile(r"(?<=[0-9])[)}\s]*_\s*(?:\{\s*([^{}]*?)\s*\}|([0-9]+|.))")
_UNIT = re.compile(
    r"""(?<![A-Za-z\\'’])(?:(?P<before>sq(?:uare)?|cu(?:bic)?)[.\s]*)?
    (?:[mck]?m|in(?=[.\s}]*[\^²³])|ft|yd|mi|s|sec|units?  # "in" without a power is a preposition
    |inch(?:es)?|foot|feet|yards?|miles?|seconds?|(?:centi|milli|kilo)?met(?:er|re)s?)
    (?![A-Za-z])[.\s}]*(?:(?P<after>squared|cubed)|\^\s*\{?\s*(?P<power>-?[0-9]+)|(?P<raised>[²³]))?""",
    re.VERBOSE | re.IGNORECASE,
)
_POWERS = {"sq": "2", "cu": "3", "²": "2", "³": "3"}
_CHANGING = re.compile(
    r"(?<![a-z\\])(?:not|minus|negative|half|between"
    r"|(?:at (?:least|most)|up to|(?:more|less|greater|fewer) than)(?=[^a-z]*[0-9]))(?![a-z])"
)
_THOUSANDS = re.compile(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_TOKEN = re.compile(r"(?P<bracket>[()\[\]{}])|(?<!\\)[,;]|\\(?:lor|vee)\b|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_OPENING, _CLOSING = "([{", ")]}"


def agree(answer: str, reference: str) -> bool:
    """Whether bases, changing words and the number of answers are the same in both.

    A reference with several answers leaves their number to math-verify.
    """
    given, wanted = unwrapped(answer), unwrapped(reference)
    if bases(given) != bases(wanted) or _changes(given) != _changes(wanted):
        return False
    return several(reference) or parts(given) <= 1


def powers_agree(answer: str, reference: str) -> bool:
    """Whether the units of two numbers have the same powers, where both name a unit of length or time."""
    given, wanted = (unit_powers(unwrapped(content)) for content in (answer, reference))
    return given is None or wanted is None or given == wanted


def bases(content: str) -> list[str]:
    """The subscripts of numbers behind the last equals sign, but for ten: "52_{8}" gives ["8"]."""
    found = (braced or plain for braced, plain in _BASE.findall(content.rpartition("=")[2]))
    return [base for base in found if base != "10"]


def unit_powers(content: str) -> list[str] | None:
    """The powers other than one of the units of length and time, sorted; None where no such unit is named."""
    units = list(_UNIT.finditer(content))
    powers = (_power(unit) for unit in units)
    return sorted(power for power in powers if power != "1") if units else None


def _power(unit: re.Match[str]) -> str:
    words = unit["before"] or unit["after"] or unit["raised"]
    return (_POWERS.get(words) or _POWERS[words[:2].lower()]) if words else unit["power"] or "1"


def _changes(content: str) -> list[str]:
    return sorted(_CHANGING.findall(content.lower()))


def several(reference: str) -> bool:
    """Whether a reference may hold more than one answer: a separator at any depth, or plus-minus."""
    content = plain_commas(unwrapped(reference))
    return r"\pm" in content or any(_separators(content, deepest=len(content)))


def parts(content: str) -> int:
    """Answers side by side, outside brackets: pieces with a digit, or where there is none, pieces of any text."""
    content = plain_commas(content)
    cuts = [(0, 0), *_separators(content, deepest=0), (len(content), len(content))]
    pieces = [content[end:start] for (_, end), (start, _) in pairwise(cuts)]
    with_digits = sum(bool(re.search("[0-9]", piece)) for piece in pieces)
    return with_digits or sum(bool(piece.strip()) for piece in pieces)


def _separators(content: str, deepest: int) -> Iterator[tuple[int, int]]:
    """Start and end of each separator in at most so many brackets; a comma in thousands outside brackets is none."""
    inside_numbers = {at for number in _THOUSANDS.finditer(content) for at in range(*number.span())}
    depth = 0
    for token in _TOKEN.finditer(content):
        depth += (token["bracket"] in _OPENING) - (token["bracket"] in _CLOSING) if token["bracket"] else 0
        if not token["bracket"] and depth <= deepest and (depth or token.start() not in inside_numbers):
            yield token.span()
