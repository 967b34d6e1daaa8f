"""From a configuration to weights: what a factor's values are, what its controls keep, and what its draws depend on."""

import dataclasses
import math
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from test_weights import slow_effective_share
from twins import by_row, rows_of

import driftgate
from driftgate.config import Factor, GateSettings, TermSettings
from driftgate.data.experience import Experience
from driftgate.errors import RunError
from driftgate.method.changepoint import changepoint_spans, keep_before_drop
from driftgate.method.head import Summary
from driftgate.method.scores import Needs, Scored, TokenScores
from driftgate.method.spans import fixed_spans, newline_spans, sequence_spans, token_spans
from driftgate.recipe import load_recipe
from driftgate.train.diagnostics import distribution_sums, repetition
from driftgate.train.scoring import needs_of
from driftgate.train.sums import Sums
from driftgate.train.weighing import Moment, fixed_partitions, streams_of, weigh

SEEDS = st.integers(0, 10**6)
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=5)
QUICK = settings(max_examples=20, deadline=None)
LONG = [300, 1, 200, 64, 17]
NOW = Moment(seed=1, step=2, age=3)
CONTROLS = ["constant", "resample", "shuffle_within", "shuffle_across", "inverse", "shuffle_boundaries"]
NEWLINES = torch.arange(50) < 2


class Case:
    """A batch of sequences and the current student's log-probabilities of its tokens."""

    def __init__(self, lengths, seed=0, scale=0.5):
        generator = torch.Generator().manual_seed(seed)
        self.rows, count = rows_of(lengths), sum(lengths)

        def scores():
            return -4 * torch.rand(count, generator=generator)

        ids = torch.randint(50, (count,), generator=generator).split(lengths)
        self.behaviour, self.teacher = scores(), scores()
        self.logp = self.behaviour + scale * torch.randn(count, generator=generator)
        self.batch = Experience(
            prompts=[torch.zeros(1, dtype=torch.int64)] * len(lengths),
            teacher_prompts=[torch.zeros(1, dtype=torch.int64)] * len(lengths),
            responses=list(ids),
            keep=[torch.ones(length, dtype=torch.bool) for length in lengths],
            finished=torch.ones(len(lengths), dtype=torch.bool),
            written=torch.ones(len(lengths), dtype=torch.bool),
            engine_logp=torch.zeros(count),
            scores=Scored(behaviour=TokenScores(logp=self.behaviour), teacher=TokenScores(logp=self.teacher)),
        )
        assert torch.equal(self.batch.rows, self.rows)

    def set_teacher(self, logp):
        self.batch = self.batch.with_scores(teacher=TokenScores(logp=logp))

    def streams(self, sequences=None, moment=NOW, reads=("logp", "behaviour_logp", "teacher_logp")):
        tokens = torch.arange(len(self.rows)) if sequences is None else self.batch.tokens_of(sequences)
        return streams_of(self.batch, tokens, set(reads), self.logp[tokens], moment, 4, torch.device("cpu")), tokens

    def weigh(self, weights, moment=NOW, sequences=None, **term):
        settings_ = term_of(weights, **term)
        spans = fixed_partitions(settings_, self.batch, NEWLINES)
        streams, tokens = self.streams(sequences, moment)
        return weigh(settings_, streams, {partition: ids[tokens] for partition, ids in spans.items()}, moment)

    def values(self, factor, moment=NOW, sequences=None, name="x"):
        """Of one factor, [tokens], before normalisation."""
        return self.weigh({name: factor}, moment, sequences).raw


def term_of(weights, **changes):
    objective = {"kind": "nll"}
    return TermSettings.model_validate({"objective": objective, "weights": weights, "responses": "student"} | changes)


def factor_of(**settings_):
    return Factor.model_validate({"normalise": "none"} | settings_)


def starts_of(spans):
    return [place for place in range(len(spans)) if place == 0 or spans[place] != spans[place - 1]]


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


# --- controls


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


# --- addressed draws


RANDOM = {
    "bernoulli": factor_of(signal="teacher_ratio", map="bernoulli"),
    "shuffle_within": factor_of(signal="drift", control="shuffle_within"),
    "shuffle_across": factor_of(signal="drift", control="shuffle_across"),
    "resample": factor_of(signal="drift", control="resample"),
    "shuffle_boundaries": factor_of(signal="drift", partition="block8", control="shuffle_boundaries"),
}


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


