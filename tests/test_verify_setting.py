"""The setting `verify` in runs and evaluations; that the default describes evaluations as before."""

import json
import sys

import pytest
from bad_input import drive, problem, write_prompts

from driftgate.config.exam import ExamSettings
from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.evaluate.command import _as_trained
from driftgate.evaluate.evaluate import evaluate, load_examinee
from driftgate.recipe import load_recipe
from driftgate.train.records import rollout_rows
from driftgate.verify.choose import verifier_of

NUMBER = {"kind": "number", "tolerance": 0.5}


@pytest.fixture
def benchmark_file(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(problem(f"{i}+1=", id=f"s{i}", answer=str(i + 1)) + "\n" for i in range(3)))
    return str(path)


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_run_grades_by_its_verifier(command, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", problem(answer="no such thing"), problem("1+1=", answer="x"))
    anything = {"kind": "regex", "pattern": r"\A"}
    few = ("steps=1", "rollout.allow_truncated=true")
    assert command(*few, prompts=prompts | {"verify": anything}, out=tmp_path / "all") == (0, "")
    assert command(*few, prompts=prompts, out=tmp_path / "none") == (0, "")
    for name, right in (("all", True), ("none", False)):
        rows = [row for path in (tmp_path / name / "rollouts").iterdir() for row in rows_of(path.parent, path.name)]
        assert {row["correct"] for row in rows} == {right}


def test_a_verifier_that_needs_no_answer_grades_problems_without():
    prompt = Prompt(Problem("a", "3+4="), (1,), (1,))
    answers = [Response((5, 6), (0.0, 0.0), True)]
    for name, verdict in (("exact", None), ({"kind": "regex", "pattern": "7"}, True)):
        settings = ExamSettings.model_validate({"benchmarks": ("lock16",), "verify": name}).verify
        with verifier_of(settings) as verifier:
            [row] = rollout_rows([prompt], [answers], lambda ids: "= 7", verifier)
        assert row["correct"] is verdict


def test_answers_that_cannot_be_compared_stop_a_run_before_it_starts(command, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", problem(answer="7"), problem("1+1=", answer="two"))
    code, said = command(prompts=prompts | {"verify": "number"})
    assert code == 2
    assert "p.jsonl: verify.kind = number, but the answer 'two' of problem '1' holds no number" in said
    assert not (tmp_path / "run").exists()


def test_an_evaluation_by_number(pair, benchmark_file, monkeypatch, tmp_path):
    examinee = load_examinee(pair[0])
    monkeypatch.setattr(examinee.tokenizer, "decode", lambda *_, **__: "about 2.4")
    settings = ExamSettings.model_validate(
        {"benchmarks": [benchmark_file], "samples": 2, "max_new_tokens": 5, "verify": NUMBER}
    )
    result = evaluate(examinee, settings, tmp_path / "exam")
    assert result["settings"]["verify"] == NUMBER
    assert result["pass"][benchmark_file]["pass@1"]["mean"] == pytest.approx(1 / 3)
    rows = rows_of(tmp_path / "exam", "samples.jsonl")
    assert [row["correct"] for row in rows] == [False, False, True, True, False, False]
    assert rows[0]["answer"] == "c/5"


def test_samples_without_an_answer_do_not_vote(pair, benchmark_file):
    settings = ExamSettings.model_validate(
        {"benchmarks": [benchmark_file], "samples": 2, "max_new_tokens": 5, "verify": "regex"}
    )
    result = evaluate(load_examinee(pair[0]), settings)
    assert set(result["pass"][benchmark_file]) == {"pass@1", "pass@2", "avg@2"}


def test_evaluations_by_mathematics_are_described_as_before():
    plain = ExamSettings(benchmarks=("lock16",))
    trained = plain.as_trained(load_recipe("sandbox/lsm_none"))
    assert trained.verify is not None
    for settings in (plain, trained, ExamSettings.model_validate({"benchmarks": ("lock16",), "verify": "math"})):
        assert "verify" not in settings.described()


def test_a_study_examines_as_trained_unless_told():
    config = load_recipe("sandbox/lsm_none", ["prompts.verify=choice"])
    exam = ExamSettings(benchmarks=("lock16",))
    assert exam.as_trained(config).described()["verify"] == {"kind": "choice"}
    told = ExamSettings.model_validate({"benchmarks": ("lock16",), "verify": "exact"})
    assert told.as_trained(config).verify == told.verify


def test_eval_of_a_run_folder_verifies_as_trained(tmp_path):
    (tmp_path / "config.yaml").write_text("prompts: {verify: {kind: number, tolerance: 0.5}}")
    exam = ExamSettings(benchmarks=("lock16",))
    assert _as_trained(str(tmp_path), exam).described()["verify"] == NUMBER
    assert _as_trained("no/run", exam).described() == exam.described() | {"template": "{problem}", "chat": False}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--verify", "maths"], "--verify"),
        (["--verify", "{kind: number, tolerance: -1}"], "--verify.tolerance"),
        (["--verify", "{kind"], "not valid YAML"),
        (["--verify", "choice"], "is no letter from A to Z"),
    ],
)
def test_a_bad_verifier_of_an_evaluation_is_named(pair, benchmark_file, tmp_path, monkeypatch, capsys, words, expected):
    out = tmp_path / "exam"
    code, said = drive(monkeypatch, capsys, "eval", pair[0], "--benchmark", benchmark_file, "--out", str(out), *words)
    assert code == 2
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def test_an_evaluation_by_a_function(pair, benchmark_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "exam_checks.py").write_text("def second(text, answer):\n    return answer == '2'\n")
    monkeypatch.chdir(tmp_path)
    words = ["--verify", "{kind: function, path: 'exam_checks:second'}", "--samples", "1", "--max-new-tokens", "5"]
    code, _ = drive(monkeypatch, capsys, "eval", pair[0], "--benchmark", benchmark_file, "--out", "exam", *words)
    assert code == 0
    assert [row["correct"] for row in rows_of(tmp_path / "exam", "samples.jsonl")] == [False, True, False]
    assert "exam_checks" not in sys.modules  # it runs in the worker alone


