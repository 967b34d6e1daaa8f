"""`driftgate eval` end to end, and the divergence of a student from its teacher."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import DynamicCache

from driftgate import cli
from driftgate.config import ModelSettings, PromptSettings
from driftgate.config.exam import ExamSettings
from driftgate.data.benchmarks import load_benchmark
from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt, encode_prompts
from driftgate.data.templates import student_view
from driftgate.errors import InputError
from driftgate.evaluate.batch import bytes_per_token, fitting_batch, free_bytes
from driftgate.evaluate.divergence import divergence_by_prompt
from driftgate.evaluate.evaluate import evaluate, load_examinee, plan
from driftgate.models.identity import fingerprint
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.sandbox.tokenizer import build_tokenizer


@pytest.fixture
def benchmark_file(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"id": f"s{i}", "problem": f"{i}+1=", "answer": str(i + 1)} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_eval_writes_every_sample_and_a_table(pair, benchmark_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "exam"
    words = ["eval", pair[0], "--benchmark", benchmark_file, "--benchmark", "lock16", "--limit", "3", "--samples", "4"]
    monkeypatch.setattr(sys, "argv", ["driftgate", *words, "--max-new-tokens", "20", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "pass@1" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * 4
    assert {"benchmark", "problem", "sample", "gold", "finished", "tokens", "text", "correct"} <= rows[0].keys()
    result = json.loads((out / "result.json").read_text())
    assert result["pass"].keys() == {benchmark_file, "lock16", "mean"}
    ours = {f"pass@{k}" for k in range(1, 5)} | {"avg@4", "maj@2", "maj@4"}
    assert result["pass"]["mean"].keys() == ours
    assert result["benchmarks"]["lock16"]["problems"] == 200
    assert result["problems"] == {benchmark_file: 3, "lock16": 3}
    assert [(r["benchmark"], r["problem"], r["sample"]) for r in rows[:5]] == [
        (benchmark_file, "s0", n) for n in range(4)
    ] + [(benchmark_file, "s1", 0)]


def test_a_right_answer_counts(pair, benchmark_file, monkeypatch):
    examinee = load_examinee(pair[0])
    monkeypatch.setattr(examinee.tokenizer, "decode", lambda *_, **__: r"\boxed{3}")
    result = evaluate(examinee, ExamSettings(benchmarks=(benchmark_file,), samples=2, max_new_tokens=5))
    assert result["pass"][benchmark_file]["pass@1"]["mean"] == pytest.approx(1 / 5)


def test_two_evaluations_with_one_seed_are_the_same(pair, benchmark_file):
    settings = ExamSettings(benchmarks=(benchmark_file,), samples=3, max_new_tokens=15)
    one, other = (evaluate(load_examinee(pair[0]), settings) for _ in range(2))
    assert one == other


def test_every_draw_is_addressed_by_seed_benchmark_problem_and_sample(pair, benchmark_file, tmp_path):
    examinee = load_examinee(pair[0])
    evaluate(
        examinee, ExamSettings(benchmarks=(benchmark_file,), samples=2, max_new_tokens=15, seed=7, batch=3), tmp_path
    )
    prompt = tuple(examinee.tokenizer("2+1=")["input_ids"])
    request = Request(prompt, ((7, "eval", "sums", "s2", 1),))
    [[response]] = HFEngine(examinee.policy).generate([request], Sampling(15, 1.0, 0.9, examinee.stop_ids()))
    row = next(row for row in rows_of(tmp_path) if (row["problem"], row["sample"]) == ("s2", 1))
    assert row["text"] == examinee.tokenizer.decode(response.ids, skip_special_tokens=True)
    assert row["tokens"] == len(response.ids)


def rows_of(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def stopping(monkeypatch, after):
    """Ctrl-C in the part after so many; returns the sizes of the parts that are sampled."""
    sizes = []
    generate = HFEngine.generate

    def stop(engine, requests, sampling, advance=None):
        if len(sizes) == after:
            raise KeyboardInterrupt
        sizes.append(sum(len(request.keys) for request in requests))
        return generate(engine, requests, sampling, advance)

    monkeypatch.setattr(HFEngine, "generate", stop)
    return sizes


@pytest.mark.parametrize("cut", [1, 3])
def test_an_interrupted_evaluation_goes_on_as_if_it_had_not_been(pair, benchmark_file, tmp_path, monkeypatch, cut):
    settings = ExamSettings(benchmarks=(benchmark_file, "lock16"), samples=3, max_new_tokens=15, batch=6, limit=4)
    examinee = load_examinee(pair[0])
    whole = evaluate(examinee, settings, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping(patch, cut)
        evaluate(examinee, settings, tmp_path / "cut")
    assert len(rows_of(tmp_path / "cut")) == 6 * cut
    with (tmp_path / "cut" / "samples.jsonl").open("a") as file:
        file.write('{"benchmark": "lock16", "problem": "torn')
    told = []
    with monkeypatch.context() as patch:
        sizes = stopping(patch, 99)
        assert evaluate(load_examinee(pair[0]), settings, tmp_path / "cut", told.append) == whole
    assert sizes == [6] * (4 - cut)
    assert sum(told) == 24
    for name in ("samples.jsonl", "result.json", "eval.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_evaluation_is_read(pair, benchmark_file, tmp_path, monkeypatch):
    settings = ExamSettings(benchmarks=(benchmark_file,), samples=2, max_new_tokens=5)
    first = evaluate(load_examinee(pair[0]), settings, tmp_path)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    stopping(monkeypatch, 0)
    assert evaluate(load_examinee(pair[0]), settings.model_copy(update={"batch": 1}), tmp_path) == first
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
    (tmp_path / "result.json").unlink()
    assert evaluate(load_examinee(pair[0]), settings, tmp_path) == first


def test_a_folder_of_another_evaluation_is_refused_by_what_differs(pair, benchmark_file, tmp_path):
    settings = ExamSettings(benchmarks=(benchmark_file,), samples=2, max_new_tokens=5)
    examinee = load_examinee(pair[0])
    evaluate(examinee, settings, tmp_path / "out")
    before = (tmp_path / "out" / "samples.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"settings.temperature = 1.0, asked for is 0.5\. Ask for the same"):
        evaluate(examinee, settings.model_copy(update={"temperature": 0.5}), tmp_path / "out")
    with pytest.raises(InputError, match=r"with model = "):
        evaluate(load_examinee(pair[1]), settings, tmp_path / "out")
    rows = [json.loads(line) | {"answer": "0"} for line in Path(benchmark_file).read_text().splitlines()]
    Path(benchmark_file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"with benchmarks\..*sha256 = "):
        evaluate(examinee, settings, tmp_path / "out")
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == before
    (tmp_path / "out" / "eval.json").unlink()
    with pytest.raises(InputError, match=r"no eval\.json"):
        evaluate(examinee, settings, tmp_path / "out")


def test_ctrl_c_ends_the_command_with_130_and_says_how_to_go_on(pair, benchmark_file, tmp_path, monkeypatch, capsys):
    stopping(monkeypatch, 0)
    words = ["eval", pair[0], "--benchmark", benchmark_file, "--max-new-tokens", "5", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["driftgate", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert "the same command resumes it" in capsys.readouterr().out


def test_the_batch_changes_no_sample(pair, benchmark_file, tmp_path):
    examinee = load_examinee(pair[0])
    found = []
    for batch in (2, 7, 256):
        settings = ExamSettings(benchmarks=(benchmark_file,), samples=5, max_new_tokens=15, batch=batch)
        evaluate(examinee, settings, tmp_path / str(batch))
        found.append((tmp_path / str(batch) / "samples.jsonl").read_text())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("samples", "batch"), [(3, 7), (5, 2), (8, 8), (1, 100)])
def test_parts_hold_a_batch_at_most_and_every_sample_once(samples, batch):
    prompts = [Prompt(Problem(str(i), "x"), (0,) * length, ()) for i, length in enumerate((5, 3, 9, 3, 1))]
    parts = plan(prompts, samples, batch)
    assert all(0 < sum(len(numbers) for _, numbers in part) <= batch for part in parts)
    order = [(p, n) for part in parts for p, numbers in part for n in numbers]
    assert sorted((p.problem.id, n) for p, n in order) == [(str(i), n) for i in range(5) for n in range(samples)]
    assert [len(p.ids) for p, _ in order] == sorted(len(p.ids) for p, _ in order)


def test_the_batch_follows_from_the_free_memory(pair):
    policy = load_examinee(pair[0]).policy
    cache = DynamicCache()
    policy.model.base_model(input_ids=torch.ones(1, 10, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(part.numel() * part.itemsize for layer in cache.layers for part in (layer.keys, layer.values))
    assert bytes_per_token(policy) == held / 10
    assert fitting_batch(policy, 100, free=2 * 100 * bytes_per_token(policy) * 5) == 5
    assert fitting_batch(policy, 10**9, free=1) == 1
    assert fitting_batch(policy, 1, free=2**40) == 256
    assert free_bytes(torch.device("cpu")) > 0
    for name in ("student", "teacher"):
        assert fitting_batch(load_examinee(f"sandbox/{name}").policy, 1024, free=2 * 2**30) == 256


def test_a_model_is_known_by_its_weights_and_tokenizer(pair):
    examinee, same, other = (load_examinee(path) for path in (pair[0], pair[0], pair[1]))
    ours = fingerprint(examinee.policy, examinee.tokenizer)
    assert ours == fingerprint(same.policy, same.tokenizer)
    assert ours != fingerprint(other.policy, other.tokenizer)
    with torch.no_grad():
        same.policy.model.get_output_embeddings().weight[3, 5] += 1e-3
    assert ours != fingerprint(same.policy, same.tokenizer)
    examinee.tokenizer.chat_template = "{{ messages }}"
    assert ours != fingerprint(examinee.policy, examinee.tokenizer)


def test_eval_of_a_run_folder_shows_prompts_as_trained(tmp_path):
    from driftgate.evaluate.command import _as_trained

    (tmp_path / "config.yaml").write_text("prompts: {path: x, template: 'Q {problem}', chat: true}\n")
    settings = _as_trained(str(tmp_path), ExamSettings(benchmarks=("lock16",)))
    assert (settings.template, settings.chat) == ("Q {problem}", True)
    assert _as_trained(str(tmp_path), ExamSettings(benchmarks=("lock16",), chat=False)).chat is False


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ((None, None), ("bfloat16", "bfloat16", "4bit")),
        (("float32", None), ("float32", None, None)),
        ((None, "bfloat16"), ("float32", "bfloat16", None)),
    ],
)
def test_eval_of_a_run_folder_holds_its_weights_as_trained_unless_told(tmp_path, monkeypatch, asked, held):
    from driftgate.evaluate import command

    found = []

    def load(model, device, dtype, compute, quantise):
        found.append((dtype, compute, quantise))
        raise InputError("enough")

    monkeypatch.setattr(command, "load_examinee", load)
    (tmp_path / "config.yaml").write_text("student: {path: x, dtype: bfloat16, compute: bfloat16, quantise: 4bit}\n")
    with pytest.raises(InputError, match="enough"):
        command.run_eval(
            str(tmp_path), ExamSettings(benchmarks=("lock16",)), tmp_path, Console(quiet=True), "cpu", *asked
        )
    assert found == [held]


def test_a_type_for_products_that_there_is_not_is_refused(pair):
    with pytest.raises(InputError, match="--compute float8"):
        load_examinee(pair[0], compute="float8")


def test_the_embedded_benchmarks_have_two_hundred_problems_with_integer_answers():
    for name in ("lock16", "lock19", "lock22", "lock25"):
        problems = load_benchmark(name)
        assert len(problems) == 200
        assert all(p.answer and p.answer.isdigit() for p in problems)


@torch.no_grad()
def test_divergence_is_the_kl_over_the_whole_vocabulary(pair):
    student, teacher = (Policy(load_model(ModelSettings(path=path), "student", torch.device("cpu"))) for path in pair)
    problems = [Problem("a", "1+1=", solution="2"), Problem("b", "30-4=", solution="26")]
    settings = PromptSettings(path="x")
    view = student_view(build_tokenizer(), settings)
    prompts = encode_prompts(problems, view, settings, 20, 256, replace(view, template="{problem}{solution}"), 256)
    requests = [Request(p.ids, tuple((p.problem.id, n) for n in range(2))) for p in prompts]
    responses = HFEngine(student).generate(requests, Sampling(20, 1.0, 0.9, (1,)))
    ours = divergence_by_prompt(student, teacher, prompts, responses, 0.8, 1000)
    for prompt, group, value in zip(prompts, responses, ours):
        means = []
        for response in group:
            answer = torch.tensor(response.ids)
            log_p, log_q = (
                policy.model(input_ids=torch.cat([torch.tensor(ids), answer])[None])
                .logits[0, len(ids) - 1 : -1]
                .div(0.8)
                .log_softmax(-1)
                for policy, ids in ((student, prompt.ids), (teacher, prompt.teacher_ids))
            )
            means.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        assert value == pytest.approx(sum(means) / 2, rel=1e-4)
