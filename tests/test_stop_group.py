"""A stop group: several ids as one class, in every function of the head, and in runs."""

import json
import shutil

import pytest
import torch
from conftest import collected
from slow_update import LSM, SAMPLED, double, update
from test_head import KINDS, gradients, problem
from test_head_kinds import HEADS, made, same
from twins import slow_head_logits

from driftgate.errors import InputError
from driftgate.method import head
from driftgate.method.logits import Head
from driftgate.method.objectives import divergence
from driftgate.method.vocabulary import vocabulary_divergence
from driftgate.recipe import check_config
from driftgate.train.portions import schedule
from driftgate.train.records import distances

GROUP = (40, 3, 77)
KEPT = [i for i in range(101) if i not in GROUP[1:]]
"""The class of each column of the twin."""


def grouped(kind="all", **sizes):
    """Hidden states, a head with the group, ids with many of the group, and what has a gradient."""
    hidden, output, ids, inputs = made(kind, **sizes)
    ids[::2, 0], ids[1::3, 2] = 3, 40
    ids[4] = torch.tensor([77, 3, 40, 5, 77])
    return hidden, Head(output.weight, output.bias, output.scale, output.cap, GROUP), ids, inputs


def slow_classes(hidden, output, temperature):
    """Log-probabilities [N, V - 2] of the classes: the probabilities of the group's ids are added up."""
    logits = slow_head_logits(hidden, output.weight, output.bias, output.scale, output.cap)
    p = (logits / temperature).softmax(-1)
    columns = [p[:, list(GROUP)].sum(1) if i == GROUP[0] else p[:, i] for i in KEPT]
    return torch.stack(columns, 1).log()


