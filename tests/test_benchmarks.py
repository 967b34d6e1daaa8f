"""Benchmarks by name, from the hub or a local copy, and the hash that pins their content."""

import hashlib
import json
import random
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from driftgate.config.exam import ExamSettings
from driftgate.data import benchmarks
from driftgate.data.benchmarks import PUBLISHED, benchmark_name, content_sha256, load_benchmark
from driftgate.data.problems import Problem
from driftgate.errors import InputError
from driftgate.evaluate.evaluate import check_settings
from driftgate.verify.boxed import canonical_integer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SUMS = [{"id": f"s{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(7)]
HUB = [{"question": row["problem"], "answer": f"Count on.\n#### {row['answer']}"} for row in SUMS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problems_of(rows):
    return [Problem(row["id"], row["problem"], row["answer"]) for row in rows]


@pytest.fixture
def seven(monkeypatch):
    """gsm8k is these seven problems; the hub is out of reach."""
    pin = replace(PUBLISHED["gsm8k"], problems=7, sha256=content_sha256(problems_of(SUMS)))
    monkeypatch.setitem(PUBLISHED, "gsm8k", pin)
    benchmarks._from_hub.cache_clear()
    yield monkeypatch
    benchmarks._from_hub.cache_clear()


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pins_are_those_of_the_shared_data(name):
    file = SHARED / name / "test.jsonl"
    if not file.exists():
        pytest.skip(f"shared/data/{name}/test.jsonl is not beside the checkout")
    problems = load_benchmark(f"{name}={file}")
    assert len({p.id for p in problems}) == len(problems) == PUBLISHED[name].problems
    assert name == "math500" or all(canonical_integer(p.answer) for p in problems)
    assert {p.problem for p in problems} == {json.loads(line)["problem"] for line in file.read_text().splitlines()}


def test_the_embedded_benchmarks_are_the_published_ones():
    found = {name: content_sha256(load_benchmark(name))[:12] for name in ("lock16", "lock19", "lock22", "lock25")}
    assert found == {
        "lock16": "e98c5be9a95f",
        "lock19": "08f4454b7e30",
        "lock22": "9c17338142cb",
        "lock25": "b0b94eba9a43",
    }


def test_the_hash_is_the_documented_one():
    problems = [Problem("a", "Caf\u0065\u0301  of\n 3?", "+1,072.0"), Problem("b", " x\t", r"\frac 12")]
    lines = [f"{unicodedata.normalize('NFC', 'Café')} of 3?\n1072", "x\n\\frac 12"]
    digests = sorted(hashlib.sha256(line.encode()).hexdigest() for line in lines)
    assert content_sha256(problems) == hashlib.sha256("\n".join(digests).encode()).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"), [("073", "73"), ("73.0", "73"), ("+73", "73"), ("-0", "0"), ("1,319", "1319")]
)
def test_an_integer_counts_as_its_digits(one, other):
    assert content_sha256([Problem("a", "x", one)]) == content_sha256([Problem("a", "x", other)])


@pytest.mark.parametrize(
    "other", [Problem("a", "x", "-73"), Problem("a", "x", "7,3"), Problem("a", "x", "73.5"), Problem("a", "X", "73")]
)
def test_other_content_has_another_hash(other):
    assert content_sha256([other]) != content_sha256([Problem("a", "x", "73")])


def test_copies_give_the_same_problems_whatever_their_order_ids_and_columns(seven, tmp_path):
    shuffled = [{"unique_id": i, **row} for i, row in enumerate(HUB)]
    random.Random(0).shuffle(shuffled)
    one = load_benchmark(f"gsm8k={write(tmp_path / 'ours.jsonl', SUMS)}")
    other = load_benchmark(f"gsm8k={write(tmp_path / 'theirs.jsonl', shuffled)}")
    assert [replace(p, solution=None) for p in other] == one
    assert [p.id for p in one] == sorted(p.id for p in one)
    assert {(p.problem, p.answer) for p in one} == {(row["problem"], row["answer"]) for row in SUMS}
    assert load_benchmark(f"gsm8k={tmp_path / 'ours.jsonl'}", 3) == one[:3]


def test_the_hub_is_asked_for_the_right_rows_once(seven, tmp_path):
    asked = []
    stand_in = SimpleNamespace(load_dataset=lambda *words, **more: asked.append((words, more)) or HUB)
    seven.setitem(sys.modules, "datasets", stand_in)
    problems = load_benchmark("gsm8k")
    assert [p.problem for p in load_benchmark("gsm8k", 2)] == [p.problem for p in problems[:2]]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [p.answer for p in problems] == [p.answer for p in load_benchmark(f"gsm8k={write(tmp_path / 'a', SUMS)}")]


def test_a_hub_out_of_reach_is_said_with_the_mend(seven):
    def fail(*_, **__):
        raise ConnectionError("no route")

    seven.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(InputError, match=r"--benchmark gsm8k = hub:openai/gsm8k.*no route.*--benchmark gsm8k=FILE"):
        load_benchmark("gsm8k")


def test_other_content_under_a_published_name_is_refused_with_counts_and_hashes(tmp_path):
    file = write(tmp_path / "amc.jsonl", SUMS)
    with pytest.raises(InputError) as error:
        load_benchmark(f"amc23={file}")
    said = str(error.value)
    assert "7 problems" in said
    assert "40 problems" in said
    assert "83" in said
    assert content_sha256(problems_of(SUMS)) in said
    assert PUBLISHED["amc23"].sha256 in said


def test_an_own_file_is_taken_as_it_is(tmp_path):
    file = write(tmp_path / "own=mine.jsonl", SUMS)
    assert load_benchmark(str(file)) == problems_of(SUMS)
    assert benchmark_name(str(file)) == str(file)
    assert benchmark_name(f"amc23={file}") == "amc23"


@pytest.mark.parametrize(("name", "hint"), [("aime23", "did you mean"), ("mth500=x.jsonl", "did you mean math500")])
def test_an_unknown_name_is_told_the_known_ones(name, hint):
    with pytest.raises(InputError, match=hint):
        load_benchmark(name)


def test_a_benchmark_from_two_places_is_named_twice(seven, tmp_path):
    files = [f"gsm8k={write(tmp_path / name, SUMS)}" for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(InputError, match="twice"):
        check_settings(ExamSettings(benchmarks=tuple(files)))
