"""From a configuration to weights: what a factor's values are, and its Bernoulli draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_weights import slow_effective_share
from twins import by_row
from weighing_case import LONG, NEWLINES, QUICK, SEEDS, Case, factor_of, term_of

import driftgate
from driftgate.config import GateSettings
from driftgate.method.changepoint import changepoint_spans, keep_before_drop
from driftgate.method.spans import fixed_spans, newline_spans, sequence_spans, token_spans
from driftgate.train.sums import Sums
from driftgate.train.weighing import Moment

# --- what the values are


SPANS = {
    "token": lambda case: token_spans(case.rows),
    "block": lambda case: fixed_spans(case.rows, 8),
    "newline": lambda case: newline_spans(case.rows, NEWLINES[case.batch.ids], 3, 20, 8),
    "sequence": lambda case: sequence_spans(case.rows),
    "changepoint": lambda case: changepoint_spans(case.rows, case.logp - case.behaviour, 3, 0.7),
}


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("statistic", ["abs_mean", "mean_abs", "rms"])
def test_the_gate_is_a_factor_bit_for_bit(spans, statistic):
    case = Case(LONG, 1)
    gate = GateSettings(spans=spans, size=8, min_tokens=3, max_tokens=20, penalty=0.7, tau=2.5, statistic=statistic)
    expected = driftgate.drift_gate(case.logp, case.behaviour, SPANS[spans](case), 2.5, statistic)
    assert torch.equal(case.weigh({"gate": gate.factor}).raw, expected)


@pytest.mark.parametrize("spans", SPANS)
def test_a_partition_is_the_one_of_the_method(spans):
    case = Case(LONG, 2)
    partition = {"kind": spans}
    partition |= {"size": 8} if spans in ("block", "newline") else {}
    partition |= {"min_tokens": 3} if spans in ("newline", "changepoint") else {}
    partition |= {"max_tokens": 20} if spans == "newline" else {"penalty": 0.7} if spans == "changepoint" else {}
    first = case.values(factor_of(signal="position", partition=partition, reduce="first"))
    ids = SPANS[spans](case).tolist()
    expected = [case.batch.place[ids.index(span)].item() for span in ids]
    assert first.tolist() == expected
    assert len(set(ids)) > len(LONG) or spans == "sequence"


def test_a_gate_per_sequence_has_mean_1_in_each_and_one_per_minibatch_is_left_to_the_sums():
    case = Case(LONG, 3)
    gate = GateSettings(spans="block", size=8, scope="sequence").factor
    weighed = case.weigh({"gate": gate})
    assert torch.equal(weighed.weight, driftgate.unit_mean(weighed.raw, case.rows))
    assert weighed.sums.keys() == {"kept"}
    weighed = case.weigh({"gate": GateSettings(spans="block", size=8).factor})
    assert torch.equal(weighed.weight, weighed.raw)
    assert weighed.sums["factor.gate"] == weighed.raw.double().sum()


def test_a_weight_is_the_product_of_its_factors():
    case = Case(LONG, 4)
    one, two = factor_of(signal="gap_size"), factor_of(signal="ratio", partition="block8", map="exp")
    product = case.weigh({"a": one, "b": two})
    assert torch.equal(product.weight, case.values(one) * case.values(two))
    assert product.sums["kept"] == (product.weight > 0).sum()
    scaled = case.weigh({"a": one.model_copy(update={"normalise": "sequence"}), "b": two})
    assert torch.equal(scaled.raw, product.raw)
    assert torch.equal(scaled.weight, driftgate.unit_mean(case.values(one), case.rows) * case.values(two))


def test_where_a_condition_does_not_hold_the_factor_is_otherwise():
    case = Case(LONG, 5)
    where = {"signal": "gap", "above": 0.0}
    plain = case.values(factor_of(signal="gap_size", partition="block8"))
    some = case.values(factor_of(signal="gap_size", partition="block8", where=where, otherwise=0.25))
    holds = case.teacher > case.behaviour
    assert torch.equal(some[holds], plain[holds])
    assert (some[~holds] == 0.25).all()
    assert 0 < holds.sum() < len(holds)


def test_a_value_at_the_threshold_is_neither_above_nor_below():
    case = Case([3], 6)
    for side in ("above", "below"):
        found = case.values(factor_of(signal="position", map={"kind": "threshold", side: 1.0}))
        assert found.tolist() == ([0, 0, 1] if side == "above" else [1, 0, 0])
        assert torch.equal(case.values(factor_of(signal={"signal": "position", side: 1.0})), found)


def test_a_condition_is_a_signal_too():
    case = Case(LONG, 6)
    below = case.values(factor_of(signal={"signal": "drift", "below": -0.1}))
    assert torch.equal(below, (case.logp - case.behaviour < -0.1).float())


MAPS = {
    "identity": ({}, lambda v: v),
    "exp": ({"tau": 3.0}, lambda v: math.exp(-3 * v)),
    "threshold": ({"above": 0.5, "hit": 2.0, "miss": 0.5}, lambda v: 2.0 if v > 0.5 else 0.5),
    "affine": (
        {"offset": 1, "scale": -2, "low": 0.2, "high": 0.9, "shift": 1},
        lambda v: min(max(1 - 2 * v, 0.2), 0.9) + 1,
    ),
    "sigmoid": ({"centre": 0.4, "width": -0.2, "low": 0.25}, lambda v: 0.25 + 0.75 / (1 + math.exp((v - 0.4) / 0.2))),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_acts_on_a_spans_value(kind):
    case = Case(LONG, 7)
    changes, twin = MAPS[kind]
    values = case.values(factor_of(signal="gap_size", partition="block8", map={"kind": kind} | changes))
    expected = []
    for group in by_row(fixed_spans(case.rows, 8), (case.teacher - case.behaviour).abs()):
        mean = math.fsum(value for (value,) in group) / len(group)
        expected += [twin(mean)] * len(group)
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_a_prefix_is_reduced_token_by_token():
    case = Case([3, 1], 8)
    partition = {"kind": "prefix", "exclusive": True}
    found = case.values(factor_of(signal="gap_size", partition=partition, reduce="share"))
    a, b, c, _ = (case.teacher - case.behaviour).abs().double().tolist()
    whole = a + b + c
    torch.testing.assert_close(found.double(), torch.tensor([0, a / whole, (a + b) / whole, 0], dtype=torch.float64))


def test_keep_top_keeps_the_best_spans_of_the_batch():
    case = Case([64, 64], 9)
    values = case.values(factor_of(signal="gap", partition="block8", map={"kind": "keep_top", "share": 0.25}))
    means = [math.fsum(v for (v,) in g) / 8 for g in by_row(fixed_spans(case.rows, 8), case.teacher - case.behaviour)]
    best = sorted(range(16), key=lambda place: -means[place])[:4]
    assert values[::8].tolist() == [float(place in best) for place in range(16)]
    assert values.sum() == 32


def test_keep_top_of_each_response_does_not_depend_on_the_others():
    case = Case([64, 30, 17], 9)
    factor = factor_of(signal="gap", map={"kind": "keep_top", "share": 0.4, "scope": "sequence"})
    assert not factor.whole
    values = case.values(factor)
    assert [int(part.sum()) for part in values.split([64, 30, 17])] == [26, 12, 7]
    assert torch.equal(values[64:94], case.values(factor, sequences=[1]))


def test_before_drop_teaches_up_to_the_drop_and_can_be_controlled():
    case = Case([80, 80], 10)
    case.set_teacher(torch.where(case.batch.place < 48, -0.1, -5.0) + 0.01 * case.teacher)
    factor = {"signal": "teacher_logp", "partition": "block8", "map": "before_drop"}
    plain = case.values(factor_of(**factor))
    spans = fixed_spans(case.rows, 8)
    assert torch.equal(plain, keep_before_drop(case.rows, case.batch.scores.teacher.logp, spans).float())
    assert plain.tolist() == ([1.0] * 48 + [0.0] * 32) * 2
    mixed = case.values(factor_of(**factor, control="shuffle_within"))
    assert not torch.equal(mixed, plain)
    assert mixed[:80].sum() == mixed[80:].sum() == 48
    assert (case.values(factor_of(**factor, control="constant")) == 0.6).all()


# --- effective sample size


@QUICK
@given(st.lists(st.integers(8, 60), min_size=2, max_size=5), SEEDS, st.floats(0.3, 0.95))
def test_target_ess_holds_the_share_of_the_tokens(lengths, seed, share):
    case = Case(lengths, seed)
    weighed = case.weigh({"gate": GateSettings(spans="block", size=4, target_ess=share).factor})
    ones = torch.ones_like(case.rows)
    if weighed.tau["gate"] < 1000:
        assert slow_effective_share(weighed.raw.double(), ones) == pytest.approx(share, abs=1e-6)
        sums = Sums()
        sums.add({"loss": torch.zeros(()), "ungated": torch.zeros(())}, weighed)
        term = term_of({"gate": GateSettings(spans="block", size=4, target_ess=share).factor})
        assert sums.metrics(term, "")["gate_ess"] == pytest.approx(share, abs=1e-6)
    exact = torch.exp(
        -weighed.tau["gate"] * (-driftgate.drift_gate(case.logp, case.behaviour, fixed_spans(case.rows, 4)).log())
    )
    torch.testing.assert_close(weighed.raw / weighed.raw.max(), exact / exact.max(), rtol=1e-3, atol=1e-6)


def test_target_ess_stays_at_the_highest_tau_where_nothing_has_moved():
    case = Case([20, 20], 1, scale=0.0)
    weighed = case.weigh(
        {"g": factor_of(signal="drift", partition="block4", map={"kind": "target_ess", "max_tau": 50})}
    )
    assert weighed.tau == {"g": 50.0}
    assert (weighed.raw == 1).all()


# --- Bernoulli


def test_a_bernoulli_factor_and_its_complement_partition_the_tokens():
    case = Case(LONG, 11)
    for partition in ("token", "block8"):
        one, other = (
            case.values(
                factor_of(signal="teacher_ratio", partition=partition, map={"kind": "bernoulli", "complement": c})
            )
            for c in (False, True)
        )
        assert torch.equal(one + other, torch.ones(len(case.rows)))
        assert 0 < one.sum() < len(case.rows)


def test_a_bernoulli_factor_is_1_with_the_values_probability():
    case = Case([6], 12)
    case.logp = torch.zeros(6)
    case.set_teacher(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 2.0]).log())
    factor, count = factor_of(signal="teacher_ratio", map="bernoulli"), 2000
    hits = torch.stack([case.values(factor, Moment(0, step, 1)) for step in range(count)]).sum(0)
    assert hits[[0, 4, 5]].tolist() == [0, count, count]
    for hit, probability in zip(hits[1:4].tolist(), (0.1, 0.5, 0.9)):
        assert binomtest(int(hit), count, probability).pvalue > 0.01


def test_the_controls_of_a_bernoulli_factor_do_not_follow_its_own_draws():
    case = Case([400], 13)
    case.logp = case.teacher + math.log(2)
    half = {"signal": "teacher_ratio", "map": "bernoulli"}
    mixed = case.values(factor_of(**half, control="shuffle_within"))
    assert mixed.sum() == case.values(factor_of(**half)).sum()
    assert abs(mixed[:200].mean() - mixed[200:].mean()) < 0.2
    moved = factor_of(**half, partition="block8", control="shuffle_boundaries")
    starts = factor_of(signal="position", partition="block8", reduce="first", control="shuffle_boundaries")
    drawn, count = 0.0, 0
    for step in range(40):
        moment = Moment(0, step, 1)
        opens = case.values(starts, moment) == case.batch.place
        drawn, count = drawn + case.values(moved, moment)[opens].sum().item(), count + int(opens.sum())
    assert binomtest(int(drawn), count, 0.5).pvalue > 0.01
