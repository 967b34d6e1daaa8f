"""Several teachers: which one scores a problem, that the scores are its own, and what is refused."""

import json

import pytest
import torch
import yaml
from conftest import SOLUTIONS, collected, learn, make_model
from rich.console import Console
from safetensors.torch import load_file
from test_resume import stop_after

from driftgate.data.experience import Experience
from driftgate.errors import InputError
from driftgate.estimate.estimate import workload_of
from driftgate.estimate.gpus import GPUS
from driftgate.estimate.memory import memory_of
from driftgate.estimate.time import seconds_of
from driftgate.method.scores import Needs
from driftgate.recipe import check_config
from driftgate.stop import Stopped
from driftgate.study.config import Study
from driftgate.study.runner import jobs_of
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.train.weighing import Moment

QUIET = Console(quiet=True)
TEXTS = ["3+4=", "12-7+1=", "5*5-2=", "40+2-11*3=", "9=", "1+1="]
DOMAINS = ["sums", "mixed", "mixed", "sums", "sums", "mixed"]
SAMPLED = {"objective": {"kind": "sampled_token"}}
NEEDS = {
    "lsm": {},
    "sampled_token": SAMPLED,
    "jsd_union": {"objective": {"kind": "divergence", "divergence": "jsd", "support": "union", "k": 4}},
    "entropy": {**SAMPLED, "weights": {"sure": {"signal": "teacher_entropy", "map": "exp"}}},
}


def write_problems(path, domains=DOMAINS):
    rows = [
        {"id": f"p{i}", "problem": text, "answer": "7", "solution": solution, "domain": domain}
        for i, (text, solution, domain) in enumerate(zip(TEXTS, SOLUTIONS, domains))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def several(settings, pair, tmp_path):
    """Settings with two teachers, both the fixture's one; and the same run with one teacher."""
    path = write_problems(tmp_path / "problems.jsonl")
    prompts = settings["prompts"] | {"path": path, "columns": {"teacher": "domain"}}
    rollout = settings["rollout"] | {"allow_truncated": True}
    one = settings | {"prompts": prompts, "rollout": rollout, "device": "cpu"}
    teacher = {"path": pair[1]}
    return one | {"teacher": None, "teachers": {"sums": teacher, "mixed": teacher}}, one


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("other") / "teacher", 7, hidden=32)


def scores_of(batch):
    return dict(batch.scores.teacher.items())


@pytest.mark.parametrize("case", NEEDS)
def test_two_names_of_one_model_score_as_one_teacher(several, tmp_path, case):
    """In forwards of one sequence each to the bit."""
    found = []
    for number, settings in enumerate(several):
        config = check_config(settings | NEEDS[case] | {"microbatch_tokens": 1})
        made, responses = collected(config, tmp_path / str(number))
        metrics = [learn(config, made, responses, range(12), Moment(3, 0, age)) for age in range(2)]
        found.append((scores_of(responses["student"]), metrics))
    (ours, our_metrics), (theirs, their_metrics) = found
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert our_metrics == their_metrics


def test_in_other_forwards_they_differ_by_rounding(several, tmp_path):
    found = []
    for number, settings in enumerate(several):
        double = {role: settings[role] | {"dtype": "float64"} for role in ("student", "teacher") if settings[role]}
        double["teachers"] = {n: t | {"dtype": "float64"} for n, t in settings.get("teachers", {}).items()}
        made, responses = collected(check_config(settings | double | SAMPLED), tmp_path / str(number))
        found.append(responses["student"].scores.teacher.logp)
    assert found[0].dtype == torch.float64
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_each_problem_is_scored_by_its_own_teacher(several, pair, other, tmp_path):
    teachers = {"sums": {"path": pair[1]}, "mixed": {"path": other, "context": "{problem} {solution}"}}
    config = check_config(several[0] | SAMPLED | {"teachers": teachers, "microbatch_tokens": 1})
    made, responses = collected(config, tmp_path / "run")
    batch = responses["student"]
    names = sorted(teachers)
    for number, (name, teacher) in enumerate(sorted(teachers.items())):
        alone = several[1] | SAMPLED | {"teacher": teacher, "microbatch_tokens": 1}
        whole = collected(check_config(alone), tmp_path / name)[1]["student"]
        assert [r.tolist() for r in whole.responses] == [r.tolist() for r in batch.responses]
        own = batch.tokens_of((batch.teacher == number).nonzero().flatten().tolist())
        assert 0 < len(own) < len(batch.ids)
        assert torch.equal(batch.scores.teacher.logp[own], whole.scores.teacher.logp[own])
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    shares = [metrics[f"teacher.{name}.share"] for name in names]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == float((batch.teacher[batch.rows] == 0).double().mean())
    assert 0 <= metrics["teacher.mixed.correct"] <= 1


