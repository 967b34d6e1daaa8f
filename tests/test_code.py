"""Kind `code`: verdicts, the tasks of the example, and what crosses between an answer and its tests."""

import json
import re
from pathlib import Path

import pytest
from code_case import PAIRS, limited

from driftgate.config.verify import verify_settings
from driftgate.data.benchmarks import load_benchmark
from driftgate.errors import InputError
from driftgate.verify.choose import check_answers
from driftgate.verify.code import code_of
from driftgate.verify.code_tests import Assertions, read_tests

TASKS = Path(__file__).parents[1] / "examples" / "code_tasks.jsonl"


@pytest.fixture(scope="module")
def verifier():
    with limited() as made:
        yield made


ROWS = [json.loads(line) for line in TASKS.read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_the_tasks_pass_with_their_solutions_and_with_nothing_else(verifier, row):
    verdicts = verifier.grade_many((text, row["answer"]) for text in [row["solution"], *row["wrong"]])
    assert verdicts == [True] + [False] * len(row["wrong"])


def test_the_tasks_are_a_benchmark():
    assert len(load_benchmark(str(TASKS))) == len(ROWS) >= 20


def test_values_go_over_and_come_back_as_they_are(verifier):
    values = "[None, True, 0, -3, 10**5000, 1.5, float('inf'), 1e-320, 2j, 'a\\ud800\\u2028', b'\\x00', (1, (2,)), \
        {1, 'a'}, frozenset([(1,)]), {'a': [1], (1, 2): {}}, [], '', ()]"
    tests = f"values = {values}\nassert f(values) == values and list(map(type, f(values))) == list(map(type, values))"
    assert verifier.grade("def f(x): return x", tests + "\nassert f(float('nan')) != f(float('nan'))")
    assert verifier.grade(f"def f(x): return {values}", tests)


OBJECTS = """
import collections, enum
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, place): return self.items[place]
    def __str__(self): return f"Stack{self.items}"
class Empty(ValueError): pass
class Level(enum.IntEnum):
    LOW = 1
def upto(n):
    yield from range(n)
def turn(items, table, deep):
    items.reverse(); table["new"] = 1; deep[0].append(9)
def apply(function, items): return [function(x) for x in items]
def adder(n): return lambda x: x + n
def count(text): return collections.Counter(text)
def fail(): raise Empty("nothing")
def leave(): raise SystemExit("now")
def level(): return Level.LOW
def top(stacks): return max(stack[0] for stack in stacks)
LIMIT = 7
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack()\ns.push(1).push([2])\nassert len(s) == 2 and s.pop() == [2] and list(s) == [1] and s[0] == 1",
        "assert str(Stack([1])) == 'Stack[1]' and Stack([1]).items == [1] and not hasattr(Stack(), 'no')",
        "s = Stack()\ns.items = [5]\nassert s.pop() == 5 and s is s and s == s and s != Stack()",
        "assert top([Stack([3]), Stack([5])]) == 5",
        "assert list(upto(3)) == [0, 1, 2] and 2 in upto(3) and sum(upto(4)) == 6",
        "a, b, c = [1, 2], {}, [[0]]\nturn(a, b, c)\nassert (a, b, c) == ([2, 1], {'new': 1}, [[0, 9]])",
        "assert apply(lambda x: x * 2, [1, 2]) == [2, 4] and apply(str, [1]) == ['1'] and apply(adder(2), [1]) == [3]",
        "def check(candidate):\n    assert candidate(1)(2) == 3\ncheck(adder)",
        "assert count('aab') == {'a': 2, 'b': 1} and level() == 1 and LIMIT == 7",
        "try:\n    fail()\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'nothing'",
        "try:\n    leave()\nexcept RuntimeError as error:\n    assert 'SystemExit' in str(error)",
        "try:\n    apply(lambda x: {}[x], [1])\n    assert False\nexcept KeyError:\n    pass",
        "assert math.sqrt(LIMIT * 7) == 7",
        '["assert LIMIT == 7", "assert level() == 1"]',
        "['assert LIMIT == 7']",
    ],
)
def test_objects_functions_and_changes_cross_between_the_processes(verifier, test):
    assert verifier.grade(OBJECTS, test)


def test_a_list_of_tests_is_all_of_them(verifier):
    assert not verifier.grade(OBJECTS, '["assert LIMIT == 7", "assert level() == 2"]')
    assert not verifier.grade(OBJECTS, '["assert LIMIT == 8", "assert level() == 1"]')


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("print(int(input()) + int(input()))", True),
        ("import sys\nprint(sum(map(int, sys.stdin)), '\\n\\n')", True),
        ("if __name__ == '__main__':\n    print(int(input()) + int(input()))\n    raise SystemExit", True),
        ("print(7)", False),
        ("print(int(input()) + int(input()))\nraise SystemExit(1)", False),
        ("print(int(input()) + int(input()), 'is the sum')", False),
        ("print(int(input()) + int(input()))\nopen('/etc/hostname')", False),
        ("print(open('../output').read())", False),
        ("print('7' * 10**8)", False),
        ("import os\nos._exit(0)", False),
        ("print(1 +", False),
    ],
)
def test_programs(verifier, code, right):
    assert verifier.grade(code, PAIRS) is right


def test_pairs_of_a_program_in_two_lists(verifier):
    pairs = '{"inputs": ["3\\n4\\n", "5\\n5"], "outputs": ["7", "10"]}'
    assert verifier.grade("print(int(input()) + int(input()))", pairs)
    assert not verifier.grade("print(7)", pairs)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\n```py\nx = 2\n```\n```bash\npython x.py\n```", "x = 2\n"),
        ("```Python\nx = 1", "x = 1"),
        ("  ```python3\n  x = 1\n  ```", "  x = 1\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```python\n```", ""),
    ],
)
def test_the_code_of_a_response(text, code):
    assert code_of(text) == code


@pytest.mark.parametrize("text", ["", "```python\n```", "\ud800", "\x00", "def f(:", "x" * 10**6, "(" * 10**5])
def test_a_response_that_is_no_python_is_wrong(verifier, text):
    assert not verifier.grade(text, "assert f() == 1")


@pytest.mark.parametrize(
    ("answer", "names", "modules"),
    [
        ("assert f(1) == abs(g.x)", ("f", "g"), ()),
        ("import math\nassert math.isclose(f(1), 1)", ("f",), ()),
        ("assert math.isclose(f(1), random.random())", ("f",), ("math", "random")),
        ("assert bisect([1], 2) == 1", ("bisect",), ()),
        ("def check(g):\n    for x in g(1): assert x == h(2)\ncheck(f)", ("f", "h"), ()),
        ("total = 0\ndef add(x):\n    global total\n    total += f(x)\nadd(1)\nassert total == 1", ("f",), ()),
        ("class T:\n    assert [f(x) for x in 'ab'] == [1, 2]\nassert T", ("f",), ()),
    ],
)
def test_what_tests_take_of_an_answer(answer, names, modules):
    assert read_tests(answer) == Assertions(answer, names, modules)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("f(1) == 2", "holds no assert"),
        ("assert f(", "is no Python"),
        ("def check(c):\n    assert c(1)", "never calls"),
        ("class T:\n    def test(self):\n        assert f(1)", "never calls"),
        ("assert sum([1]) == 1", "reads no name that the response could define"),
        ("[]", "holds no tests"),
        ('[{"input": "1"}]', "holds no tests"),
        ('[{"input": "1", "output": 2}]', "holds no tests"),
        ('{"inputs": ["1"], "outputs": []}', "holds no tests"),
        ('{"fn_name": "f", "inputs": [], "outputs": []}', "holds no tests"),
        ('["f(1)"]', "holds no assert"),
        ("7", "holds no assert"),
    ],
)
def test_an_answer_that_tests_nothing_is_refused(answer, expected):
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        check_answers(verify_settings("code"), {"p7": answer}, "prompts.path = x.jsonl")
    assert "'p7'" in str(error.value)