WHOLE = {"constant", "resample", "shuffle_across", "target_ess", "keep_top"}
FACTORS = RANDOM | {
    "gate": GateSettings(spans="block", size=8).factor,
    "newline": GateSettings(spans="newline", min_tokens=3, max_tokens=20, size=8).factor,
    "per sequence": GateSettings(spans="block", size=8, scope="sequence").factor,
    "changepoint": GateSettings(spans="changepoint", min_tokens=3, penalty=0.7).factor,
    "prefix": factor_of(signal="gap_size", partition="prefix", reduce="share"),
    "before_drop": factor_of(signal="gap", partition="block4", map="before_drop"),
    "inverse": factor_of(signal="ratio", control="inverse"),
    "constant": factor_of(signal="drift", control="constant"),
    "target_ess": GateSettings(spans="block", size=8, target_ess=0.8).factor,
    "keep_top": factor_of(signal="gap", map="keep_top"),
}


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


def test_a_gate_that_closes_on_a_whole_sequence_is_told():
    case = Case([20, 20], 23)
    with pytest.raises(RunError, match=r"gate\.tau"):
        case.weigh({"gate": GateSettings(spans="block", size=4, tau=1e9, scope="sequence").factor})


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


def test_gates_that_close_on_everything_are_told():
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


# --- diagnostics


def slow_distribution(student, teacher, k):
    """Sums over positions of two rows of log-probabilities of the whole vocabulary."""
    found = dict.fromkeys(("entropy", "entropy_gap", "overlap", "overlap_advantage"), 0.0)
    for p, q in zip(student.tolist(), teacher.tolist()):
        ours, theirs = (-math.fsum(math.exp(x) * x for x in side) for side in (p, q))
        tops = [sorted(range(len(p)), key=lambda v, side=side: -side[v])[:k] for side in (p, q)]
        both = [v for v in tops[0] if v in tops[1]]
        mass = math.fsum(math.exp(p[v]) for v in both)
        found["entropy"] += ours
        found["entropy_gap"] += abs(ours - theirs)
        found["overlap"] += len(both) / k
        found["overlap_advantage"] += math.fsum(math.exp(p[v]) / mass * (q[v] - p[v]) for v in both) if both else 0.0
    return found


@QUICK
@given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 2), SEEDS)
def test_distribution_sums_equal_their_twin(count, k, more, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (torch.randn(count, 12, generator=generator, dtype=torch.float64) * 2).log_softmax(1) for _ in range(2)
    )
    ours, theirs = student.topk(k), teacher.topk(k + more)
    scores = TokenScores(
        top_ids=theirs.indices.int(), top_logp=theirs.values, entropy=-(teacher.exp() * teacher).sum(1)
    )
    summary = Summary(student[:, :1], -(student.exp() * student).sum(1), ours.indices, ours.values)
    found = distribution_sums(summary, scores, k)
    expected = slow_distribution(student, teacher, k)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_without_overlap_there_is_no_advantage_and_an_impossible_token_gives_no_nan():
    scores = TokenScores(
        top_ids=torch.tensor([[2, 3], [0, 5]]),
        top_logp=torch.tensor([[-0.1, -1e4], [-1e4, -1e4]]),
        entropy=torch.zeros(2),
    )
    top = torch.tensor([[0, 1], [0, 5]])
    summary = Summary(torch.zeros(2, 1), torch.zeros(2), top, torch.tensor([[-0.5, -1.0], [-1e4, -1e4]]))
    found = distribution_sums(summary, scores, 2)
    assert found["overlap_advantage"] == 0
    assert found["overlap"] == 1


def test_repetition_is_what_zlib_saves():
    assert repetition([]) == 0
    assert repetition([""]) == 0
    assert repetition(["a"]) == 0
    assert repetition(["the quick brown fox"]) == 0
    loop = "and again " * 200
    assert repetition([loop]) > 0.95
    assert repetition([loop]) == 1 - len(zlib.compress(loop.encode(), 9)) / 2000
    assert repetition([loop, "", "a"]) == pytest.approx(repetition([loop]) / 3)
    assert repetition(["é" * 50]) == 1 - len(zlib.compress(("é" * 50).encode(), 9)) / 100


# --- what is scored


def needs(*overrides, responses="student", diagnose=False, recipe="sandbox/lsm_none"):
    every = f"diagnostics.every={int(diagnose)}"
    return needs_of(load_recipe(recipe, ["diagnostics.k=5", every, *overrides]), responses, 0)


