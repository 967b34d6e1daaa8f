"""One answer in its usual spellings, other answers that look like it, and the references of real benchmarks."""

import json
import random
import re
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
    "70000": ["70000", "70,000", r"70\ 000"],
}
"""A reference and the same number otherwise written."""

UNITS = [
    *(
        "",
        r"\text{miles}",
        r"\text{ cm}^2",
        r"\text{ square feet}",
        r"\mathrm{~km}",
        r"\mathrm{km/h}",
        r"\mbox{ m}^{3}",
    ),
    *(r"\text{ m/s}^2", r"\text{ miles per hour}", r"\text{ (hours)}", r"^\circ", r"^{\circ}", "°", r"\%", "%"),
    *(" dollars", " cm", r"\text{ percent}", r"\textbf{ apples}", r"^\text{th}"),
]
SPACES = ["", r"\,", r"\ ", "~"]
WRAPPERS = [
    *("{}", "${}$", r"\({}\)", "{}.", "x = {}", r"\text{Total} = {}", r"\text{The answer is } {}", "The answer is {}"),
    *(r"\displaystyle {}", r"\${}", "${}", r"3 \cdot 9 = {}", r"\angle ABC = {}", r"\approx {}"),
]
WHOLE = [
    *(r"\text{@}", r"\textbf{@}", r"\mathbf{@}", r"\boldsymbol{@}", r"\text{@ miles}", r"\text{\$@}", "{@}"),
    *(r"\frac{@}{1}", r"\left(@\right)", "@_{10}"),
]
"""Wrappers that take no unit; @ is the number."""


def spellings(gold):
    """Every number x unit x space x wrapper, and every number in the wrappers that take no unit."""
    for number in NUMBERS[gold]:
        yield from (wrapper.replace("@", number) for wrapper in WHOLE)
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


def test_the_counts_are_those_that_are_said():
    assert len({content for gold in NUMBERS for content in spellings(gold)}) == 21_470
    assert sum(len(answers.split(" | ")) for answers in FALSE_ACCEPTS.values()) == 121


@pytest.mark.parametrize("gold", NUMBERS)
def test_an_integer_is_right_in_its_usual_spellings(grader, gold):
    """21,470 spellings of four integers, all different texts; none passes for the next integer."""
    contents = list(spellings(gold))
    assert refused(grader, contents, gold) == []
    assert accepted(grader, contents, str(int(gold) + 1)) == []


@pytest.mark.parametrize("gold", [r"\frac{54}{2}", "27^\\circ", r"\$27", r"27\text{ miles}", "27.0"])
def test_the_reference_may_be_spelled_as_freely(grader, gold):
    """A sample of 200 spellings of 27: the verdict does not depend on whether the reference is a plain integer."""
    contents = random.Random(0).sample(sorted(set(spellings("27"))), 200)
    contents = [content for content in contents if not re.search(r"m}|square|/s", content)]  # powers of units count
    assert refused(grader, contents, gold) == []
    assert accepted(grader, ["28", r"28\text{ miles}", "27.01", r"\frac{54}{3}", "-27", "x"], gold) == []


FALSE_ACCEPTS = {
    "101": r"101_2 | 101_{2} | \text{101}_2 | (101)_2",
    "52_8": r"52_18 | 52_{18} | 52_9 | 52 | 42 | 53_8 | 52_{\text{nine}}",
    r"15\mbox{ cm}^2": r"15\text{ cm}^3 | 15\text{ cm} | 15 cm | 15\text{ cubic cm} | 15\text{ centimeters}",
    r"864 \mbox{ inches}^2": r"864\text{ inches} | 864\text{ in}^3 | 864\text{ feet cubed}",
    r"9.8\text{ m/s}^2": r"9.8\text{ m/s} | 9.8\text{ m/s}^3",
    r"\frac{1}{3}": r"0.3333333 | 0.33333333333333333333 | 0.33 | 33\% | 33.333333\% | \approx 0.333333",
    ".0000672": r".0000671 | .0000672001 | 6.72 \times 10^{-6}",
    "3.21": r"3.2100001 | 3.2099999 | 3,21",
    "1/3, 2": "0.3333333, 2",
    "78": r"7\quad 8 | 7\text{ miles }8 | 7_8 | \frac{7}{8} | 7.8",
    "7": r"7\text{ or }8 | 7 or 8 | 7, 8 | 7,8 | 7;8 | 7\text{ and }8 | \text{7 or 8} | x = 7, y = 8 | 7 \lor 8 | \pm 7"
    r" | x = 7 \text{ or } x = 8 | \{7, 8\} | (7, 8) | 7 8 | 7\text{ to }8 | \text{between }7\text{ and }8"
    r" | 7\text{ of }8 | 5\text{ feet }7\text{ inches} | 7\text{ feet }5 | 7\text{ R }2 | 7\frac12 | 7 1/2"
    r" | 7\text{ and a half} | \text{half of }7 | \text{negative }7 | \text{minus }7 | -7 | \text{not }7"
    r" | \text{at least }7 | \text{more than }7 | x > 7 | x \ge 7 | x \neq 7 | 7 \pmod{8} | 7-8 | 7:8 | 7/8 | 7=8"
    r" | 7x | 7a | 7ab | 7i | 7k | 7\pi | 7\sqrt2 | 7! | 7^2 | \sqrt{7} | sqrt(7) | sin(7) | \text{sqrt(7)}"
    r" | 7^\circ 30' | 0.7 | 0.07 | 70 | \$7.50 | 7.0000001 | 7... | 7_8 | seven | \text{seven} | VII | \text{VII} | ?"
    r" | \text{miles} | \$ | \%",
    "0.7": r"7\%",
    "x=5": "y = 5",
    "1,-2": "1,2 | 1 | -2 | 1, -2, 3",
    r"\text{Evelyn}": r"\text{Evelyn, Carla} | \text{Evelyn or Carla} | \text{Carla}",
    "p - q": "-p + q",
    r"8 \pi": r"8\pi\text{ or }9\pi | 8 | 25.1327412",
    r"\text{(C)}": r"\text{(D)} | \text{(C) or (D)}",
}
"""A reference and wrong answers, 121 in all."""


