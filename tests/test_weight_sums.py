"""Weights under any split of a batch, and weights beside an objective's clip."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_weights import slow_effective_share
from weighing_case import FACTORS, LONG, QUICK, SEEDS, Case, factor_of, term_of

import driftgate
from driftgate.config import GateSettings
from driftgate.errors import RunError
from driftgate.train.sums import Sums

# --- sums


def summed(case, weights, losses, parts, **term):
    sums, settings_ = Sums(), term_of(weights, **term)
    for sequences in parts:
        weighed, tokens = case.weigh(weights, sequences=sequences, **term), case.batch.tokens_of(sequences)
        values = {"loss": (weighed.weight * losses[tokens]).sum(), "ungated": losses[tokens].sum()}
        sums.add(values, weighed)
    return sums.metrics(settings_, "here")


@QUICK
@given(st.lists(st.integers(1, 40), min_size=3, max_size=5), SEEDS)
def test_unit_mean_over_the_losss_scope_is_the_self_normalised_mean_however_the_batch_is_split(lengths, seed):
    case = Case(lengths, seed)
    losses = case.teacher
    weights = {"gate": GateSettings(spans="block", size=8, tau=3.0).factor}
    everything = list(range(len(lengths)))
    whole = summed(case, weights, losses, [everything])
    gate = case.weigh(weights).raw.double()
    assert whole["loss"] == pytest.approx(float((gate * losses).sum() / gate.sum()), rel=1e-5)
    assert whole["loss"] == pytest.approx(float((driftgate.unit_mean(gate) * losses).mean()), rel=1e-5)
    assert summed(case, weights, losses, [[1], [0, *everything[2:]]]) == pytest.approx(whole, rel=1e-5, abs=1e-12)
    middle = np.median(gate.numpy()) / gate.double().mean().item()
    assert whole["gate_q50"] == pytest.approx(middle, rel=1e-6)
    assert whole["gate_ess"] == pytest.approx(slow_effective_share(gate, torch.ones_like(case.rows)), rel=1e-9)
    assert whole["gate_mean"] == pytest.approx(gate.mean().item(), rel=1e-9)
    assert whole["gate_std"] == pytest.approx(gate.std(correction=0).item(), rel=1e-6, abs=1e-9)
    assert whole["gate_min"] == gate.min()
    assert whole["loss_ungated"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_each_factors_mean_is_taken_and_kept_tokens_can_be_the_denominator():
    case, losses = Case(LONG, 24), Case(LONG, 24).teacher
    weights = {
        "a": factor_of(signal="gap_size", normalise="minibatch"),
        "b": factor_of(signal={"signal": "gap", "above": 0.0}),
        "c": factor_of(signal="ratio", normalise="minibatch"),
    }
    a, b, c = (case.values(weights[name]).double() for name in "abc")
    total = (a / a.mean() * b * c / c.mean() * losses).sum().item()
    everything = [list(range(len(LONG)))]
    assert summed(case, weights, losses, everything)["loss"] == pytest.approx(total / len(losses), rel=1e-5)
    kept = summed(case, weights, losses, everything, denominator="kept")["loss"]
    assert kept == pytest.approx(total / b.sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gate", "loss", "tokens", "kept", "closed", "gate_squared"])
def test_a_factors_name_does_not_collide_with_a_sum(name):
    case, losses = Case(LONG, 25), Case(LONG, 25).teacher
    other = factor_of(signal="ratio", normalise="minibatch")
    parts = [[0, 1], [2, 3, 4]]
    ours, theirs = (
        summed(case, {n: FACTORS["gate"], "other": other}, losses, parts, denominator="kept") for n in (name, "x")
    )
    assert ours == theirs


def test_gates_that_close_on_everything_are_an_error():
    case = Case([20, 20], 26)
    with pytest.raises(RunError, match="tau = 1000000000"):
        summed(case, {"gate": GateSettings(spans="block", size=4, tau=1e9).factor}, case.teacher, [[0, 1]])


# --- a weight and the objective


@QUICK
@given(
    SEEDS, st.sampled_from(["frozen", "recomputed"]), st.none() | st.floats(0.05, 0.5), st.none() | st.floats(1.1, 4)
)
def test_a_weight_commutes_with_the_clip_and_the_dual_clip(seed, advantage, clip, dual_clip):
    """w * loss is the loss of the advantage times w: min and both bounds are positively homogeneous in it."""
    generator = torch.Generator().manual_seed(seed)
    logp, behaviour, gain = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(200, generator=generator, dtype=torch.float64) * 3
    weight[:20] = 0
    base = behaviour if advantage == "frozen" else logp
    logp, moved = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    outside = weight * driftgate.sampled_token_loss(logp, behaviour, base + gain, advantage, clip, dual_clip)
    inside = driftgate.sampled_token_loss(moved, behaviour, base + weight * gain, advantage, clip, dual_clip)
    torch.testing.assert_close(outside, inside, rtol=1e-10, atol=1e-12)
    outside.sum().backward()
    inside.sum().backward()
    torch.testing.assert_close(logp.grad, moved.grad, rtol=1e-10, atol=1e-12)


def test_a_weight_does_not_commute_with_a_return_to_go():
    reward, weight = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])

    def return_to_go(values):
        return values.flip(0).cumsum(0).flip(0)

    assert (weight * return_to_go(reward)).tolist() == [7, 0, 4]
    assert return_to_go(weight * reward).tolist() == [5, 4, 4]
