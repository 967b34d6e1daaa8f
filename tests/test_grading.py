"""Boxes, integers, and the math-verify worker under answers that mean harm."""

import json
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from driftgate.errors import InputError, RunError
from driftgate.verify.grading import (
    LONGEST_ANSWER,
    IntegerGrader,
    MathGrader,
    answer_of,
    canonical_integer,
    grade_integer,
    grader_for,
    last_boxed,
)

MATH500 = Path(__file__).resolve().parents[2] / "shared" / "data" / "math500" / "test.jsonl"


def box(content):
    return rf"so the answer is $\boxed{{{content}}}$."


@pytest.fixture(scope="module")
def grader():
    with MathGrader() as shared:
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
def test_an_integer_may_be_written_in_many_ways(content):
    assert grade_integer(box(content), "7")
    assert grade_integer(box("7"), content)
    assert not grade_integer(box(content), "8")


@pytest.mark.parametrize("content", ["1,234,567", "1{,}234{,}567", r"1,\!234,\! 567", "1234567"])
def test_an_integer_may_have_thousands_commas(content):
    assert grade_integer(box(content), "1234567")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "7.0",
        "1,2",
        "12,34",
        "7/1",
        r"\text{7}",
        "x=7",
        "٧",
        "７",
        "7²",
        "1e3",
        "0x7",
        "1_0",
        "--7",
        "$",
        "-",
    ],
)
def test_what_is_no_plain_integer_is_wrong(content):
    assert canonical_integer(content) is None
    assert not grade_integer(box(content), "7")


def test_signs_count_except_on_zero():
    assert grade_integer(box("-7"), "-7")
    assert not grade_integer(box("-7"), "7")
    assert grade_integer(box("-0"), "0")
    assert grade_integer(box("000"), "0")


def test_only_a_box_counts():
    assert not grade_integer("the answer is 7", "7")
    assert not grade_integer(r"\boxed{7} no, \boxed{8}", "7")


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


def test_a_reference_that_is_no_integer_is_refused():
    with pytest.raises(InputError):
        grade_integer(box("7"), "7.5")


def test_megabytes_take_no_time_and_digits_beyond_pythons_limit_compare():
    million = 10**6
    began = time.monotonic()
    assert grade_integer(box("1" * million), "0" + "1" * million)
    for content in ("9" * million, ",".join(["999"] * million), "$" * million, " " * million + "x"):
        assert not grade_integer(box(content), "7")
    for text in (r"\boxed{" * million, "{" * million, r"\boxed" + " " * million, r"\boxed{" + "\\" * million):
        assert not grade_integer(text, "7")
    assert time.monotonic() - began < 10


def test_an_integer_benchmark_needs_no_worker():
    assert isinstance(grader_for(["204", "073", "-5"]), IntegerGrader)
    assert isinstance(grader_for(["204", r"\frac{1}{2}"]), MathGrader)
    with pytest.raises(InputError):
        grader_for([])


def test_an_integer_grader_judges_like_grade_integer():
    with IntegerGrader() as grader:
        assert grader.grade(box("7"), "7")
        assert grader.grade_many([(box("7"), "7"), (box("8"), "7")]) == [True, False]


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
    before = grader.judged
    pairs = [(box("0.25"), r"\frac14"), (box("4"), r"\frac14"), ("no box", r"\frac14")] * 5
    assert grader.grade_many(pairs) == [True, False, False] * 5
    assert grader.judged == before + 2


def test_hostile_answers_are_wrong_and_stop_nothing():
    hostile = [
        "99999999!!!!",
        "10^{10^{10}}",
        "9^{9^{9^9}}",
        "{" * 900 + "1" + "}" * 900,
        "(" * 900 + "1" + ")" * 900,
        r"\frac{" * 150 + "1" + "}{2}" * 150,
        "9" * 1_999,
        "9" * 10**6,
        "\x00\ud800\n",
        "\n" + '["1", "1"]' + "\n",
        "}{" * 500,
    ]
    with MathGrader(limit_s=1.0) as grader:
        for content in hostile:
            assert not grader.grade(box(content), r"\frac{3}{7}")
        assert grader.grade(box(r"\frac{6}{14}"), r"\frac{3}{7}")
    assert grader.overruns >= 2
    assert grader.respawns == grader.overruns + grader.deaths