def places(ids):
    """The columns of ids among the classes."""
    return torch.tensor([[KEPT.index(GROUP[0] if i in GROUP else i) for i in row] for row in ids.tolist()])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_gradients(kind, temperature):
    hidden, output, ids, inputs = grouped(kind)
    theirs = slow_classes(hidden, output, temperature).gather(1, places(ids))
    same(head.token_logprobs(hidden, output, ids, temperature, 7), theirs, inputs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_weighted_loss_and_its_gradients(temperature):
    hidden, output, ids, inputs = grouped()
    token_weight = torch.linspace(-1, 2, 37).double()
    total, _, logp = head.weighted_loss(
        hidden, output, ids[:, 0], token_weight, lambda _, p: p.square(), temperature, 7
    )
    expected = slow_classes(hidden, output, temperature).gather(1, places(ids[:, :1]))[:, 0]
    torch.testing.assert_close(logp, expected.detach())
    same(total, (token_weight * expected.square()).sum(), inputs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_summary_has_no_member_but_the_first(temperature):
    hidden, output, ids, _ = grouped()
    found = head.summary(hidden, output, ids, len(KEPT), True, temperature, 8)
    exact = slow_classes(hidden, output, temperature).detach()
    torch.testing.assert_close(found.logp, exact.gather(1, places(ids)))
    torch.testing.assert_close(found.entropy, -(exact.exp() * exact).sum(-1))
    torch.testing.assert_close(found.top_logp, exact.sort(-1, descending=True).values)
    assert torch.equal(found.top_ids, torch.tensor(KEPT)[exact.argsort(-1, descending=True)])
    with pytest.raises(ValueError, match="the 99 tokens of the vocabulary, not 100"):
        head.summary(hidden, output, ids, 100)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_logits_of_a_support_and_their_gradients(temperature):
    hidden, output, ids, inputs = grouped()
    logits = slow_head_logits(hidden, output.weight, output.bias, output.scale, output.cap) / temperature
    columns = [logits[:, list(GROUP)].logsumexp(1) if i == GROUP[0] else logits[:, i] for i in KEPT]
    theirs = torch.stack(columns, 1).gather(1, places(ids))
    ours = head.support_logits(hidden, output, ids, temperature, 7)
    same(ours, theirs, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_divergence_over_the_vocabulary(kind, temperature):
    hidden, output, _, inputs = grouped("bias")
    hidden_q, output_q, _, _ = grouped("cap", seed=1, hidden=8)
    ours = vocabulary_divergence(hidden, output, hidden_q, output_q, kind, 0.3, temperature, 10)
    p, q = (slow_classes(*each, temperature) for each in ((hidden, output), (hidden_q, output_q)))
    same(ours, divergence(p, q.detach(), kind, 0.3), inputs)
    with pytest.raises(ValueError, match=r"weight_q has the group \(\) but weight has \(40, 3, 77\)"):
        vocabulary_divergence(hidden, output, hidden_q, Head(output_q.weight), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_members_without_mass_make_no_nan_in_float32(kind):
    """Also where a side is certain of one class."""
    hidden, weight, ids = problem(dtype=torch.float32)
    output = Head(weight * 100, group=GROUP)
    value = vocabulary_divergence(hidden, output, hidden.detach().flip(0), output, kind)
    assert value.isfinite().all()
    assert gradients(value, weight)[0].isfinite().all()
    found = head.summary(hidden, output, ids, 9, True)
    assert all(each.isfinite().all() for each in found)
    assert (found.top_logp > -1e6).all()


def test_a_group_of_one_id_changes_no_value():
    hidden, weight, ids = problem()
    one = head.token_logprobs(hidden, Head(weight, group=(40,)), ids)
    torch.testing.assert_close(one, head.token_logprobs(hidden, weight, ids))


@pytest.fixture
def stops(settings):
    """The same run with two ids that end an answer; the second is a common token, so that responses end with both."""
    settings["rollout"] |= {"stop_ids": [1, 20], "stop_group": True}
    return settings


OBJECTIVES = {
    "lsm": LSM,
    "sampled_token": SAMPLED,
    "candidates": {"kind": "candidates", "k": 6},
    "vocabulary": {"kind": "divergence", "support": "vocabulary"},
    "union": {"kind": "divergence", "divergence": "jsd", "support": "union", "k": 4},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_update_learns_from_one_end(stops, tmp_path, objective):
    config = double(stops, objective=OBJECTIVES[objective], gate={"spans": "none"}, diagnostics={"every": 1, "k": 6})
    made_run, responses = collected(config, tmp_path)
    student = responses["student"]
    last = {int(each[-1]) for each in student.responses}
    assert 20 in last
    for scores in (student.scores.behaviour, student.scores.teacher):
        if scores.top_ids is not None:
            assert not (scores.top_ids == 20).any()  # 1 stands for both
    for each in schedule(config, 0):
        metrics = update(config, made_run, responses, each.sequences, each.number)
    assert all(value == value for value in metrics.values())
    student = responses["student"]
    if objective == "sampled_token":
        assert distances(student)["mismatch_max"] > 0.01  # the engine says log p of 20 alone
        assert distances(student, (1, 20))["mismatch_max"] < 1e-4


def test_old_and_new_log_probabilities_are_of_the_class(stops, tmp_path):
    made_run, responses = collected(double(stops, objective=SAMPLED, gate={"spans": "none"}), tmp_path)
    student = responses["student"]
    row = next(i for i, each in enumerate(student.responses) if int(each[-1]) == 20)
    chosen = (student.rows == row).nonzero().flatten()[-1]
    ids = torch.cat([student.prompts[row], student.responses[row]])[None]
    for policy, scores in ((made_run.targets["teacher"], student.scores.teacher),):
        with torch.no_grad():
            p = policy.model(input_ids=ids).logits[0, -2].softmax(-1)
        assert float(scores.logp[chosen]) == pytest.approx(float((p[1] + p[20]).log()), rel=1e-9)


def test_a_group_of_one_is_refused(command, settings):
    code, said = command("rollout.stop_group=true")
    assert code == 2
    assert "rollout.stop_group = true: an answer ends with [1], and a group needs two ids or more" in said
    with pytest.raises(InputError, match=r"stop_group = true with stop_ids = \[1\]: a group needs two ids or more"):
        check_config(settings | {"rollout": settings["rollout"] | {"stop_ids": [1], "stop_group": True}})


def test_a_teacher_on_servers_is_refused(command, pair):
    teacher = {"kind": "server", "path": pair[1], "urls": ["http://127.0.0.1:1"]}
    code, said = command("rollout.stop_ids=[1,20]", "rollout.stop_group=true", teacher=teacher)
    assert code == 2
    assert "rollout.stop_group = true with teacher.kind = server" in said


def test_the_remedy_of_a_clash_is_a_run_that_works(command, pair, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(pair[1], folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    code, said = command(teacher={"path": str(folder)})
    assert code == 2
    assert "set rollout.stop_ids=[1,5] rollout.stop_group=true, so that these count as one end" in said
    remedy = "rollout.stop_ids=[1,5]", "rollout.stop_group=true"
    assert command(*remedy, "steps=1", teacher={"path": str(folder)}) == (0, "")
