"""Mixtures with weights, problems that are held out, prompts that are left out; a run on a mixture, resumed."""

import json
import os
import signal
from collections import Counter
from fractions import Fraction

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from driftgate.config import PromptSettings
from driftgate.data.benchmarks import content_sha256, load_benchmark
from driftgate.data.held_out import is_held_out, write_held_out
from driftgate.data.mixture import places_of
from driftgate.data.problems import Problem, load_problems
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.stop import Stopped
from driftgate.train import loop
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.train.rollouts import prompts_of_batch

WEIGHTS = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 3, "b": 0.01}, {"a": 5}]


def divided(weights, count):
    """The seats of `count` in turn, by the method of Sainte-Laguë: the next goes to the largest w / (2 seats + 1)."""
    seats, given = dict.fromkeys(sorted(weights), 0), []
    for _ in range(count):
        shares = {name: Fraction(str(weights[name])) / (2 * seats[name] + 1) for name in seats}
        name = max(seats, key=lambda each: (shares[each], [-ord(letter) for letter in each]))
        given.append((name, seats[name]))
        seats[name] += 1
    return given


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_sources_take_turns_as_seats_are_given(weights):
    slow = divided(weights, 400)
    assert places_of(weights, 0, 400) == slow
    assert [place for start in range(0, 400, 7) for place in places_of(weights, start, start + 7)][:400] == slow
    assert places_of(dict(reversed(weights.items())), 150, 157) == slow[150:157]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_stretch_has_the_shares_of_the_weights(weights):
    total, drawn = sum(weights.values()), places_of(weights, 0, 2_000)
    for start in (0, 3, 1_000):
        found = Counter(name for name, _ in drawn[start : start + 100])
        assert all(abs(found[name] - 100 * weight / total) <= 1 + len(weights) / 2 for name, weight in weights.items())


def mixed(settings, **weights):
    return check_config(
        settings
        | {"prompts": {"mix": {n: {"path": "sandbox", "weight": w} for n, w in weights.items()}, "per_step": 5}}
    )


def prompts_named(name, count):
    return [Prompt(Problem(f"{name}/{i}", "x", source=name), (1,), (1,)) for i in range(count)]


def test_each_source_walks_through_its_own_shuffles_whatever_else_is_mixed(settings):
    few, many = prompts_named("few", 3), prompts_named("many", 40)
    config, alone = mixed(settings, many=3, few=1), mixed(settings, many=1)
    walked = [prompt.problem.id for n in range(12) for prompt in prompts_of_batch([*few, *many], config, n)]
    own = {name: [each for each in walked if each.startswith(name)] for name in ("few", "many")}
    assert (len(own["few"]), len(own["many"])) == (15, 45)
    assert all(sorted(own["few"][i : i + 3]) == [p.problem.id for p in few] for i in range(0, 15, 3))
    assert sorted(own["many"][:40]) == sorted(p.problem.id for p in many)
    assert own["many"] == [p.problem.id for n in range(9) for p in prompts_of_batch(many, alone, n)]
    assert prompts_of_batch([*few, *many], config, 7) == prompts_of_batch([*few, *many], config, 7)


def test_what_is_held_out_depends_on_the_text_alone():
    problems = [Problem(str(i), f"What is {i} + 1?", str(i)) for i in range(2_000)]
    held = {p.problem for p in problems if is_held_out(p, 0.1)}
    assert 150 < len(held) < 250
    other = [Problem("x", f" What  is\n{i} + 1?", source="other") for i in reversed(range(2_000))]
    assert {p.problem.split()[2] for p in other if is_held_out(p, 0.1)} == {text.split()[2] for text in held}
    assert held < {p.problem for p in problems if is_held_out(p, 0.2)}
    assert not any(is_held_out(p, 0.0) for p in problems)


def test_held_out_problems_are_a_benchmark(tmp_path):
    problems = [
        Problem("a", "1+\u20281=", "2", "1+1=2", source="sums"),
        Problem("b", "2+2=", None, source="sums"),
        Problem("c", "3-1=", "2", source="other"),
    ]
    write_held_out(tmp_path, problems)
    assert sorted(path.name for path in (tmp_path / "held_out").iterdir()) == ["other.jsonl", "sums.jsonl"]
    [found] = load_benchmark(str(tmp_path / "held_out" / "sums.jsonl"))
    assert found == Problem("a", "1+\u20281=", "2", "1+1=2")
    assert content_sha256([found]) == content_sha256(problems[:1])


