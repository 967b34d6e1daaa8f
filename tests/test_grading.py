"""Boxes, integers, and equal mathematics. Spellings of one answer: test_spellings.py."""

import time

import pytest

from driftgate.verify.boxed import LONGEST_ANSWER, answer_of, canonical_integer, last_boxed
from driftgate.verify.grading import Grader


def box(content):
    return rf"so the answer is $\boxed{{{content}}}$."


@pytest.fixture(scope="module")
def grader():
    with Grader() as shared:
        yield shared


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\left\{ 1 \right.} }", r"\left\{ 1 \right."),
        (r"\boxed{a \\{b}} c}", r"a \\{b}"),
        (r"\boxed{}", ""),
        ("7", None),
        (r"\boxed 7", None),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed{\frac{1}{2}", None),
        ("", None),
    ],
)
def test_the_last_box_is_read_with_its_braces(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "content",
    ["7", " 7 ", "+7", "007", "$7$", r"\(7\)", "7.", "$7$.", "$$ 7 $$", r"\[7\]"],
)
def test_an_integer_may_be_written_in_many_ways(grader, content):
    assert grader.grade(box(content), "7")
    assert grader.grade(box("7"), content)
    assert not grader.grade(box(content), "8")


@pytest.mark.parametrize("content", ["1,234,567", "1{,}234{,}567", r"1,\!234,\! 567", "1234567"])
def test_an_integer_may_have_thousands_commas(grader, content):
    assert grader.grade(box(content), "1234567")


@pytest.mark.parametrize(
    "content",
    ["", "7.0", "1,2", "12,34", "7/1", r"\text{7}", "x=7", "٧", "７", "7²", "1e3", "0x7", "1_0", "--7", "$", "-"],
)
def test_what_is_no_plain_integer_is_left_to_the_reading(content):
    assert canonical_integer(content) is None


@pytest.mark.parametrize("content", ["", "1,2", "12,34", "7²", "1e3", "0x7", "1_0", "$", "-"])
def test_what_is_another_number_or_none_is_wrong(grader, content):
    assert not grader.grade(box(content), "7")


def test_signs_count_except_on_zero(grader):
    assert grader.grade(box("-7"), "-7")
    assert not grader.grade(box("-7"), "7")
    assert grader.grade(box("-0"), "0")
    assert grader.grade(box("000"), "0")


def test_only_a_box_counts(grader):
    assert not grader.grade("the answer is 7", "7")
    assert not grader.grade(r"\boxed{7} no, \boxed{8}", "7")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (box("007"), "7"),
        (box("1{,}234"), "1234"),
        (box(r"$ \frac12 $."), r"\frac12"),
        (box(" "), None),
        (box("$$"), None),
        ("7", None),
        (r"\boxed{7", None),
        (box("x" * 10**6), "x" * LONGEST_ANSWER),
        (box("1" * 10**6), "1" * LONGEST_ANSWER),
    ],
)
def test_an_answer_is_the_content_of_the_last_box(text, answer):
    assert answer_of(text) == answer


def test_megabytes_take_no_time_and_digits_beyond_pythons_limit_compare(grader):
    million = 10**6
    began = time.monotonic()
    assert grader.grade(box("1" * million), "0" + "1" * million)
    for content in ("9" * million, ",".join(["999"] * million), "$" * million, " " * million + "x"):
        assert not grader.grade(box(content), "7")
    for text in (r"\boxed{" * million, "{" * million, r"\boxed" + " " * million, r"\boxed{" + "\\" * million):
        assert not grader.grade(text, "7")
    assert time.monotonic() - began < 10


def test_one_answer_of_a_file_changes_no_verdict_on_another(grader):
    """The rule once depended on all references of a benchmark: a fraction among them let "27 miles" through."""
    pairs = [(box(r"27\text{ miles}"), "27"), (box(r"27\text{ miles}"), "28")]
    assert grader.grade_many(pairs) == grader.grade_many([*pairs, (box("0.5"), r"\frac12")])[:2] == [True, False]


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"x+1", "1 + x"),
        ("{3, 1, 2}", "1,2,3"),
        (r"$p - q$.", "p - q"),
        (r"\(10,\!080\)", "10080"),
        (r"(3, \tfrac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"90", r"90^\circ"),
    ],
)
def test_equal_mathematics_is_right(grader, content, gold):
    assert grader.grade(box(content), gold)


@pytest.mark.parametrize(
    ("content", "gold"),
    [("2", r"\frac{1}{2}"), ("p + q", "p - q"), ("(1, 2)", "(2, 1)"), ("", "1"), ("", ""), (r"\frac", "1")],
)
def test_other_mathematics_is_wrong(grader, content, gold):
    assert not grader.grade(box(content), gold)


def test_many_are_judged_in_order_and_equal_pairs_once(grader):
    before = grader.math.asked
    pairs = [(box("0.25"), r"\frac14"), (box("4"), r"\frac14"), ("no box", r"\frac14")] * 5
    assert grader.grade_many(pairs) == [True, False, False] * 5
    assert grader.math.asked == before + 2