CODE = {"kind": "code", "workers": 1}
BOTH = "assert f(2) == 4"


def test_a_run_grades_code(command, tmp_path, monkeypatch):
    """One step: the student's own responses are wrong, and responses that are code are graded by the tests."""
    prompts = write_prompts(tmp_path / "p.jsonl", problem(answer=BOTH), problem("1+1=", answer='["assert f(2) == 5"]'))
    few = ("steps=1", "rollout.allow_truncated=true")
    assert command(*few, prompts=prompts | {"verify": CODE}, out=tmp_path / "own") == (0, "")
    monkeypatch.setattr("driftgate.train.run.Run.decode", lambda *_: "```python\ndef f(x): return 2 * x\n```")
    assert command(*few, prompts=prompts | {"verify": CODE}, out=tmp_path / "code") == (0, "")
    for name, right in (("own", {"0": False, "1": False}), ("code", {"0": True, "1": False})):
        rows = [row for path in (tmp_path / name / "rollouts").iterdir() for row in rows_of(path.parent, path.name)]
        assert {row["prompt"]: row["correct"] for row in rows} == right


def test_an_evaluation_of_code(pair, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tasks.jsonl"
    path.write_text(problem("3+4=", id="a", answer=BOTH) + "\n" + problem("1+1=", id="b", answer="assert f(2) == 5"))
    examinee = load_examinee(pair[0])
    monkeypatch.setattr(examinee.tokenizer, "decode", lambda *_, **__: "def f(x): return 2 * x")
    told = {"benchmarks": [str(path)], "samples": 2, "max_new_tokens": 5, "verify": CODE}
    result = evaluate(examinee, ExamSettings.model_validate(told), tmp_path / "exam")
    assert [row["correct"] for row in rows_of(tmp_path / "exam", "samples.jsonl")] == [True, True, False, False]
    assert set(result["pass"][str(path)]) == {"pass@1", "pass@2", "avg@2"}
    words = ["--benchmark", str(path), "--verify", "code", "--samples", "1", "--max-new-tokens", "5"]
    assert drive(monkeypatch, capsys, "eval", pair[0], *words, "--out", str(tmp_path / "own"))[0] == 0
    assert [row["correct"] for row in rows_of(tmp_path / "own", "samples.jsonl")] == [False, False]
