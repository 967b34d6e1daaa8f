"""Every kind of verifier against answers that are right, wrong, and mean harm. Mathematics: test_grading.py."""

import json
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftgate.config.verify import verify_settings
from driftgate.errors import InputError
from driftgate.verify.choose import check_answers, verifier_of
from driftgate.verify.grading import Grader
from driftgate.verify.number import number_of


def made(kind, **settings):
    return verifier_of(verify_settings({"kind": kind, **settings}))


def verdict(text, gold, kind, **settings):
    with made(kind, **settings) as verifier:
        return verifier.grade(text, gold)


def test_the_default_is_mathematics():
    assert isinstance(verifier_of(verify_settings("math")), Grader)


@pytest.mark.parametrize(
    ("text", "gold", "settings", "right"),
    [
        (" Paris\n", "Paris", {}, True),
        ("Paris", "paris", {}, False),
        ("STRASSE", "straße", {"fold_case": True}, True),
        ("It is Paris", "Paris", {}, False),
        (r"Paris? \boxed{ Rome }", "Rome", {"part": "box"}, True),
        ("Rome", "Rome", {"part": "box"}, False),
        ("6 * 7\n#### 42 \nI hope so.", "42", {"after": "####"}, True),
        ("#### 41\n#### 42", "42", {"after": "####"}, True),
        ("#### 42\n#### 41", "42", {"after": "####"}, False),
        ("42", "42", {"after": "####"}, False),
        ("####", "", {"after": "####"}, False),
        ("", "", {}, False),
    ],
)
def test_exact(text, gold, settings, right):
    assert verdict(text, gold, "exact", **settings) is right


@given(st.text(), st.text())
def test_exact_is_equality_of_what_is_stripped(text, gold):
    assert verdict(text, gold, "exact") == (text.strip() == gold.strip() != "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 7.", 7),
        ("between 3 and 1,234.5 miles", "1234.5"),
        ("$0.50", "0.5"),
        ("$.50", "0.5"),
        ("25%", 25),
        ("-3", -3),
        ("−3", -3),
        ("x=-3", -3),
        ("5-3", 3),
        ("5 - 3", 3),
        ("1.2e-3", "0.0012"),
        ("5kg of H2O", 5),
        ("3/4", 4),
        ("1,2345", 2345),
        (r"\boxed{5} out of 9", 5),
        (r"1{,}000", 1000),
        (r"9 \boxed{none}", None),
        ("version v2", None),
        ("٧", None),
        ("1e999999999", None),
        ("9" * 1_001, None),
        ("", None),
    ],
)
def test_the_number_of_a_text(text, number):
    assert number_of(text) == (None if number is None else Fraction(number))


@given(st.integers(-(10**30), 10**30), st.integers(0, 6))
def test_a_number_is_read_as_it_is_written(whole, places):
    """With decimals, and with commas between thousands."""
    number = Fraction(whole, 10**places)
    digits = f"{abs(whole):0{places + 1}d}"
    split = len(digits) - places
    tail = "." + digits[split:] if places else ""
    sign = "-" if whole < 0 else ""
    for spelled in (sign + digits[:split] + tail, f"{sign}{int(digits[:split]):,}{tail}"):
        assert number_of(f"so it is {spelled} m.") == number


def test_numbers_are_compared_exactly_or_within_the_tolerance():
    assert verdict("0.30", "0.3", "number")
    assert not verdict("0.3000000000000000000000000000001", "0.3", "number")
    assert verdict("3.15", "3.14", "number", tolerance=0.01)
    assert not verdict("3.1500001", "3.14", "number", tolerance=0.01)
    assert not verdict("none", "3", "number", tolerance=100)


def test_equal_numbers_vote_together():
    with made("number") as verifier:
        assert verifier.answer_of("1,000.0") == verifier.answer_of("1e3") == "1000"
        assert verifier.answer_of("0.5") == verifier.answer_of(".50") != verifier.answer_of("0.25")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{B.}", "B"),
        (r"\boxed{B} because", "B"),
        (r"\boxed{B or C}", None),
        (r"\boxed{Beta}", None),
        (r"\boxed{}" + "\nB", None),
        (r"\boxed{A} \boxed{B}", "B"),
        ("The answer is (B).", "B"),
        ("the answer is (b)", "B"),
        ("The answer is B, because A is too small.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is: **B**", "B"),
        ("The answer is option C.", "C"),
        ("The answer is a prime", None),
        ("The answer is A prime", None),
        ("The answer is I think B", None),
        ("Let me see.\n(D)\n\n", "D"),
        ("**D**", "D"),
        ("d", None),
        ("A or B", None),
        ("The answer is (A). No, the answer is (B).", None),
        ("The answer is (A). I repeat: the answer is (A).", "A"),
        ("The answer is (A).\nB", None),
        (r"The answer is (A), so \boxed{B}", None),
        ("", None),
    ],
)
def test_choice(text, letter):
    with made("choice") as verifier:
        assert verifier.answer_of(text) == letter
        assert verifier.grade(text, "B") is (letter == "B")
        assert verifier.grade(text, "(b)") is (letter == "B")


def test_regex():
    assert verdict("so x = 42 then", None, "regex", pattern=r"x\s*=\s*42\b")
    assert not verdict("so x = 421", None, "regex", pattern=r"x\s*=\s*42\b")
    assert verdict("Paris, FRANCE", r"(?i)\bfrance\Z", "regex")
    assert not verdict("France?", r"(?i)\bfrance\Z", "regex")


