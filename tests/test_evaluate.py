"""`driftgate eval` end to end, and the divergence of a student from its teacher."""

import json
import sys

import pytest
import torch

from driftgate import cli
from driftgate.config import ModelSettings, PromptSettings
from driftgate.data.benchmarks import load_benchmark
from driftgate.data.prompts import Problem, encode_prompts
from driftgate.evaluate.divergence import divergence_by_prompt
from driftgate.evaluate.evaluate import EvalSettings, evaluate, load_examinee
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
    assert result["pass"]["mean"].keys() == {"pass@1", "pass@4"}


def test_a_right_answer_counts(pair, benchmark_file, monkeypatch):
    examinee = load_examinee(pair[0])
    monkeypatch.setattr(examinee.tokenizer, "decode", lambda *_, **__: r"\boxed{3}")
    result = evaluate(examinee, EvalSettings((benchmark_file,), samples=2, max_new_tokens=5))
    assert result["pass"][benchmark_file]["pass@1"]["mean"] == pytest.approx(1 / 5)


def test_two_evaluations_with_one_seed_are_the_same(pair, benchmark_file):
    settings = EvalSettings((benchmark_file,), samples=3, max_new_tokens=15)
    one, other = (evaluate(load_examinee(pair[0]), settings) for _ in range(2))
    assert one == other


def test_eval_of_a_run_folder_shows_prompts_as_trained(tmp_path):
    from driftgate.evaluate.command import _as_trained

    (tmp_path / "config.yaml").write_text("prompts: {path: x, template: 'Q {problem}', chat: true}\n")
    settings = _as_trained(str(tmp_path), EvalSettings(("lock16",)))
    assert (settings.template, settings.chat) == ("Q {problem}", True)
    assert _as_trained(str(tmp_path), EvalSettings(("lock16",), chat=False)).chat is False


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
    prompts = encode_prompts(problems, build_tokenizer(), settings, 20, 256, "{problem}{solution}", 256)
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