def test_a_teacher_without_a_token_in_the_batch_is_not_asked(several, pair, other, tmp_path):
    """One prompt a step: the batch is one teacher's."""
    prompts = several[0]["prompts"] | {"per_step": 1}
    config = check_config(several[0] | {"prompts": prompts, "minibatch": None, "steps": 2})
    run(config, tmp_path / "run", QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rollouts = [line for line in lines if line["kind"] == "rollout"]
    for line in rollouts:
        assert sorted((line["teacher.sums.share"], line["teacher.mixed.share"])) == [0, 1]
        assert sum(name.endswith(".correct") for name in line) == 1


def test_gaps_are_of_each_teacher(several, other, pair, tmp_path):
    teachers = {"sums": {"path": pair[1]}, "mixed": {"path": other}}
    run(check_config(several[0] | SAMPLED | {"teachers": teachers, "steps": 1}), tmp_path / "run", QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rollout, update = (next(line for line in lines if line["kind"] == kind) for kind in ("rollout", "update"))
    parts = [rollout[f"teacher.{name}.share"] * update[f"teacher.{name}.gap"] for name in teachers]
    assert sum(parts) == pytest.approx(update["teacher_gap"], rel=1e-5)


def test_a_batch_keeps_its_teachers_on_the_disk(several, tmp_path):
    _, responses = collected(check_config(several[0]), tmp_path / "run")
    responses["student"].save(tmp_path / "batch.safetensors")
    again = Experience.load(tmp_path / "batch.safetensors")
    assert torch.equal(again.teacher, responses["student"].teacher)


def outcome(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{n: v for n, v in line.items() if not n.startswith(("seconds", "time"))} for line in lines]
    return kept, load_file(next(final_model(out).glob("*.safetensors")))


def test_a_stop_after_any_update_changes_nothing(several, pair, other, tmp_path, monkeypatch):
    teachers = {"sums": {"path": "student"}, "mixed": {"path": other}}
    config = check_config(several[0] | SAMPLED | {"teachers": teachers, "steps": 2})
    run(config, tmp_path / "whole", QUIET)
    metrics, weights = outcome(tmp_path / "whole")
    for stop in (1, 4, 6):
        out = tmp_path / str(stop)
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, stop)
            run(config, out, QUIET)
        run(config, out, QUIET)
        again, others = outcome(out)
        assert again == metrics
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_environment_names_every_teacher(several, other, pair, tmp_path):
    teachers = {"sums": {"path": pair[1]}, "mixed": {"path": other}}
    run(check_config(several[0] | {"teachers": teachers, "steps": 1}), tmp_path / "run", QUIET)
    [session] = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len({session["student_sha256"], session["teachers.sums_sha256"], session["teachers.mixed_sha256"]}) == 3


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (["sums", "mixed", "other", *DOMAINS[3:]], r"problem 'p2' names the teacher 'other' in column 'domain'"),
        (["sums", None, "mixed", *DOMAINS[3:]], r"problem 'p1' names no teacher in column 'domain'; the teachers are"),
        (["sums"] * 6, r"teachers.mixed: no problem of prompts.path = .* names it in column 'domain'; take"),
    ],
)
def test_a_problem_without_its_teacher_is_refused(several, tmp_path, domains, said):
    settings = several[0] | {"prompts": several[0]["prompts"] | {"path": write_problems(tmp_path / "p.jsonl", domains)}}
    with pytest.raises(InputError, match=said) as caught:
        build_run(check_config(settings), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


VOCABULARY = {"kind": "divergence", "support": "vocabulary"}
REFUSED = {
    "both": ({"teacher": {"path": "x"}}, r"teachers = .* beside teacher.path = x: one of the two"),
    "neither": ({"teachers": {}}, r"teacher: missing; objective.kind = .* reads it; set teacher.path=..., or several"),
    "name": ({"teachers": {"a.b": {"path": "x"}}}, r"teachers.a.b: a name is made of letters"),
    "follow": (
        {"teachers": {"a": {"path": "student", "follow": {"every": 1}}}},
        r"teachers.a.follow: only a single `teacher`",
    ),
    "follow another": ({"teachers": {"a": {"path": "x", "follow": {"every": 1}}}}, r"teachers.a.follow"),
    "kl_budget": ({"rollout": {"kl_budget": 0.1}}, r"rollout.kl_budget = 0.1 with teachers: one teacher guides"),
    "teacher_prefix": ({"rollout": {"teacher_prefix": 3}}, r"rollout.teacher_prefix = 3 with teachers"),
    "vocabulary": ({"objective": VOCABULARY}, r"objective.support = vocabulary with teachers: one teacher's output"),
    "written": (
        {"terms": {"theirs": {"objective": {"kind": "nll"}, "responses": "teacher"}}},
        r"terms.theirs.responses = teacher with teachers: one teacher writes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_one_teacher_is_refused(several, case):
    changes, said = REFUSED[case]
    with pytest.raises(InputError, match=said) as caught:
        check_config(several[0] | changes)
    assert len(str(caught.value).splitlines()) == 1


def test_the_initial_student_may_be_compared_over_the_vocabulary(several):
    anchor = {"objective": VOCABULARY | {"target": "initial"}, "coef": 0.1}
    check_config(several[0] | {"terms": {"anchor": anchor}})


def test_a_teacher_with_another_vocabulary_is_named(several, tmp_path):
    make_model(tmp_path / "odd", 3, vocab_size=99)
    content = json.loads((tmp_path / "odd" / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    content["model"]["vocab"] = {token: len(ids) - 1 - number for token, number in ids.items()}
    (tmp_path / "odd" / "tokenizer.json").write_text(json.dumps(content))
    teachers = several[0]["teachers"] | {"mixed": {"path": str(tmp_path / "odd")}}
    with pytest.raises(InputError, match=r"teachers.mixed.path: its vocabulary"):
        build_run(check_config(several[0] | {"teachers": teachers}), tmp_path / "run")


def test_what_both_can_is_what_each_can():
    assert Needs(True, True, 9) & Needs(True, False, 4, True) == Needs(logp=True, top=4)


def test_the_order_of_the_teachers_does_not_matter(several, tmp_path):
    turned = several[0] | {"teachers": dict(reversed(several[0]["teachers"].items()))}
    assert list(check_config(turned).teacher_roles) == list(check_config(several[0]).teacher_roles)
    assert check_config(turned) == check_config(several[0])


def test_the_estimate_holds_every_teacher(several, other):
    teachers = several[0]["teachers"] | {"mixed": {"path": other}}
    work = workload_of(check_config(several[0] | {"teachers": teachers}), mean_length=0.5)
    memory = memory_of(work)
    assert {"teachers.sums", "teachers.mixed"} < memory.resident.keys()
    assert work.largest_teacher == "teachers.sums"  # 48 wide, the other 32
    assert "every response is taken to be scored by the largest teacher" in work.notes


def test_a_teacher_on_servers_takes_nothing_here(several, pair):
    """Its path says how large it is, but its memory and time are the servers'."""
    served = {"path": pair[1], "kind": "server", "urls": ["http://127.0.0.1:9"]}
    here, there = (
        workload_of(check_config(several[1] | {"teacher": teacher, "diagnostics": {"every": 0}}), mean_length=0.5)
        for teacher in (several[1]["teacher"], served)
    )
    assert memory_of(there).peak < memory_of(here).peak
    assert "teacher" not in memory_of(there).resident
    gpu = GPUS[0]
    assert seconds_of(there, gpu).teacher == 0 < seconds_of(here, gpu).teacher
    assert "teacher is on servers, whose memory and time are their own" in there.notes


def test_a_study_of_several_teachers_has_no_reference(several, tmp_path):
    file = tmp_path / "several.yaml"
    file.write_text(yaml.safe_dump(several[0] | {"gate": {"spans": "none"}}))
    study = {
        "varies": ["gate"],
        "arms": {"plain": {"recipe": str(file)}},
        "base": "plain",
        "seeds": [1, 2],
        "exam": {"benchmarks": ["sandbox/add"]},
    }
    with pytest.raises(InputError, match=r"references = true with teachers in arm plain: .*set references=false"):
        list(jobs_of(Study.model_validate(study), {"plain": check_config(several[0])}, tmp_path))
