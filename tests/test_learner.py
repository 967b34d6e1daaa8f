"""One update against the equations on full logits: its gradient, the split into micro-batches, the first update."""

import dataclasses

import pytest
import torch
from conftest import collected
from rich.console import Console
from safetensors.torch import load_file
from slow_update import GATES, LSM, SAMPLED, double, slow_gradient, update

from driftgate.method.scores import Scored
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.train import scoring
from driftgate.train.command import run
from driftgate.train.determinism import repeatable_backward
from driftgate.train.folder import final_model
from driftgate.train.portions import schedule
from driftgate.train.terms import Terms


@pytest.mark.parametrize("objective", [LSM, SAMPLED], ids=["lsm", "sampled_token"])
@pytest.mark.parametrize("gate", GATES, ids=["none", "block", "newline", "sequence-scope", "rms"])
def test_an_update_has_the_gradient_of_the_equations(settings, tmp_path, objective, gate):
    config = double(settings, objective=objective, gate=gate, microbatch_tokens=60)
    made, responses = collected(config, tmp_path)
    minibatches = list(schedule(config, 0))
    update(config, made, responses, minibatches[0].sequences)  # so that the student has drifted
    sequences = minibatches[1].sequences
    loss, expected = slow_gradient(config, made, responses["student"], sequences)
    metrics = update(config, made, responses, sequences, number=1)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    if gate["spans"] != "none":
        assert metrics["gate_min"] < 0.99
    for parameter, wanted in zip(made.policy.model.parameters(), expected):
        # the modules' norms run in float32 even in a float64 model, so layouts differ in the 7th digit
        assert (parameter.grad - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("objective", [LSM, SAMPLED], ids=["lsm", "sampled_token"])
@pytest.mark.parametrize("scope", ["minibatch", "sequence"])
def test_the_split_into_micro_batches_changes_nothing(settings, tmp_path, objective, scope):
    gate = {"spans": "block", "size": 8, "tau": 3.0, "scope": scope}
    results = []
    for tokens in (1, 90, 100_000):
        config = double(settings, objective=objective, gate=gate, microbatch_tokens=tokens)
        made, responses = collected(config, tmp_path / str(tokens))
        metrics = [update(config, made, responses, each.sequences, each.number) for each in schedule(config, 0)]
        for each in metrics:
            each.pop("padding")  # differs with the split itself
        results.append((metrics, [p.detach().clone() for p in made.policy.parameters()]))
    for metrics, weights in results[1:]:
        for one, other in zip(metrics, results[0][0]):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
        for one, other in zip(weights, results[0][1]):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_first_update_after_a_rollout_is_ungated_to_the_bit(settings, tmp_path):
    config = check_config(settings)  # in float32: equal bits, not equal digits
    made, responses = collected(config, tmp_path)
    metrics = update(config, made, responses, next(schedule(config, 0)).sequences)
    assert (metrics["gate_mean"], metrics["gate_min"], metrics["gate_std"]) == (1.0, 1.0, 0.0)
    assert metrics["drift_abs"] == 0.0
    assert metrics["loss"] == metrics["loss_ungated"]


def test_with_one_pass_and_one_minibatch_the_gate_is_a_no_op(settings, tmp_path):
    weights = []
    for spans in ("none", "block"):
        # a gate with passes=1 and one minibatch is refused; the first pass of two is the same one update
        values = settings | {"passes": 2, "minibatch": None, "gate": {"spans": spans, "tau": 50.0}}
        config = check_config(values)
        made, responses = collected(config, tmp_path / spans)
        update(config, made, responses, list(range(12)))
        weights.append([p.detach().clone() for p in made.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_an_ungated_lsm_run_that_logs_no_drift_scores_no_behaviour(settings, tmp_path):
    config = check_config(settings | {"gate": {"spans": "none"}, "log_drift": False})
    made, responses = collected(config, tmp_path)
    assert responses["student"].scores.behaviour.logp is None
    metrics = update(config, made, responses, [0, 1, 2])
    assert "drift_abs" not in metrics
    assert metrics["gate_mean"] == 1.0


def test_backward_alone_refuses_what_does_not_repeat_itself():
    """Flash attention's backward looks at it; on a CPU nothing is asked for and nothing changes."""
    with repeatable_backward():
        assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable_backward():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_dropped_tokens_leave_the_loss_and_its_denominator(settings, tmp_path):
    eos, newline = 1, 4
    config = check_config(settings | {"drop_tokens": [eos, newline]})
    batch = collected(config, tmp_path)[1]["student"]
    assert not torch.isin(batch.ids, torch.tensor([eos, newline])).any()
    kept = sum(int((~torch.isin(r, torch.tensor([eos, newline]))).sum()) for r in batch.responses)
    assert len(batch.ids) == kept < sum(len(r) for r in batch.responses)


def first_length(config, batch):
    return len(batch.tokens_of(next(schedule(config, 0)).sequences))


@pytest.mark.parametrize("objective", [LSM, SAMPLED])
@pytest.mark.parametrize("minibatch", [5, None])
def test_the_first_update_finds_its_own_old_log_probabilities(settings, tmp_path, monkeypatch, objective, minibatch):
    """A run whose first update had no forward before it ends at the weights of one that had, bit for bit."""
    changes = {"objective": objective, "minibatch": minibatch, "diagnostics": {"every": 2}}
    config = check_config(settings | changes | {"rollout": settings["rollout"] | {"allow_truncated": True}})
    weights, forwards = [], []
    for found in (True, False):
        with monkeypatch.context() as patch:
            if not found:
                patch.setattr(scoring, "_found_by_first_update", lambda config, needs, step: False)
            calls = counted(patch, Policy, "forward")
            run(config, tmp_path / str(found), Console(quiet=True))
            forwards.append(len(calls))
        weights.append(load_file(final_model(tmp_path / str(found)) / "model.safetensors"))
    assert forwards[0] < forwards[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


BY_ENTROPY = {"signal": "teacher_entropy", "map": {"kind": "keep_top", "share": 0.5}}
KNOWN = {
    "no weights": {"gate": {"spans": "none"}},
    "weights by scores": {"gate": {"spans": "none"}, "weights": {"w": BY_ENTROPY}},
    "weights found ahead": {"gate": {"spans": "block", "size": 8, "tau": 30.0, "target_ess": 0.8}},
    "drift gates, in the first update": {"gate": {"spans": "block", "size": 8, "tau": 30.0}},
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_gradient_made_in_the_forward_is_that_of_the_two_passes(settings, tmp_path, monkeypatch, case):
    """For the sampled token with weights that are known before its log-probabilities."""
    config = double(settings, objective=SAMPLED, **KNOWN[case])
    weights, metrics = [], []
    for fused in (True, False):
        with monkeypatch.context() as patch:
            known = counted(patch, Terms, "_fused_loss")
            if not fused:
                patch.setattr(Terms, "_is_known", lambda self, work, name: False)
            made, responses = collected(config, tmp_path / str(fused))
            metrics.append([update(config, made, responses, list(range(12)), number) for number in range(2)][-1])
            weights.append([p.detach().clone() for p in made.policy.parameters()])
            assert bool(known) == fused
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-9)
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def counted(patch, owner, name):
    """A list that grows with every call of a method."""
    calls, original = [], getattr(owner, name)

    def method(self, *arguments):
        calls.append(arguments)
        return original(self, *arguments)

    patch.setattr(owner, name, method)
    return calls


def test_behaviour_is_scored_beforehand_where_weights_look_at_all_of_the_batch(settings, tmp_path):
    """Or where more than log-probabilities is wanted of the student."""
    across = {"signal": "drift", "partition": {"kind": "token"}, "map": {"kind": "exp"}, "control": "shuffle_across"}
    whole = [{"weights": {"w": across}}, {"objective": {"kind": "candidates", "k": 4}}]
    for number, changes in enumerate(whole):
        config = check_config(settings | {"minibatch": None} | changes)
        batch = collected(config, tmp_path / str(number))[1]["student"]
        assert not batch.unscored
        assert (batch.scores.behaviour.logp < 0).all()


@pytest.mark.parametrize("minibatch", [1, None])
def test_a_response_whose_every_token_is_dropped_is_passed_over(settings, tmp_path, minibatch):
    changes = {"objective": LSM, "drop_tokens": [1], "microbatch_tokens": 1, "minibatch": minibatch}
    config = check_config(settings | changes)
    made, responses = collected(config, tmp_path)
    batch = responses["student"]
    batch.keep[3] = torch.zeros_like(batch.keep[3])
    batch = dataclasses.replace(batch, scores=Scored())
    batch = scoring.behaviour_scores(config, made.scorers["behaviour"], "student", batch, 0)
    # the first minibatch, which is everything or one response, is left to its own update
    assert len(batch.tokens_of(batch.unscored)) == (
        len(batch.ids) if minibatch is None else first_length(config, batch)
    )
    responses = {"student": scoring.target_scores(config, made.scorers, "student", batch, 0)}
    before = [p.detach().clone() for p in made.policy.parameters()]
    metrics = update(config, made, responses, [3])
    assert metrics["tokens"] == 0
    assert all(torch.equal(one, other) for one, other in zip(before, made.policy.parameters()))
    assert update(config, made, responses, [2, 3, 4])["tokens"] > 0