TEACHER_TOP = Needs(top=8)
LOGP = Needs(logp=True)
NEEDS = {
    "the drift is measured by default": ([], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "LSM alone looks at the teacher": (["log_drift=false"], {"teacher": TEACHER_TOP}),
    "a gate": (["log_drift=false", "gate.spans=block"], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "overlap": (["weights.x.signal=overlap"], {"behaviour": Needs(logp=True, top=5), "teacher": TEACHER_TOP}),
    "divergence": (
        ["weights.x.signal=divergence"],
        {"behaviour": Needs(logp=True, top=5), "teacher": Needs(top=8, at_ids=True)},
    ),
    "entropies": (
        ["weights.x.signal=sure_teacher_unsure_student"],
        {"behaviour": Needs(logp=True, entropy=True), "teacher": Needs(top=8, entropy=True)},
    ),
    "a condition": (
        ["weights.x.signal=one", "weights.x.where={signal: teacher_entropy, above: 0.8}"],
        {"behaviour": LOGP, "teacher": Needs(top=8, entropy=True)},
    ),
    "the sampled token": (
        ["objective={kind: sampled_token}"],
        {"behaviour": LOGP, "teacher": Needs(logp=True)},
    ),
    "candidates": (
        ["objective={kind: candidates, k: 3}"],
        {"behaviour": Needs(logp=True, top=3), "teacher": Needs(at_ids=True)},
    ),
    "the whole vocabulary": (
        ["objective={kind: divergence}"],
        {"behaviour": LOGP, "teacher": Needs(hidden=True)},
    ),
    "a union with the initial student": (
        ["log_drift=false", "objective={kind: divergence, support: union, k: 4, target: initial}"],
        {"behaviour": Needs(top=4), "initial": Needs(top=4, at_ids=True)},
    ),
    "an intersection": (
        ["log_drift=false", "objective={kind: divergence, support: intersection, k: 4}"],
        {"behaviour": Needs(top=4), "teacher": Needs(top=4)},
    ),
    "the greatest k of several": (
        ["terms.two.objective={kind: lsm, k: 11}", "weights.x.signal=teacher_margin"],
        {"behaviour": LOGP, "teacher": Needs(top=11)},
    ),
    "the greatest k, not the last": (
        ["objective={kind: candidates, k: 12}", "weights.x.signal=overlap", "terms.two.objective={kind: lsm, k: 3}"],
        {"behaviour": Needs(logp=True, top=12), "teacher": Needs(top=5, at_ids=True)},
    ),
    "the first term's k": (["terms.two.objective={kind: lsm, k: 3}"], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "nothing of the terms on other responses": (
        ["terms.two={objective: {kind: divergence}, responses: teacher}"],
        {"behaviour": LOGP, "teacher": TEACHER_TOP},
    ),
}


@pytest.mark.parametrize("case", NEEDS)
def test_responses_are_scored_with_what_its_terms_read(case):
    overrides, expected = NEEDS[case]
    assert needs(*overrides) == expected


def test_diagnostics_need_entropy_and_overlap():
    assert needs("objective={kind: nll}", "log_drift=false") == {}
    diagnosed = needs("objective={kind: nll}", "log_drift=false", diagnose=True)
    assert diagnosed == {"behaviour": LOGP, "teacher": Needs(entropy=True, top=5)}


def test_a_term_whose_coefficient_is_zero_is_not_scored():
    term = "terms.two={objective: {kind: divergence}, coef: {start: 0.5, end: 0, steps: 4}}"
    config = load_recipe("sandbox/lsm_none", [term, "diagnostics.every=0"])
    assert [needs_of(config, "student", step)["teacher"].hidden for step in (0, 3, 4, 9)] == [
        True,
        True,
        False,
        False,
    ]


def test_other_responses_have_needs_of_their_own():
    nll = "terms.two={objective: {kind: nll}, responses: reference}"
    assert needs(nll, responses="reference", diagnose=True) == {}
    weighted = needs(nll, "terms.two.weights.x.signal=student_entropy", responses="reference")
    assert weighted == {"behaviour": Needs(entropy=True)}
    lsm = needs("terms.two={objective: {kind: lsm, k: 3}, responses: teacher}", responses="teacher")
    assert lsm == {"teacher": Needs(top=3)}