def test_a_worker_that_overruns_is_replaced_outside_the_limit():
    with MathGrader(limit_s=0.3) as grader:
        first = grader._worker.pid
        assert not grader.grade(box("9^{9^{9^9}}"), "1")
        assert (grader.overruns, grader.respawns, grader._worker) == (1, 0, None)
        assert grader.grade(box("x + 1"), "1 + x")
        assert grader._worker.pid != first
        assert (grader.overruns, grader.deaths, grader.respawns) == (1, 0, 1)


def test_a_worker_that_died_between_answers_costs_no_answer():
    with MathGrader() as grader:
        os.kill(grader._worker.pid, signal.SIGKILL)
        grader._worker.wait()
        assert grader.grade(box("x + 1"), "1 + x")
        assert (grader.deaths, grader.respawns) == (0, 1)


def test_a_worker_that_dies_on_an_answer_makes_it_wrong(grader, monkeypatch):
    worker = grader._living_worker()
    deaths = grader.deaths
    monkeypatch.setattr(worker, "poll", lambda: None)  # it looks alive until it is asked
    os.kill(worker.pid, signal.SIGKILL)
    assert not grader.grade(box("x + 1"), "1 + x")
    assert grader.deaths == deaths + 1
    assert grader.grade(box("x + 1"), "1 + x")


def test_an_interrupt_leaves_no_late_reply_behind(grader, monkeypatch):
    worker = grader._living_worker()

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.stdin, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grader.grade(box("x + 1"), "1 + x")
    assert not grader.grade(box("x + 2"), "1 + x")


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are read from /proc")
def test_the_worker_is_limited_in_memory():
    with MathGrader(memory_bytes=2**29) as grader:
        limits = Path(f"/proc/{grader._worker.pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if "address space" in line] == [[str(2**29), str(2**29)]]


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits hold on Linux")
def test_a_worker_without_room_to_start_is_an_error_that_says_so(capfd):
    with pytest.raises(RunError, match="memory_bytes"):
        MathGrader(memory_bytes=2**20).__enter__()
    capfd.readouterr()


def test_the_worker_ends_with_its_grader():
    with MathGrader() as grader:
        worker = grader._worker
    assert worker.returncode is not None
    grader.close()


@pytest.mark.parametrize("limits", [{"limit_s": 0}, {"memory_bytes": 0}])
def test_limits_that_leave_nothing_are_refused(limits):
    with pytest.raises(InputError):
        MathGrader(**limits)


@pytest.mark.shared
@pytest.mark.skipif(not MATH500.exists(), reason="shared/data/math500/test.jsonl is not beside the checkout")
def test_all_references_of_math500_are_right_by_themselves_and_by_their_solutions(grader):
    rows = [json.loads(line) for line in MATH500.read_text().splitlines()]
    golds = [row["answer"] for row in rows]
    assert len(rows) == 500
    assert all(grader.grade_many([(box(gold), gold) for gold in golds]))
    assert all(grader.grade_many([(row["solution"], row["answer"]) for row in rows]))
    # the same through math-verify, which a respelling keeps from being settled as equal text
    before = grader.judged
    assert all(grader.grade_many([(box(rf"\displaystyle {gold}"), gold) for gold in golds]))
    assert grader.judged > before + 250  # distinct ones that no other rule settles
    neighbours = grader.grade_many([(box(gold), other) for gold, other in pairwise(golds)])
    same = sum(gold == other for gold, other in pairwise(golds))
    assert same <= sum(neighbours) <= same + 1  # math-verify leaves units out: $36 is 36 degrees
