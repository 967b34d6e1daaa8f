"""Reference solutions among the rollouts, and what the teacher writes of them."""

import copy
import json
import math

import pytest
import torch
from conftest import collected, learn
from rollout_case import (
    GREEDY,
    NLL,
    QUIET,
    collect,
    greedy,
    ids_of,
    metrics_of,
    references_in,
    solution_ids,
    solutions_of_step,
    with_rollout,
)

from driftgate.errors import InputError
from driftgate.recipe import check_config, load_recipe
from driftgate.train.command import run
from driftgate.train.records import distances
from driftgate.train.rollouts import prompts_of_batch, sample_responses
from driftgate.train.weighing import Moment


def test_reference_solutions_take_their_share_of_the_responses(values, tmp_path):
    config = with_rollout(values, max_new_tokens=13, samples=60, on_policy=0.3)
    made, responses = collected(config, tmp_path / "run")
    batch = responses["student"]
    references = references_in(batch)
    assert abs(sum(references) / 240 - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 240)
    own = ids_of(
        {"student": collect(with_rollout(values, max_new_tokens=13, samples=60), made, tmp_path, 0)["student"]}
    )
    lengths = set()
    for i, text in enumerate(solutions_of_step(config, made, 0)):
        wanted = solution_ids(made, text)
        lengths.add(len(wanted) > 13)
        for n in range(60 * i, 60 * i + 60):
            ids = batch.responses[n].tolist()
            assert ids == (wanted[:13] if references[n] else own[n])
            if references[n]:
                assert bool(batch.finished[n]) == (len(wanted) <= 13)
                assert batch.keep[n].all()
    assert lengths == {True, False}  # of the solutions some were cut
    assert set(references[:60]) == set(references[60:120]) == {True, False}  # drawn for each response


def test_the_mixture_is_drawn_anew_at_each_step_and_the_same_on_a_rerun(values, tmp_path):
    config = with_rollout(values, max_new_tokens=8, samples=20, on_policy=0.5)
    made, first = collected(config, tmp_path / "run")
    draws = [references_in(collect(config, made, tmp_path / "run", step)["student"]) for step in (0, 1)]
    again = collected(config, tmp_path / "again")[1]
    assert draws[0] == references_in(first["student"]) == references_in(again["student"])
    assert ids_of(first) == ids_of(again)
    assert draws[0] != draws[1]


