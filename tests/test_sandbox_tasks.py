"""The embedded tasks, tokenizer and pair: checked against the problem text, not against the generator."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import driftgate.sandbox
from driftgate.data.tasks import BENCHMARKS, LABELS, benchmark, is_held_out, training_problems
from driftgate.sandbox.pretrain import IGNORED, LESSONS, SIZES, batches
from driftgate.sandbox.tokenizer import VOCABULARY, build_tokenizer

PAIR = Path(driftgate.sandbox.__file__).parent / "pair"
LIMIT = 8 * 2**20


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def problems():
    return [p for name in BENCHMARKS for p in benchmark(name)] + training_problems(200)


def settings_by_hand(problem: str) -> list[str]:
    """Where the wheels stand after every move, read from the problem text alone."""
    start, *moves, end = problem.split()
    assert end == "?"
    left, right = int(start[0]), int(start[1])
    settings = []
    for _, sign, first, second in moves:
        if sign == "+":
            left, right = left + int(first), right + int(second)
        elif sign == "-":
            left, right = left - int(first), right - int(second)
        else:
            assert sign == "*"
            left, right = left * int(first), right * int(second)
        left, right = left % 10, right % 10
        settings.append(f"{left}{right}")
    return settings


def test_problems_are_the_same_every_time():
    for name in BENCHMARKS:
        assert benchmark(name, 20) == benchmark(name, 20) == benchmark(name, 50)[:20]
    assert training_problems(20, seed=3) == training_problems(20, seed=3)
    assert training_problems(20, seed=3) != training_problems(20, seed=4)


def test_problems_are_pinned():
    """The packaged pair was measured on these; a change here makes its made.json untrue."""
    assert benchmark("lock16", 1)[0].problem.startswith("99 a*73 b+24 c*73 d-62 ")


def test_each_benchmark_has_200_distinct_problems_with_stable_ids():
    for name in BENCHMARKS:
        chosen = benchmark(name)
        assert len({p.problem for p in chosen}) == len({p.id for p in chosen}) == 200
        assert chosen[7].id == f"{name}-0007"
        assert {p.source for p in chosen} == {name}


def test_benchmarks_grow_harder():
    lengths = [benchmark(name, 1)[0].solution.count("\n") for name in BENCHMARKS]
    assert lengths == sorted(set(lengths))


def test_answers_follow_from_the_problem_text(problems):
    for p in problems:
        settings = settings_by_hand(p.problem)
        assert p.answer == str(int(settings[-1]))
        assert p.solution.endswith(f"\\boxed{{{p.answer}}}")


def test_every_line_of_a_solution_is_one_move_carried_out(problems):
    for p in problems:
        start, *moves, _ = p.problem.split()
        settings = [start, *settings_by_hand(p.problem)]
        *lines, last = p.solution.split("\n")
        assert lines == [f"{before}{move}={after}" for move, before, after in zip(moves, settings, settings[1:])]
        assert re.fullmatch(r"\\boxed\{\d+\}", last)


def test_labels_are_neighbours_in_the_alphabet(problems):
    for p in problems:
        assert "".join(move[0] for move in p.problem.split()[1:-1]) in LABELS


def test_held_out_problems_never_meet_training():
    held_out = {p.problem for name in BENCHMARKS for p in benchmark(name)}
    seen = {p.problem for p in training_problems(2000)}
    assert not held_out & seen
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, seen))


def test_training_mixes_the_benchmarks_evenly():
    sources = [p.source for p in training_problems(40)]
    assert {name: sources.count(name) for name in BENCHMARKS} == dict.fromkeys(BENCHMARKS, 10)
    assert len({p.id for p in training_problems(40)}) == 40


def test_solutions_have_150_to_400_tokens(problems, tokenizer):
    lengths = [len(ids) for ids in tokenizer([p.solution for p in problems]).input_ids]
    assert min(lengths) >= 150
    assert max(lengths) <= 400


def test_tokenizer_round_trip(problems, tokenizer):
    for p in problems[::10]:
        text = p.problem + p.solution
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.encode(p.problem) + tokenizer.encode(p.solution) == ids  # no token spans the seam


def test_tokenizer_tokens(tokenizer):
    assert len(tokenizer) == len(VOCABULARY) == 48
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("=7\n\\boxed{")) == ["=", "7", "\n", "\\boxed{"]
    assert tokenizer.decode(tokenizer.encode("7<eos>"), skip_special_tokens=True) == "7"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "47 a+38 ?"}], tokenize=False)
    assert chat == "47 a+38 ?"


def test_pretraining_batches_label_solutions_only(tokenizer):
    lesson = LESSONS["student"][0]
    ids, labels = next(batches(lesson, 0, tokenizer))
    assert ids.numel() <= lesson.tokens
    for row, wanted in zip(ids[:5], labels[:5]):
        text = tokenizer.decode(row[row != tokenizer.pad_token_id])
        solution = tokenizer.decode(wanted[wanted != IGNORED])
        assert text.endswith("?" + solution)
        assert solution.endswith("}<eos>")
        assert torch.equal(row[wanted != IGNORED], wanted[wanted != IGNORED])


@pytest.mark.parametrize("role", list(SIZES))
def test_packaged_model(role, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(PAIR / role)
    own = AutoTokenizer.from_pretrained(PAIR / role)
    assert own.get_vocab() == tokenizer.get_vocab()
    assert own.chat_template == tokenizer.chat_template
    assert model.config.model_type == "qwen3"
    assert model.config.num_key_value_heads == model.config.num_attention_heads
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == own.eos_token_id
        assert config.pad_token_id == own.pad_token_id
    made = json.loads((PAIR / "made.json").read_text())[role]
    assert made["parameters"] == model.num_parameters()
    assert set(made["pass@1"]) == {*BENCHMARKS, "mean"}


def test_packaged_pair_is_small():
    assert sum(file.stat().st_size for file in PAIR.rglob("*") if file.is_file()) < LIMIT


def test_packaged_models_follow_the_format(tokenizer):
    """Greedy first lines: the teacher's is right, the student's is a move carried out, right or not."""
    problem = benchmark("lock16", 1)[0]
    ids = torch.tensor([tokenizer.encode(problem.problem)])
    for role in SIZES:
        model = AutoModelForCausalLM.from_pretrained(PAIR / role)
        first = tokenizer.decode(model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :])
        assert re.fullmatch(r"\d\d[a-z][-+*]\d\d=\d\d\n", first)
        assert role == "student" or problem.solution.startswith(first)
