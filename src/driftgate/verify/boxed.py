r"""The last \boxed{} of a text, and integers written plainly in it."""

import re
from collections import deque

LONGEST_ANSWER = 2_000
"""Characters in a box beyond which only a plain integer is read. References have tens, floods of digits millions."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not a group
_INTEGER = re.compile(r"([+-]?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)")
_COMMA = re.compile(r"\{,\}|,\\!\s*")  # a thousands comma as LaTeX sets it without a gap
_STOP = re.compile(r"(?<!\\right)(?<!\.)\.$")  # neither an invisible delimiter nor an ellipsis
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} or \fbox{...}; None if there is none or its braces never close.

    Of nested boxes the innermost counts. Time linear in the text.
    """
    for box in deque(_BOX.finditer(text), maxlen=1):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[box.end() : brace.start()]
    return None


def canonical_integer(content: str) -> str | None:
    """The sign and digits of an integer written in ASCII, or None: "007", "$7$" and "+7" all give "7".

    Thousands may be set off by commas, also in LaTeX's spellings `{,}` and `,` before a thin negative space.
    Stays text, since int() refuses beyond 4300 digits; time linear in the content.
    """
    match = _INTEGER.fullmatch(plain_commas(bare(content)))
    if match is None:
        return None
    digits = match[2].replace(",", "").lstrip("0")
    return ("-" if match[1] == "-" else "") + digits if digits else "0"


def answer_of(text: str) -> str | None:
    r"""What a text answers, for comparing answers with each other: the content of its last box, an integer as its
    digits, else without surrounding space, math delimiters and full stops, cut at LONGEST_ANSWER characters.

    None without a box, or with an empty one.
    """
    content = last_boxed(text)
    if content is None:
        return None
    return canonical_integer(content[:LONGEST_ANSWER]) or bare(content)[:LONGEST_ANSWER] or None


def plain_commas(content: str) -> str:
    """LaTeX's two spellings of a comma without a gap as a plain comma."""
    return _COMMA.sub(",", content)


def bare(content: str) -> str:
    """The content without surrounding space, one pair of math delimiters, and final full stops."""
    content = _STOP.sub("", content.strip())
    for opening, closing in _DELIMITERS:
        inside = content.removeprefix(opening).removesuffix(closing)
        if len(inside) == len(content) - len(opening) - len(closing) and closing not in inside:
            return _STOP.sub("", inside.strip())
    return content
