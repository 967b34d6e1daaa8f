"""Evaluations whose samples servers write."""

import json

import pytest
from bad_input import drive
from conftest import make_model
from fake_vllm import FakeVLLM

from driftgate.config.exam import ExamSettings
from driftgate.errors import InputError
from driftgate.evaluate.evaluate import evaluate, load_examinee
from driftgate.recipe import check_config
from driftgate.study.runner import Job, check_servers


@pytest.fixture
def exam(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps({"id": f"b{i}", "problem": f"{i}+4=", "answer": "7"}) + "\n" for i in range(3)))
    return ExamSettings(benchmarks=(str(path),), samples=2, max_new_tokens=8)


def on(exam, *urls):
    return ExamSettings.model_validate(exam.model_dump() | {"engine": {"kind": "vllm", "urls": urls}})


def test_a_server_writes_the_samples_and_another_goes_on(fake, pair, exam, tmp_path):
    model = load_examinee(make_model(tmp_path / "model", 9))  # not the one that the server was started with
    first = evaluate(model, on(exam, fake.url), tmp_path / "out")
    assert first["settings"]["engine"] == {"kind": "vllm"}
    with FakeVLLM(pair[0]) as other:
        assert evaluate(model, on(exam, other.url), tmp_path / "out") == first
        assert not other.asked
        again = evaluate(model, on(exam, other.url), tmp_path / "again")
    assert again == first
    rows = [(tmp_path / name / "samples.jsonl").read_text() for name in ("out", "again")]
    assert rows[0] == rows[1]


def test_this_process_does_not_go_on_where_a_server_began(fake, pair, exam, tmp_path):
    evaluate(load_examinee(pair[0]), on(exam, fake.url), tmp_path / "out")
    with pytest.raises(InputError, match=r"was begun with settings\.engine\.kind = \"vllm\", asked for is null"):
        evaluate(load_examinee(pair[0]), exam, tmp_path / "out")


def test_an_evaluation_without_servers_says_nothing_of_them(exam):
    assert "engine" not in exam.described()


def test_the_command_names_servers(fake, pair, exam, tmp_path, monkeypatch, capsys):
    words = ["eval", pair[0], "--benchmark", exam.benchmarks[0], "--samples", "1", "--max-new-tokens", "8"]
    code, said = drive(monkeypatch, capsys, *words, "--server", fake.url, "--out", str(tmp_path / "out"))
    assert (code, said) == (0, "")
    assert fake.count("/update_weights") == 1
    fake.die()
    code, said = drive(monkeypatch, capsys, *words, "--server", fake.url, "--out", str(tmp_path / "other"))
    assert code == 2
    assert "cannot be reached" in said


def test_too_short_a_context(fake, pair, exam):
    fake.context = 10
    with pytest.raises(InputError, match="its context is 10 tokens"):
        evaluate(load_examinee(pair[0]), on(exam, fake.url))


def test_runs_at_a_time_do_not_share_servers(settings, exam, tmp_path):
    config = check_config(settings)
    jobs = [Job("a", tmp_path, on(exam, "http://127.0.0.1:1"), config)]
    check_servers(jobs, 1)
    with pytest.raises(InputError, match=r"exam\.engine\.urls = http://127\.0\.0\.1:1 with 2 runs at a time, which"):
        check_servers(jobs, 2)
