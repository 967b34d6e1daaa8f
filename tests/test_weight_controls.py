"""What the controls of a factor keep, and what its draws depend on."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from weighing_case import FACTORS, LENGTHS, LONG, NOW, QUICK, RANDOM, SEEDS, WHOLE, Case, factor_of, starts_of

from driftgate.config import GateSettings
from driftgate.errors import RunError
from driftgate.method.spans import fixed_spans, token_spans
from driftgate.train.weighing import Moment


@pytest.mark.parametrize("partition", ["token", "block8"])
def test_shuffles_keep_the_spans_values(partition):
    case = Case(LONG, 14)
    spans = {"token": token_spans(case.rows), "block8": fixed_spans(case.rows, 8)}[partition]
    first, owners = starts_of(spans), case.rows[starts_of(spans)]
    plain, within, across = (
        case.values(factor_of(signal="drift", partition=partition, control=control))
        for control in (None, "shuffle_within", "shuffle_across")
    )
    assert torch.equal(within, within[first][spans])
    assert torch.equal(across, across[first][spans])
    assert Counter(across[first].tolist()) == Counter(plain[first].tolist())
    assert not torch.equal(across, plain)
    assert not torch.equal(within, plain)
    for owner in range(len(LONG)):
        mine = owners == owner
        assert Counter(within[first][mine].tolist()) == Counter(plain[first][mine].tolist())


def test_a_shuffle_across_moves_whole_sequences():
    case = Case(LONG, 14)
    plain, across = (
        case.values(factor_of(signal="drift", partition="sequence", control=control))
        for control in (None, "shuffle_across")
    )
    first = starts_of(case.rows)
    assert torch.equal(across, across[first][case.rows])
    assert Counter(across[first].tolist()) == Counter(plain[first].tolist())
    assert not torch.equal(across, plain)


def test_resampling_draws_the_spans_values_in_proportion():
    case = Case([40, 24], 15)
    plain = case.values(factor_of(signal="drift", partition="block8"))[::8]
    factor, found = factor_of(signal="drift", partition="block8", control="resample"), Counter()
    for step in range(500):
        found.update(case.values(factor, Moment(0, step, 1))[::8].tolist())
    assert found.keys() == set(plain.tolist())
    assert chisquare([found[value] for value in plain.tolist()]).pvalue > 0.01


def test_a_constant_has_the_mean_over_tokens_and_the_inverse_the_reciprocal():
    case = Case(LONG, 16)
    gate = {"signal": "drift", "partition": "block8", "reduce": "abs_mean", "map": {"kind": "exp", "tau": 20.0}}
    plain = case.values(factor_of(**gate))
    same = case.values(factor_of(**gate, control="constant"))
    torch.testing.assert_close(same, plain.mean().expand(len(plain)))
    assert torch.equal(case.values(factor_of(**gate, control="inverse")), 1 / plain.clamp(min=1e-3))


@QUICK
@given(LENGTHS, SEEDS, st.sampled_from(["block", "newline", "changepoint"]))
def test_shuffled_boundaries_are_as_many_in_each_sequence(lengths, seed, kind):
    case = Case(lengths, seed)
    partition = {"kind": kind} | ({"size": 8} if kind == "block" else {"min_tokens": 3})
    starts = [
        case.values(factor_of(signal="position", partition=partition, reduce="first", control=control))
        for control in (None, "shuffle_boundaries")
    ]
    for row in range(len(lengths)):
        one, other = (values[case.rows == row].unique() for values in starts)
        assert len(one) == len(other)
    mean = case.values(factor_of(signal="drift", partition=partition, control="shuffle_boundaries"))
    for row in range(len(lengths)):
        mine = case.rows == row
        drift = (case.logp - case.behaviour)[mine]
        torch.testing.assert_close(mean[mine].mean(), drift.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("control", ["shuffle_within", "shuffle_boundaries"])
def test_where_nothing_can_be_moved_the_values_stay(control):
    case = Case([60, 1, 33], 17)
    gate = {"signal": "drift", "partition": "block64", "map": "exp"}
    assert torch.equal(case.values(factor_of(**gate, control=control)), case.values(factor_of(**gate)))


@pytest.mark.parametrize("kind", RANDOM)
def test_draws_are_a_function_of_seed_step_age_and_name(kind):
    case, factor = Case(LONG, 18), RANDOM[kind]
    plain = case.values(factor)
    torch.manual_seed(1)
    assert torch.equal(case.values(factor, dataclasses.replace(NOW)), plain)
    for change in ({"seed": 9}, {"step": 9}, {"age": 9}):
        assert not torch.equal(case.values(factor, dataclasses.replace(NOW, **change)), plain)
    assert not torch.equal(case.values(factor, name="y"), plain)


def test_a_sequences_draws_do_not_depend_on_the_others():
    case = Case(LONG, 19)
    for purpose in ("bernoulli", "control"):
        draws = NOW.uniforms(purpose, "x", case.rows)
        assert draws.dtype == torch.float64
        assert ((draws >= 0) & (draws < 1)).all()
        for row in range(len(LONG)):
            mine = case.rows == row
            assert torch.equal(NOW.uniforms(purpose, "x", case.rows[mine]), draws[mine])
    assert not torch.equal(NOW.uniforms("control", "x", case.rows), NOW.uniforms("bernoulli", "x", case.rows))
    assert NOW.uniforms("control", "x", case.rows[:0]).shape == (0,)


@pytest.mark.parametrize("kind", FACTORS)
def test_a_factor_looks_at_other_sequences_only_if_it_says_so(kind):
    case, factor = Case([40, 1, 70, 33], 20), FACTORS[kind]
    assert factor.whole == (kind in WHOLE)
    whole = case.values(factor)
    parts = [case.values(factor, sequences=chosen) for chosen in ([0], [1, 3], [2])]
    split = torch.empty_like(whole)
    for chosen, part in zip(([0], [1, 3], [2]), parts):
        split[case.batch.tokens_of(chosen)] = part
    assert torch.allclose(split, whole, rtol=1e-6, atol=1e-7) != factor.whole


@pytest.mark.parametrize("kind", FACTORS)
def test_no_gradient_flows_through_a_weight(kind):
    case = Case(LONG, 21)
    case.logp.requires_grad_()
    weighed = case.weigh({"x": FACTORS[kind]})
    assert not weighed.weight.requires_grad
    assert not weighed.raw.requires_grad
    assert not any(value.requires_grad for value in weighed.sums.values())


@pytest.mark.parametrize("kind", FACTORS)
def test_of_no_token_there_is_no_weight(kind):
    weighed = Case([5, 4], 22).weigh({"x": FACTORS[kind]}, sequences=[])
    assert weighed.weight.shape == weighed.raw.shape == (0,)


def test_a_gate_that_closes_on_a_whole_sequence_is_an_error():
    case = Case([20, 20], 23)
    with pytest.raises(RunError, match=r"gate\.tau"):
        case.weigh({"gate": GateSettings(spans="block", size=4, tau=1e9, scope="sequence").factor})