@pytest.mark.parametrize("gold", FALSE_ACCEPTS)
def test_another_answer_that_looks_like_the_reference_is_wrong(grader, gold):
    answers = FALSE_ACCEPTS[gold].split(" | ")
    assert accepted(grader, answers, gold) == []


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("52_{8}", "52_8"),
        (r"x = 52_8", "52_8"),
        ("101_{10}", "101"),
        (r"101_2 = 5", "5"),
        (r"15\text{ square centimeters}", r"15\mbox{ cm}^2"),
        (r"15\,\mathrm{cm}^{2}", r"15\mbox{ cm}^2"),
        (r"15\text{ cm²}", r"15\mbox{ cm}^2"),
        (r"\text{Area} = 15", r"15\mbox{ cm}^2"),
        (r"\text{The square's area in full is } 15", r"15\mbox{ cm}^2"),
        (r"864\text{ square inches}", r"864 \mbox{ inches}^2"),
        (r"864\text{ inches squared}", r"864 \mbox{ inches}^2"),
        (r"\frac{1}{3} \approx 0.33", r"\frac{1}{3}"),
        (r"25\%", r"\frac{1}{4}"),
        (r"27.5\%", "27.5"),
        (r"27.5\%", r"\frac{55}{2}"),
        ("0.25", r"25\%"),
        (r"6.72 \times 10^{-5}", ".0000672"),
        (r"\$18.9", r"\$18.90"),
        (r"18.90\text{ dollars}", r"\$18.90"),
        (r"x = 1 \text{ or } x = -2", "1,-2"),
        ("-2, 1", "1,-2"),
        (r"\{1, -2\}", "1,-2"),
        (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"),
        ("5", "x=5"),
        (r"27\text{ min}", "27"),
        ("27 sec", "27"),
        (r"\frac{270}{7}", r"\frac{270}7\text{ degrees}"),
        ("sqrt(729)", "27"),
        (r"10{,}080\text{ ways}", r"10,\!080"),
    ],
)
def test_the_same_answer_that_looks_otherwise_is_right(grader, answer, gold):
    assert grader.grade(box(answer), gold)


@pytest.fixture(scope="module", params=BENCHMARKS)
def golds(request):
    file = SHARED / request.param / "test.jsonl"
    if not file.exists():
        pytest.skip(f"shared/data/{request.param}/test.jsonl is not beside the checkout")
    return [json.loads(line)["answer"] for line in file.read_text().splitlines()]


def value(gold):
    """What two references share if they are one answer: an integer, a number without unit but with its base, a text."""
    if several(gold) or "=" in gold or number_in(gold) is None:
        return canonical_integer(gold) or gold.replace(" ", "").replace("dfrac", "frac")
    text = number_in(gold).text.replace(" ", "").replace("dfrac", "frac")
    return canonical_integer(text) or text, *bases(text)


@pytest.mark.shared
def test_every_reference_is_right_by_itself_in_usual_spellings(grader, golds):
    for spelling in ("{}", "${}$", r"\displaystyle {}", " {} .", r"\[{}\]"):
        texts = [(box(spelling.replace("{}", gold)), gold) for gold in golds]
        assert [pair for pair, right in zip(texts, grader.grade_many(texts)) if not right] == []
    for old, new in ((r"\frac", r"\dfrac"), (r"\frac", r"\tfrac"), (r"\left", ""), ("(", "( ")):
        texts = [(box(gold.replace(old, new).replace(r"\right" if not new else old, new)), gold) for gold in golds]
        assert [pair for pair, right in zip(texts, grader.grade_many(texts)) if not right] == []
    numbers = [gold for gold in golds if canonical_integer(gold) is not None]
    numbers += [
        gold for gold in golds if gold not in numbers and "=" not in gold and not several(gold) and number_in(gold)
    ]
    for unit in (r"\text{ units}", r"\ \text{of them}", r"\mbox{ apples}"):
        texts = [(box(gold + unit), gold) for gold in numbers if "mbox" not in gold]
        assert [pair for pair, right in zip(texts, grader.grade_many(texts)) if not right] == []


@pytest.mark.shared
def test_no_reference_passes_for_another(grader, golds):
    """Integers against all others; each reference, since math-verify takes milliseconds, against four drawn ones."""
    draw = random.Random(0)
    distinct = sorted({gold: value(gold) for gold in golds}.items())
    pairs = []
    for gold, one in distinct:
        others = [text for text, other in distinct if other != one]
        if canonical_integer(gold) is not None:
            pairs += [(box(text), gold) for text in others if canonical_integer(text) is not None]
        pairs += [(box(text), gold) for text in draw.sample(others, min(4, len(others)))]
    assert [pair for pair, right in zip(pairs, grader.grade_many(pairs)) if right] == []


@pytest.mark.shared
def test_every_solution_of_math500_is_right(grader):
    file = SHARED / "math500" / "test.jsonl"
    if not file.exists():
        pytest.skip("shared/data/math500/test.jsonl is not beside the checkout")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    verdicts = grader.grade_many([(row["solution"], row["answer"]) for row in rows])
    assert len(rows) == 500
    assert [row["answer"] for row, right in zip(rows, verdicts) if not right] == []