def test_a_pattern_that_backtracks_without_end_is_wrong_and_stops_nothing():
    began = time.monotonic()
    with made("regex", pattern=r"(x+x+)+y", seconds=0.3) as verifier:
        assert not verifier.grade("x" * 60, None)
        assert verifier.grade("xxy", None)
        assert (verifier.worker.overruns, verifier.worker.respawns) == (1, 1)
    assert time.monotonic() - began < 30


SCHEMA = json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})


@pytest.fixture(scope="module")
def by_schema():
    with made("json_schema") as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": 1}', True),
        ('Here: {"a": 1}. Enough?', True),
        ('```json\n{"a": 1}\n```\nor so', True),
        ('```json\n{"a": "x"}\n```\n```\n{"a": 1}\n```', True),
        ('{"a": 1}\n```json\n{"a": "x"}\n```', False),
        ('```json\n{"a": 1\n```\n{"a": 1}', False),
        ('{"a": "x"} {"a": 1}', True),
        ('{"a": 1} {"a": "x"}', False),
        ('{"a": 1} {"a"', True),
        ('{"a": true}', False),
        ('{"a": NaN}', False),
        ("none", False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_schema(by_schema, text, right):
    assert by_schema.grade(text, SCHEMA) is right


def test_json_that_must_equal_the_answer(tmp_path):
    (tmp_path / "s.json").write_text(SCHEMA)
    with made("json_schema", file=str(tmp_path / "s.json"), equal=True) as verifier:
        assert verifier.grade('{"a": 1.0, "b": [true]}', '{"b": [true], "a": 1}')
        assert not verifier.grade('{"a": 1, "b": [1]}', '{"b": [true], "a": 1}')
        assert not verifier.grade('{"a": "x"}', '{"a": "x"}')


def test_a_schema_reaches_for_nothing_elsewhere(by_schema, capfd):
    errors = by_schema.worker.errors
    assert not by_schema.grade("{}", '{"$ref": "http://127.0.0.1:9/schema.json"}')
    assert by_schema.worker.errors == errors + 1
    assert "Unresolvable" in capfd.readouterr().err


def test_a_schema_whose_pattern_backtracks_without_end_stops_nothing():
    with made("json_schema", seconds=0.5) as verifier:
        assert not verifier.grade(json.dumps("x" * 60), '{"pattern": "(x+x+)+y"}')
        assert verifier.worker.overruns == 1


FUNCTIONS = """
import os, time

def right(text, answer):
    print("1")
    return text == answer[::-1]

def moody(text, answer):
    if text == "raise":
        raise ValueError("no such\\nmood")
    if text == "sleep":
        time.sleep(60)
    if text == "die":
        os._exit(0)
    if text == "fill":
        return bool(bytearray(2**34))
    return text == answer if text != "one" else 1

def broken(text, answer):
    raise KeyError("no table")
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


def test_a_function_of_the_users(functions, capfd):
    with made("function", path="my_checks:right") as verifier:
        assert verifier.grade_many([("ab", "ba"), ("ab", "ab"), ("\ud800", "\ud800")]) == [True, False, True]
        assert (verifier.worker.errors, verifier.worker.deaths) == (0, 0)
    capfd.readouterr()


def test_a_function_that_fails_is_counted_and_wrong(functions, capfd):
    with made("function", path="my_checks:moody", seconds=2.0) as verifier:
        assert [verifier.grade(text, text) for text in ("raise", "one", "sleep", "die", "fill", "fine")] == [
            *[False] * 5,
            True,
        ]
        worker = verifier.worker
    assert (worker.asked, worker.overruns, worker.deaths + worker.errors) == (6, 1, 4)
    said = capfd.readouterr().err
    assert "ValueError: no such" in said
    assert "returned 1, not True or False" not in said  # the first error alone is shown


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("my_checks:broken", "KeyError: 'no table'"),
        ("my_checks:missing", "has no attribute 'missing'"),
        ("my_chekcs:right", "No module named 'my_chekcs'"),
    ],
)
def test_a_function_that_cannot_work_is_refused_by_a_trial(functions, capfd, path, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        check_answers(verify_settings({"kind": "function", "path": path}), {"p": "1"}, "prompts.path = x")
    capfd.readouterr()


def test_a_function_that_hangs_is_refused_by_a_trial(tmp_path, monkeypatch):
    (tmp_path / "slow_checks.py").write_text("import time\ndef slow(text, answer):\n    time.sleep(60)\n")
    monkeypatch.chdir(tmp_path)
    settings = verify_settings({"kind": "function", "path": "slow_checks:slow", "seconds": 0.2})
    with pytest.raises(InputError, match="no verdict on an empty response"):
        check_answers(settings, {"p": "1"}, "x")


@pytest.mark.parametrize(
    ("settings", "answer", "expected"),
    [
        ("exact", " ", "is empty"),
        ({"kind": "exact", "after": "#"}, "a\nb", "several lines"),
        ("number", "seven", "holds no number"),
        ("choice", "2", "no letter"),
        ("regex", "(", "no regular expression"),
        ("json_schema", "{", "is no JSON"),
        ("json_schema", "[1]", "no JSON schema"),
        ("json_schema", '{"type": "integre"}', "no JSON schema"),
    ],
)
def test_an_answer_that_cannot_be_compared_is_refused(settings, answer, expected):
    with pytest.raises(InputError, match=expected) as error:
        check_answers(verify_settings(settings), {"a": None, "p7": answer}, "prompts.path = x.jsonl")
    assert "x.jsonl" in str(error.value)
    assert "'p7'" in str(error.value)
