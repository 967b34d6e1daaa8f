"""Verdicts as advantages, and runs without a teacher."""

import json
from statistics import fmean, stdev

import pytest
import torch
from conftest import learn
from test_resume import QUIET, assert_same, outcome, stop_after

from driftgate.data.experience import Experience
from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.estimate.estimate import estimate
from driftgate.recipe import check_config, load_recipe
from driftgate.stop import Stopped
from driftgate.train.build import build_run
from driftgate.train.checks import needs_verifier
from driftgate.train.command import run
from driftgate.train.weighing import Moment

GRPO = {"kind": "sampled_token", "teacher_coef": 0.0, "reward": {"coef": 1.0, "scale": "std"}, "dual_clip": None}
NONE = {"gate": {"spans": "none"}}


def response(length, reference=False):
    return Response(ids=(5,) * length, logprobs=(0.0,) * length, finished=True, reference=reference)


def batch_of(*groups):
    prompts = [Prompt(Problem(id=str(n), problem="", answer=None), (1,), (1,)) for n in range(len(groups))]
    return Experience.of(prompts, groups)


def test_a_group_s_mean_counts_responses_not_tokens_nor_references():
    groups = [[response(9), response(1), response(4, reference=True)], [response(2), response(3), response(1)]]
    verdicts = torch.tensor([1.0, 0.0, 1.0, 0.25, 1.0, 0.0])
    batch = batch_of(*groups).with_groups(torch.tensor([0, 0, 0, 1, 1, 1]), verdicts)
    assert batch.group_mean[:14].tolist() == [0.5] * 14
    assert batch.group_mean[14:].tolist() == pytest.approx([fmean([0.25, 1.0, 0.0])] * 6)
    assert batch.group_std[14:].tolist() == pytest.approx([stdev([0.25, 1.0, 0.0])] * 6)
    assert batch.correct[9:10].tolist() == [0.0]


def test_a_response_without_a_token_in_the_loss_counts_in_its_group_s_mean():
    batch = batch_of([response(3), response(0)]).with_groups(torch.tensor([0, 0]), torch.tensor([1.0, 0.0]))
    assert batch.group_mean.tolist() == [0.5] * 3


def alone(settings, **changes):
    return settings | {"teacher": None, "objective": GRPO, "passes": 1} | NONE | changes


def test_a_run_without_a_teacher_learns_and_says_what_it_measured(settings, command, tmp_path):
    code, said = command("steps=2", "diagnostics.every=1", **alone(settings))
    assert (code, said) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    update = next(line for line in lines if line["kind"] == "update") if "kind" in lines[0] else lines[-1]
    assert not {"teacher_gap", "overlap", "entropy_gap"} & update.keys()


def test_a_dry_run_without_a_teacher_has_no_teacher_s_memory_or_time():
    config = load_recipe("repairs/grpo", ["rollout.samples=4"])
    found = estimate(config, 10, 1, None, 0.5)
    assert found.teacher is None
    assert found.tokens.teacher == 0
    assert not any("teacher" in name for name in found.memory.resident)


def test_verdicts_are_asked_for_only_where_they_are_read(settings):
    plain = settings | NONE | {"objective": {"kind": "sampled_token"}}
    assert not needs_verifier(check_config(plain))
    assert needs_verifier(check_config(plain | {"objective": {"kind": "sampled_token", "reward": {"coef": 0.1}}}))


def gradients(settings, out, verdicts, **changes):
    """Of an update of the first minibatch."""
    config = check_config(alone(settings, **changes))
    made = build_run(config, out)
    responses = made.source.take(made.position).responses
    groups = torch.arange(len(verdicts)) // config.rollout.samples
    responses["student"] = responses["student"].with_groups(groups, torch.tensor(verdicts))
    learn(config, made, responses, list(range(6)), Moment(config.seed, 0))
    return [p.grad.clone() for p in made.policy.model.parameters() if p.grad is not None]


def test_groups_of_one_verdict_teach_nothing(settings, tmp_path):
    found = gradients(settings, tmp_path, [1.0] * 6 + [0.0] * 6)
    assert all((gradient == 0).all() for gradient in found)


def test_a_verdict_outside_the_minibatch_moves_the_mean_of_its_group(settings, tmp_path):
    rollout = {"samples": 4, "max_new_tokens": 20, "allow_truncated": True}
    changes = {"rollout": rollout, "prompts": settings["prompts"] | {"per_step": 3}}
    first = gradients(settings, tmp_path / "a", [1.0, 0.0] * 6, **changes)
    verdicts = [1.0, 0.0] * 3 + [1.0, 1.0] + [1.0, 0.0] * 2  # the second prompt's last two are in another minibatch
    moved = gradients(settings, tmp_path / "b", verdicts, **changes)
    assert any(not torch.equal(a, b) for a, b in zip(first, moved))


def test_a_stop_between_the_updates_of_a_batch_changes_nothing(settings, tmp_path, monkeypatch):
    objective = {"kind": "sampled_token", "shape": "return_to_go", "reward": {"coef": 1.0}}
    config = check_config(settings | NONE | {"objective": objective, "steps": 2, "passes": 1})
    run(config, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, 3)
        run(config, tmp_path / "stopped", QUIET)
    run(config, tmp_path / "stopped", QUIET)
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))