@pytest.fixture
def files(tmp_path):
    """A parquet file with our names and a CSV file with others."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sums = [{"id": f"s{i}", "problem": f"{i}+{i}=", "answer": str(2 * i)} for i in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(sums), tmp_path / "sums.parquet")
    (tmp_path / "more.csv").write_text("question,target\n" + "".join(f"{i}-1=,{i - 1}\n" for i in range(10, 25)))
    return {"sums": {"path": str(tmp_path / "sums.parquet"), "weight": 2}, "more": {"path": str(tmp_path / "more.csv")}}


@pytest.fixture
def mixture(settings, files):
    """Two steps on both files."""
    prompts = {"mix": files, "per_step": 3, "held_out": 0.2, "too_long": "leave_out", "max_tokens": 5}
    return settings | {"prompts": prompts, "steps": 2, "minibatch": None}


def metrics_of(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_a_run_on_a_mixture_resumes_bit_for_bit(mixture, tmp_path, monkeypatch, capsys):
    config, whole, cut = check_config(mixture), tmp_path / "whole", tmp_path / "cut"
    run(config, whole, Console(width=300))
    said = capsys.readouterr().out
    assert "prompts.mix.more: 15 problems of more.csv; problem from `question`, answer from `target`; wei" in said
    assert "20 problems of sums.parquet; problem from `problem`, answer from `answer`; weight 2 of 3\n" in said
    original, done = loop.timed_update, []

    def stopped(*args):
        done.append(original(*args))
        if len(done) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return done[-1]

    monkeypatch.setattr(loop, "timed_update", stopped)
    with pytest.raises(Stopped):
        run(config, cut, Console(quiet=True))
    run(config, cut, Console(quiet=True))
    one, other = (load_file(final_model(out) / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics_of(whole) == metrics_of(cut)
    first = metrics_of(whole)[0]
    assert first["source.more.share"] + first["source.sums.share"] == pytest.approx(1)
    assert 0 <= first["source.sums.correct"] <= 1
    assert (whole / "held_out" / "sums.jsonl").read_text() == (cut / "held_out" / "sums.jsonl").read_text()


def test_no_problem_is_both_trained_on_and_held_out(mixture, tmp_path):
    made = build_run(check_config(mixture | {"prompts": mixture["prompts"] | {"max_tokens": 2048}}), tmp_path / "run")
    trained, held = {p.problem.id for p in made.prompts}, {p.id for p in made.problems.held_out}
    assert len(trained) + len(held) == 35
    assert not trained & held
    assert len({each.partition("/")[0] for each in held}) == 2
    assert f"prompts: {len(trained)} to train on; " in made.problems.said[-1]


def test_long_prompts_are_left_out_and_counted(settings, tmp_path):
    path = tmp_path / "p.jsonl"
    texts = ["3+4=", "1+2+3+4+5+6+7=", "9="]
    path.write_text("".join(json.dumps({"problem": text}) + "\n" for text in texts))
    prompts = {"path": str(path), "per_step": 2, "max_tokens": 5, "too_long": "leave_out"}
    made = build_run(check_config(settings | {"prompts": prompts}), tmp_path / "run")
    assert [p.problem.problem for p in made.prompts] == ["3+4=", "9="]
    assert made.problems.said[-1] == "prompts: 2 to train on; 1 too long, left out"
    prompts |= {"max_tokens": 2048}
    fewer = settings | {"prompts": prompts, "rollout": settings["rollout"] | {"max_new_tokens": 250}}
    assert len(build_run(check_config(fewer), tmp_path / "run").prompts) == 2


def test_a_source_may_name_the_teacher_of_its_problems(settings, pair, files):
    teachers = {"one": {"path": pair[1]}, "two": {"path": pair[0]}}
    mix = {"sums": files["sums"] | {"teacher": "one"}, "more": files["more"] | {"teacher": "two"}}
    values = {**settings, "teachers": teachers, "prompts": {"mix": mix}}
    del values["teacher"]
    problems = load_problems(check_config(values).prompts, routed=True)
    assert {(p.source, p.teacher) for p in problems} == {("sums", "one"), ("more", "two")}


def test_each_source_has_its_own_verifier(settings, tmp_path):
    paths = [tmp_path / f"{name}.jsonl" for name in ("sums", "letters", "more")]
    for path, answer in zip(paths, ("7", "B", "7")):
        path.write_text(json.dumps({"problem": "3+4=", "answer": answer}) + "\n")
    mix = {path.stem: {"path": str(path)} for path in paths}
    mix["letters"]["verify"] = "choice"
    made = build_run(check_config(settings | {"prompts": {"mix": mix}}), tmp_path / "run")
    texts = {(1,): r"\boxed{7}", (2,): "The answer is (B)."}
    responses = [[Response(ids, (0.0,), True) for ids in texts] for _ in made.prompts]
    with made.grader as grader:
        rows = grader.rows(made.prompts, responses, lambda ids: texts[ids])
    right = {"letters": [False, True], "more": [True, False], "sums": [True, False]}
    assert [row["prompt"] for row in rows] == [f"{name}/0" for name in right for _ in texts]
    assert [row["correct"] for row in rows] == [each for verdicts in right.values() for each in verdicts]
    assert grader.verifiers["sums"] is grader.verifiers["more"]
    mix["sums"]["verify"] = "choice"
    with pytest.raises(InputError, match=r"prompts.mix = .*: verify.kind = choice, but the answer '7' of problem 'sum"):
        build_run(check_config(settings | {"prompts": {"mix": mix}}), tmp_path / "run")


def test_a_mixture_does_not_change_the_order_of_a_single_file(settings, files):
    one = check_config(settings | {"prompts": {"path": files["sums"]["path"], "per_step": 4}})
    problems = load_problems(one.prompts)
    assert all(p.source is None and "/" not in p.id for p in problems)


MIX = {"a": {"path": "sandbox"}, "b": {"path": "sandbox"}}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({}, "prompts: no problems are named; set prompts.path=FILE, or prompts.mix={NAME: {path: FILE}, ...}"),
        ({"path": "sandbox", "mix": MIX}, "prompts.path = sandbox and prompts.mix both name problems; set prompts.pa"),
        ({"mix": MIX, "limit": 3}, "prompts.limit = 3 with prompts.mix: set it in each source, prompts.mix.NAME"),
        ({"mix": MIX, "columns": {"problem": "x"}}, "prompts.columns = {'problem': 'x'} with prompts.mix"),
        ({"mix": {"a": {"path": "sandbox", "weight": 0}}}, "prompts.mix.a.weight = 0: input should be greater than 0"),
        ({"mix": {"a/b": {"path": "sandbox"}}}, "a source's name is made of letters, digits, - and _, not 'a/b'"),
        ({"mix": {"a": {"path": "sandbox", "wieght": 2}}}, "prompts.mix.a.wieght: unknown setting; did you mean"),
        ({"mix": {"a": {"path": "sandbox", "columns": {"anwser": "x"}}}}, "anwser is not read of a row; did you mean"),
        ({"mix": {"a": {"path": "sandbox", "teacher": "t"}}}, "prompts.mix.a.teacher = t: there is no teachers.t"),
        ({"mix": {"a": {"path": "no.csv"}}}, "prompts.mix.a.path = no.csv: there is no such file"),
        ({"path": "sandbox", "held_out": 1}, "prompts.held_out = 1: input should be less than 1"),
        ({"path": "sandbox", "held_out": 1e-9}, "prompts.held_out = 1e-09: 0 of 4096 problems are held out, none with"),
        ({"path": "sandbox", "too_long": "drop"}, "prompts.too_long = 'drop': input should be 'refuse' or 'leave_out'"),
        ({"path": "sandbox", "limit": 0}, "prompts.limit = 0: input should be greater than 0"),
        (
            {"path": "sandbox", "max_tokens": 1, "too_long": "leave_out"},
            "prompts.path: none of its problems is left to train on; of all, 0 are held out, 4096 are too long",
        ),
        ({"path": "sandbox", "max_tokens": 1}, "or leave such problems out with prompts.too_long=leave_out"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_are_refused_with_their_mend(settings, tmp_path, prompts, said):
    with pytest.raises(InputError) as error:
        build_run(check_config(settings | {"prompts": prompts}), tmp_path / "run")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_column_that_no_row_of_a_source_has_names_the_source(files):
    mix = files | {"sums": files["sums"] | {"columns": {"answer": "anwser"}}}
    with pytest.raises(InputError, match=r"prompts.mix.sums.columns.answer = 'anwser': no row has this column"):
        load_problems(PromptSettings(mix=mix))