@pytest.mark.parametrize(("share", "references"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_mixture(values, tmp_path, share, references):
    config = with_rollout(values, on_policy=share)
    made, responses = collected(config, tmp_path / "run")
    assert references_in(responses["student"]) == [references] * 12
    metrics = learn(config, made, responses, range(12), Moment(3, 0))
    assert math.isfinite(metrics["loss"])
    assert ("mismatch_mean" in distances(responses["student"])) is not references


@pytest.mark.parametrize("context", [None, "{solution}{problem}"])
def test_the_prefix_is_the_teachers_and_context_alone(values, tmp_path, context):
    values["teacher"] |= {"context": context}
    config = with_rollout(values, samples=1, max_new_tokens=14, top_p=GREEDY, teacher_prefix=5)
    made, responses = collected(config, tmp_path / "run")
    batch = responses["student"]
    for prompt, shown, ids, keep in zip(batch.prompts, batch.teacher_prompts, batch.responses, batch.keep):
        begun = greedy(values["teacher"]["path"], shown.tolist(), 5)
        whole = [*begun, *greedy(values["student"]["path"], [*prompt.tolist(), *begun], 14 - 5)]
        assert ids.tolist() == whole
        assert keep.tolist() == [False] * len(begun) + [True] * (len(whole) - len(begun))
        assert (context is None) == torch.equal(prompt, shown)
    assert len(batch.ids) == sum(int(keep.sum()) for keep in batch.keep) < sum(map(len, batch.responses))
    metrics = learn(config, made, responses, range(4), Moment(3, 0))
    assert metrics["tokens"] == len(batch.ids)


@pytest.mark.parametrize(("steps", "wanted"), [(4, [10, 8, 5, 2, 0, 0]), (None, [10, 10, 10])])
def test_the_prefix_shrinks_with_the_run(values, tmp_path, steps, wanted):
    config = with_rollout(values, teacher_prefix=10, teacher_prefix_steps=steps)
    made, _ = collected(config, tmp_path / "run")
    for step, tokens in enumerate(wanted):
        batch = collect(config, made, tmp_path / "run", step)["student"]
        written = [int((~keep).sum()) for keep in batch.keep]
        assert written == [min(tokens, len(ids)) for ids in batch.responses]
        assert max(written) == tokens


@pytest.mark.parametrize(
    "horizon", [{"kind": "growing", "start": 10, "increment": 1, "every": 1}, {"kind": "share", "rho": 0.25}]
)
def test_a_limit_that_the_prefix_fills_is_refused(values, horizon):
    with pytest.raises(InputError, match="teacher_prefix = 10 leaves the student nothing of a response of 10 tokens"):
        with_rollout(values, teacher_prefix=10, horizon=horizon, max_new_tokens=40)


class Recorded:
    """An engine that notes how it was asked."""

    def __init__(self, engine):
        self.engine, self.asked, self.requests = engine, [], []

    def generate(self, requests, sampling, advance=None):
        self.asked.append(sampling)
        self.requests += requests
        return self.engine.generate(requests, sampling, advance)


@pytest.mark.parametrize(("steps", "shares"), [(4, [1, 0.75, 0.5, 0.25, 0, 0]), (None, [1, 1, 1])])
def test_the_budget_fades_over_its_steps(values, tmp_path, steps, shares):
    config = with_rollout(values, max_new_tokens=6, kl_budget=0.4, kl_budget_steps=steps)
    made, _ = collected(config, tmp_path / "run")
    made.engines.student = Recorded(made.engines.student)
    for step, share in enumerate(shares):
        collect(config, made, tmp_path / "run", step)
        sampling = made.engines.student.asked[-1]
        assert sampling.budget == pytest.approx(0.4 * share, abs=1e-12)
        assert (sampling.max_new_tokens, sampling.top_p, sampling.temperature) == (6, 0.9, 1.0)
    plain = with_rollout(values, max_new_tokens=6)
    if steps:  # nothing is left of it: the student's own responses
        spent = collect(config, made, tmp_path / "run", 4)
        assert ids_of(spent) == ids_of(collect(plain, made, tmp_path / "run", 4))
    guided, own = (collect(c, made, tmp_path / "run", 0) for c in (config, plain))
    assert ids_of(guided) != ids_of(own)


def test_the_student_is_scored_as_itself_whoever_leads_its_draws(values, tmp_path):
    config = with_rollout(values, kl_budget=50.0, samples=1, max_new_tokens=10, top_p=GREEDY)
    made, responses = collected(config, tmp_path / "run")
    for prompt, ids in zip(responses["student"].prompts, responses["student"].responses):
        assert ids.tolist() == greedy(values["teacher"]["path"], prompt.tolist(), 10)  # the budget is the teacher's
    learn(config, made, responses, range(len(responses["student"].responses)), Moment(3, 0))
    assert distances(responses["student"])["mismatch_max"] < 1e-4


# responses that are not the student's own


def test_the_reference_responses_are_each_prompts_solution_and_stop(values, tmp_path):
    terms = {"gold": NLL | {"responses": "reference"}}
    config = check_config(values | {"terms": terms, "rollout": values["rollout"] | {"max_new_tokens": 13}})
    made, responses = collected(config, tmp_path / "run")
    wanted = [solution_ids(made, text) for text in solutions_of_step(config, made, 0)]
    assert {len(ids) > 13 for ids in wanted} == {True, False}
    assert ids_of(responses, "reference") == [ids[:13] for ids in wanted]
    assert responses["reference"].finished.tolist() == [len(ids) <= 13 for ids in wanted]
    assert all(keep.all() for keep in responses["reference"].keep)
    alone = collected(
        check_config(values | {"rollout": values["rollout"] | {"max_new_tokens": 13}}), tmp_path / "alone"
    )
    assert ids_of(responses) == ids_of(alone[1])
    assert set(alone[1]) == {"student"}


def test_the_teachers_responses_are_samples_behind_the_teachers_prompt(values, tmp_path):
    values["teacher"] |= {"context": "{solution}{problem}"}
    horizon = {"kind": "share", "rho": 0.5}
    terms = {"taught": NLL | {"responses": "teacher"}}
    rollout = values["rollout"] | {"max_new_tokens": 12, "horizon": horizon, "top_p": GREEDY}
    config = check_config(values | {"terms": terms, "rollout": rollout})
    _, responses = collected(config, tmp_path / "run")
    batch = responses["teacher"]
    assert len(batch.responses) == 4
    for shown, prompt, ids in zip(batch.teacher_prompts, batch.prompts, batch.responses):
        assert len(shown) > len(prompt)
        assert ids.tolist() == greedy(values["teacher"]["path"], shown.tolist(), 12)
    assert max(map(len, batch.responses)) > max(map(len, ids_of(responses))) == 6


def double(values, **changes):
    values = copy.deepcopy(values) | changes
    values["student"]["dtype"] = values["teacher"]["dtype"] = "float64"
    values["optimizer"] = {"lr": 1e-30, "clip_norm": 1e9}  # the student stays where it is
    return values


def gradient(config, made, responses, step=0):
    learn(config, made, responses, range(12), Moment(3, step))
    return [parameter.grad.clone() for parameter in made.policy.parameters()]


def slow_nll_gradient(made, batch):
    """Of the mean over the responses' tokens of -log p, sequence by sequence behind the student's prompts."""
    model, losses = made.policy.model, []
    for prompt, ids in zip(batch.prompts, batch.responses):
        logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
        losses.append(-logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    return torch.autograd.grad(torch.cat(losses).mean(), list(model.parameters()))


@pytest.mark.parametrize("writer", ["reference", "teacher"])
def test_a_term_learns_the_tokens_of_its_own_responses_by_its_coefficient_of_the_step(values, tmp_path, writer):
    coef = {"start": 0.5, "end": 2.0, "steps": 6}
    config = check_config(double(values, terms={"more": NLL | {"responses": writer, "coef": coef}}))
    made, responses = collected(config, tmp_path / "run")
    alone = collected(check_config(double(values)), tmp_path / "alone")
    main = gradient(check_config(double(values)), *alone)
    expected = slow_nll_gradient(made, responses[writer])
    for step, share in [(0, 0.5), (1, 0.75), (4, 1.5), (6, 2.0), (60, 2.0)]:
        for found, base, more in zip(gradient(config, made, responses, step), main, expected):
            assert (found - base - share * more).norm() < 1e-6 * (base.norm() + more.norm())


@pytest.mark.parametrize("minibatch", [5, 4, 1])
def test_each_pass_sees_every_response_of_every_writer_once(values, tmp_path, minibatch):
    terms = {"gold": NLL | {"responses": "reference"}, "taught": NLL | {"responses": "teacher"}}
    config = check_config(values | {"terms": terms, "minibatch": minibatch, "steps": 1, "passes": 2})
    run(config, tmp_path / "run", QUIET)
    updates = [line for line in metrics_of(tmp_path / "run") if line["kind"] == "update"]
    responses = collected(config, tmp_path / "again")[1]
    for key, name in [("tokens", "student"), ("gold.tokens", "reference"), ("taught.tokens", "teacher")]:
        for number in (1, 2):
            seen = sum(line[key] for line in updates if line["pass"] == number)
            assert seen == len(responses[name].ids)


def test_the_phased_recipe_fades_out():
    ramp = load_recipe("repairs/sg_opd_phased").terms["teacher_samples"]
    assert [ramp.coef_at(step) for step in (0, 5, 25, 50)] == pytest.approx([0.1, 0.08, 0.0, 0.0])


def test_references_are_not_counted_as_the_students_and_cost_no_decoding(values, tmp_path):
    config = with_rollout(values, on_policy=0.5, samples=6)
    made, responses = collected(config, tmp_path / "run")
    batch = responses["student"]
    assert 0 < int(batch.written.sum()) < len(batch.responses)
    engine = made.engines.student = Recorded(made.engines.student)
    sample_responses(made.engines, prompts_of_batch(made.prompts, config, 0), config, 0, 40, lambda n: None)
    assert sum(len(request.keys) for request in engine.requests) == int(batch.written.sum())
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text().splitlines()]
    assert [not row["reference"] for row in rows] == batch.written.tolist()
    metrics = made.source.batch.metrics
    assert metrics["references"] == len(rows) - len(batch.lengths)
    assert metrics["tokens_mean"] == sum(batch.lengths) / len(batch.lengths)
