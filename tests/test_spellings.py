"""One answer in its usual spellings, other answers that look like it, and the references of real benchmarks."""

import json
import random
from itertools import product
from pathlib import Path

import pytest

from driftgate.verify.boxed import canonical_integer
from driftgate.verify.grading import Grader
from driftgate.verify.marks import bases, several
from driftgate.verify.words import number_in

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BENCHMARKS = ("math500", "gsm8k", "amc23", "aime24", "aime25")

NUMBERS = {
    "27": ["27", "27.0", "27.00", "+27", "027"],
    "-4": ["-4", "-4.0", "- 4", "−4"],
    "1234": ["1234", "1,234", "1{,}234", r"1,\!234", r"1\,234", "1 234", "1,234.00"],
    "70000": ["70000", "70,000", r"70\ 000", "70000."],
}
"""A reference and the same number otherwise written."""

UNITS = [
    *("", r"\text{miles}", r"\text{ cm}^2", r"\text{ square feet}", r"\mathrm{~km}", r"\mathrm{km/h}", r"\mbox{ m}^{3}"),
    *(r"\text{ m/s}^2", r"\text{ miles per hour}", r"\text{ (hours)}", r"^\circ", r"^{\circ}", "°", r"\%", "%"),
    *(" dollars", " cm", r"\text{ percent}", r"\textbf{ apples}", r"^\text{th}"),
]
SPACES = ["", r"\,", r"\ ", "~", r"\;"]
WRAPPERS = [
    *("{}", "${}$", r"\({}\)", "{}.", "x = {}", r"\text{Total} = {}", r"\text{The answer is } {}", "The answer is {}"),
    *(r"\displaystyle {}", r"\${}", "${}", r"3 \cdot 9 = {}", r"\angle ABC = {}", r"\approx {}"),
]
WHOLE = [r"\text{{{}}}", r"\textbf{{{}}}", r"\mathbf{{{}}}", r"\boldsymbol{{{}}}", r"\text{{{} miles}}", r"\text{{\${}}}"]
WHOLE += [r"\frac{{{}}}{{1}}", r"\left({}\right)", "{{{}}}", r"{}_{{10}}"]
"""Wrappers that braces of a unit must not enter."""


def spellings(gold):
    """Every number x unit x space x wrapper, and every number in the wrappers that take no unit."""
    for number in NUMBERS[gold]:
        yield from (wrapper.format(number) for wrapper in WHOLE)
        number = number.removesuffix(".")
        for unit, space in product(UNITS, SPACES):
            yield from (wrapper.replace("{}", number + space + unit) for wrapper in WRAPPERS)


def box(content):
    return rf"so the answer is $\boxed{{{content}}}$."


@pytest.fixture(scope="module")
def grader():
    with Grader() as shared:
        yield shared


def refused(grader, contents, gold):
    verdicts = grader.grade_many([(box(content), gold) for content in contents])
    return [content for content, right in zip(contents, verdicts) if not right]


def accepted(grader, contents, gold):
    wrong = set(refused(grader, contents, gold))
    return [content for content in contents if content not in wrong]


@pytest.mark.parametrize("gold", NUMBERS)
def test_an_integer_is_right_in_its_usual_spellings(grader, gold):
    """28,200 spellings of four integers, 26,540 of them different texts; none passes for the next integer."""
    contents = list(spellings(gold))
    assert sum(len(list(spellings(each))) for each in NUMBERS) == 28_200
    assert refused(grader, contents, gold) == []
    assert accepted(grader, contents, str(int(gold) + 1)) == []


@pytest.mark.parametrize("gold", [r"\frac{54}{2}", "27^\\circ", r"\$27", r"27\text{ miles}", "27.0"])
def test_the_reference_may_be_spelled_as_freely(grader, gold):
    """A sample of 200 spellings of 27: the verdict does not depend on whether the reference is a plain integer."""
    contents = random.Random(0).sample(sorted(set(spellings("27"))), 200)
    contents = [content for content in contents if "m}" not in content]  # powers of units are compared
    assert refused(grader, contents, gold) == []
    assert accepted(grader, ["28", r"28\text{ miles}", "27.01", r"\frac{54}{3}", "-27", "x"], gold) == []
