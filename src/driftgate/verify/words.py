r"""A number as people write it: with a unit, a currency, a word before it, `x =`; and the number alone.

\text{The answer is } 28      \$27.00      x = 27^\circ      27\,\mathrm{km/h}      1\,234 dollars
"""

import re
from typing import NamedTuple

from .boxed import bare, plain_commas

_TEXT = re.compile(r"\\(?:text\w*|mbox|emph)\s*\{([^{}]*)\}")
_FONT = re.compile(r"\\(?:math(?:rm|bf|it|sf)|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}|\\(?:bf|rm|it|displaystyle)\b")
_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad\b|\\hspace\*?\{[^{}]*\}|\s+")
_DELIMITER = re.compile(r"\\[()\[\]]")
_CURRENCY = re.compile(r"\\?\$|[£€¥₹]|\\(?:pounds|euro|yen)\b")
_DEGREE = re.compile(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b|°")
_PERCENT_SIGN = re.compile(r"\\?%")
_PERCENT = re.compile(r"%|\b(?:percent(?:age)?|pct)\b", re.IGNORECASE)
_ORDINAL = re.compile(
    r"(?<=[0-9])\s*(?:\^\s*\{?\s*)?(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)(?![A-Za-z])[\s}]*"
    r"|\^\s*\{\s*\}"  # what \text{} leaves of another
)
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])")
_WHOLE = re.compile(r"([+-]?\s*[0-9]+)\.0*")
_RELATION = re.compile(r"[<>≠≤≥]|\\(?:ne|neq|not|lt|gt|le|ge|leq|geq|leqslant|geqslant|in|equiv|pmod|bmod|mod)\b")
_APPROXIMATELY = re.compile(r"\\approx\b|≈|\\simeq\b")

_UNITS = "cm|mm|km|kg|mg|ml|mL|ft|in|yd|mi|lbs?|oz|pts?|gal|hrs?|h|g|m|s|L|mph|kph|am|pm|Rs"
_PROSE = "is|of|in|at|by|to|an|we|he|it|so|as|on|if|a"
_FUNCTION = (
    "sqrt|cbrt|frac|sin|cos|tan|cot|sec|csc|log|exp|mod|gcd|lcm|min|max|abs|floor|ceil|binom|choose|pi|inf(?:inity)?"
)
_CALL = rf"(?:{_FUNCTION})\s*[(\[{{\\0-9]"  # without an argument "min" and "sec" are words
_WORD = re.compile(
    rf"(?<![\\A-Za-z])(?:(?:{_UNITS}|(?<![0-9)}}])(?:{_PROSE}))|(?!{_CALL})[A-Za-z]{{3,}}(?:['’-][A-Za-z]+)*)(?![A-Za-z])"
)
_TEXT_WORD = re.compile(rf"(?<![\\A-Za-z])(?!{_CALL})[A-Za-z]+(?:['’-][A-Za-z]+)*")
_NESTED = 3  # text groups within each other that are unwrapped
_GAP = "\ue000"  # where a word was
_GAPS = re.compile(
    rf"\(\s*{_GAP}\s*\)"  # a word in brackets
    rf"|{_GAP}\s*(?:\^\s*(?:\{{\s*-?[0-9]\s*\}}|-?[0-9])|[²³])"  # the power of a unit
    rf"|{_GAP}(?:[\s/.,:·*-]|\\cdot\b|\\,)*{_GAP}"
)
_ENDS = re.compile(rf"^(?:[\s:]*{_GAP}[\s:.,]*)+|(?:[\s,(]*{_GAP}[\s:.,)]*)+$")


class Number(NamedTuple):
    """A number without its words, in LaTeX; `percent` where a percent sign stood there."""

    text: str
    percent: bool


def unwrapped(content: str) -> str:
    r"""The content with the insides of \text{} and its like in place of them."""
    return _TEXT.sub(r" \1 ", content)


def number_in(content: str) -> Number | None:
    """The number alone, of the last side of an equation and the exact side of an approximation.

    None where there is none, or where variables or a second number are left.
    """
    exact, *rounded = _APPROXIMATELY.split(content)
    if rounded:
        return _number_in(exact) or _number_in(rounded[-1])
    return _number_in(content)


def _number_in(content: str) -> Number | None:
    """`number_in` of what has no sign of approximation."""
    if _RELATION.search(content):
        return None
    text = _without_words(content.rpartition("=")[2])
    if _GAP in text or not re.search("[0-9]", text) or has_variables(text):
        return None
    whole = _WHOLE.fullmatch(text)
    return Number(whole[1] if whole else text, _PERCENT.search(content) is not None)


def has_variables(text: str) -> bool:
    """Whether letters are left that are neither a LaTeX command nor the name of a function."""
    known = rf"\\[A-Za-z]+|(?<![A-Za-z])(?:{_FUNCTION})(?![A-Za-z])"
    return re.search("[A-Za-z]", re.sub(known, "", text)) is not None


def _without_words(content: str) -> str:
    """Units, currencies, prose and spacing taken off, thousands joined; _GAP where words stand between other things."""
    text = _PERCENT_SIGN.sub(" ", _DEGREE.sub(" ", _CURRENCY.sub("", plain_commas(content))))
    text = _ORDINAL.sub(" ", _SPACE.sub(" ", _DELIMITER.sub(" ", text)))
    for _ in range(_NESTED):
        text = _TEXT.sub(lambda group: f" {_TEXT_WORD.sub(_GAP, group[1])} ", text)
        text = _FONT.sub(lambda group: group[1] or " ", text)
    text = _WORD.sub(_GAP, text.replace("−", "-"))
    while (shorter := _GAPS.sub(_GAP, text)) != text:
        text = shorter
    text = _ENDS.sub("", text).strip()
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1]
    return _THOUSANDS.sub(lambda digits: re.sub("[, ]", "", digits[0]), bare(text))
