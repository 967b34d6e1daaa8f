"""Prompts from files and the hub; packing; addressed randomness."""

import sys
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from driftgate import keyed
from driftgate.config import PromptSettings
from driftgate.config.exam import ExamSettings
from driftgate.config.models import TeacherSettings
from driftgate.data.packing import micro_batches, pack
from driftgate.data.problems import load_problems, parse_problems, read_problems
from driftgate.data.prompts import encode_prompts
from driftgate.data.templates import student_view
from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.sandbox.tokenizer import build_tokenizer
from driftgate.train.build import newline_ids
from driftgate.train.rollouts import prompts_of_batch


def shown(problems, **settings):
    settings = PromptSettings(path="x", **settings)
    return encode_prompts(problems, student_view(build_tokenizer(), settings), settings, 10, 256)


def test_the_embedded_prompts_load():
    problems = load_problems(PromptSettings(path="sandbox"))
    assert len({p.id for p in problems}) == len(problems) > 4_000
    assert all(p.answer and p.solution for p in problems[:100])


def test_columns_are_renamed_and_unicode_line_separators_stay_inside_a_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1+1=\u2028?", "n": 3}\n\n{"question": "2+2="}\n', encoding="utf-8")
    problems = load_problems(PromptSettings(path=str(path), columns={"problem": "question"}))
    assert [p.problem for p in problems] == ["1+1=\u2028?", "2+2="]
    assert [p.id for p in problems] == ["0", "1"]


def test_the_hub_is_read_through_the_datasets_library(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((names, split))
        return [{"question": "1+1=", "answer": "2"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    settings = {"columns": {"problem": "question", "solution": "answer"}}
    problems = load_problems(PromptSettings(path="hub:openai/gsm8k/main", **settings))
    load_problems(PromptSettings(path="hub:a/b@test", **settings))
    assert asked == [(("openai/gsm8k", "main"), "train"), (("a/b",), "test")]
    assert problems[0].solution == "2"


def test_the_hub_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"driftgate\[datasets\]"):
        load_problems(PromptSettings(path="hub:a/b"))


def test_a_template_fills_in_the_problem_and_a_context_the_solution(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1+1", "solution": "2"}\n')
    problems = load_problems(PromptSettings(path=str(path)))
    settings = PromptSettings(path="x", template="{problem}=")
    view = student_view(build_tokenizer(), settings)
    prompts = encode_prompts(problems, view, settings, 10, 256, replace(view, template="{problem}={solution}="), 256)
    decode = build_tokenizer().decode
    assert decode(prompts[0].ids) == "1+1="
    assert decode(prompts[0].teacher_ids) == "1+1=2="


def test_steps_walk_through_a_shuffle_and_repeat_no_prompt_in_an_epoch(settings):
    config = check_config(settings | {"prompts": settings["prompts"] | {"per_step": 2}})
    walked = [prompts_of_batch(list(range(6)), config, step) for step in range(6)]
    assert sorted(chain(*walked[:3])) == sorted(chain(*walked[3:])) == list(range(6))
    assert walked[:3] != walked[3:]
    assert walked[4] == prompts_of_batch(list(range(6)), config, 4)


def test_draws_depend_on_their_address_alone():
    first = keyed.generator(0, "rollout", 1, "p", 2).random(5)
    keyed.generator(9).random(100)
    assert (keyed.generator(0, "rollout", 1, "p", 2).random(5) == first).all()
    assert (keyed.generator(0, "rollout", 1, "p", 3).random(5) != first).any()
    assert 0 <= first.min() < first.max() < 1


def test_micro_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [5, 50, 7, 49, 6, 300, 8]
    groups = micro_batches(lengths, range(7), 100)
    assert sorted(chain(*groups)) == list(range(7))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100 for group in groups)
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    assert padded / sum(lengths) < 1.1


def test_packed_positions_predict_the_kept_tokens():
    prompts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    responses = [torch.tensor([5, 6]), torch.tensor([7, 8, 9])]
    keep = [torch.tensor([True, True]), torch.tensor([True, False, True])]
    batch = pack(prompts, responses, keep, [0, 2], torch.device("cpu"))
    following = torch.nn.functional.pad(batch.input_ids, (0, 1))[:, 1:].flatten()
    assert following[batch.predicts].tolist() == [5, 6, 7, 9]
    assert batch.tokens.tolist() == [0, 1, 2, 3]


def test_newline_tokens_are_found_by_their_text():
    tokenizer = build_tokenizer()
    table = newline_ids(tokenizer, 64)
    assert table.shape == (64,)
    assert table.nonzero().flatten().tolist() == [tokenizer.convert_tokens_to_ids("\n")]


def test_a_column_that_no_row_has_is_named():
    rows = [("here:1", {"question": "1+1", "label": "2"})]
    with pytest.raises(InputError, match=r"prompts.columns.answer = 'anwser': no row has this column; the columns are"):
        read_problems(rows, {"problem": "question", "answer": "anwser"}, "prompts.columns")
    assert parse_problems(rows, {"problem": "question", "answer": "label"})[0].answer == "2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": {"anwser": "label"}}, r"anwser is not read of a row; did you mean answer\? There are id, problem"),
        (
            {"columns": {"question": "problem"}},
            r"question is not read of a row; our name comes first: write \{problem: question\}\.",
        ),
        ({"template": "Solve it."}, r"has no \{problem\}, so all problems would look alike"),
    ],
)
def test_names_and_templates_that_do_nothing_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        PromptSettings.model_validate({"path": "x"} | change)


def test_a_context_and_an_exam_without_the_problem_are_refused():
    with pytest.raises(ValueError, match=r"has no \{problem\}"):
        TeacherSettings(path="x", context="Be wise.")
    with pytest.raises(ValueError, match=r"has no \{problem\}"):
        ExamSettings(benchmarks=("lock16",), template="Answer:")
