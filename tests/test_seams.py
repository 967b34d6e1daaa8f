"""The seams between the rooms: versions and ages, scorers that say what they can, sums over ranks, frozen batches."""

import dataclasses

import pytest
import torch
from conftest import collected, learn
from hypothesis import given
from hypothesis import strategies as st

from driftgate.data.experience import Experience
from driftgate.data.packing import dealt, micro_batches
from driftgate.data.response import Response
from driftgate.errors import InputError
from driftgate.method.scores import Needs, Scored, TokenScores
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.rollout.engine import Request
from driftgate.rollout.shared import SharedEngine, share_of
from driftgate.stop import Stopped
from driftgate.train.build import build_run
from driftgate.train.loop import train
from driftgate.train.policies import enable_checkpointing
from driftgate.train.portions import Batch, schedule
from driftgate.train.scoring import check_scorers
from driftgate.train.sums import Sums
from driftgate.train.weighing import Moment, Weighed
from driftgate.world import Alone

GATE = {"gate": {"spans": "block", "size": 8, "tau": 30.0}}


def test_every_response_carries_the_version_that_wrote_it(settings, tmp_path):
    config = check_config(settings | {"steps": 2})
    made = build_run(config, tmp_path)
    written = []

    class Recorded:
        def __init__(self, engine):
            self.engine, self.load = engine, engine.load

        def generate(self, *arguments):
            groups = self.engine.generate(*arguments)
            written.append({response.version for group in groups for response in group})
            return groups

    made.engines.student = Recorded(made.engines.student)
    tmp_path.mkdir(exist_ok=True)
    train(made)
    assert written == [{0}, {4}]  # two passes of two minibatches a step
    assert made.learner.version == 8


def test_a_batch_has_the_version_of_its_writer_also_when_it_is_resumed(settings, tmp_path):
    config = check_config(settings | {"steps": 2})
    made, responses = collected(config, tmp_path / "run")
    first = next(schedule(config, 0))
    learn(config, made, responses, first.sequences, Moment(config.seed, 0))
    responses["student"].save(tmp_path / "pending.safetensors")
    again = Experience.load(tmp_path / "pending.safetensors")
    assert (again.version, made.learner.version) == (0, 1)
    assert torch.equal(again.scores.behaviour.logp, responses["student"].scores.behaviour.logp)


@pytest.mark.parametrize("objective", [{"kind": "lsm", "k": 6}, {"kind": "sampled_token"}])
def test_a_stale_batch_is_gated_in_its_first_update_too(settings, tmp_path, objective):
    """The student has moved on by two updates: the old log-probabilities are the writer's, not the current ones."""
    config = check_config(settings | GATE | {"objective": objective, "minibatch": None})
    made, responses = collected(config, tmp_path)
    learn(config, made, responses, range(12), Moment(config.seed, 0, 0))
    learn(config, made, responses, range(12), Moment(config.seed, 0, 1))
    batch = Batch(config, responses, made.newline_ids)
    assert made.learner.version - batch.version == 2
    metrics = learn(config, made, responses, range(12), Moment(config.seed, 1, made.learner.version - batch.version))
    assert metrics["drift_abs"] > 0
    assert metrics["gate_min"] < 1


def test_a_rollout_batch_stays_frozen(settings, tmp_path):
    """The first update gives its log-probabilities back; it writes nothing into the batch."""
    config = check_config(settings | GATE)
    made, responses = collected(config, tmp_path)
    before = responses["student"]
    kept = before.scores.behaviour.logp.clone()
    sequences = next(schedule(config, 0)).sequences
    assert before.unscored == sequences
    learn(config, made, responses, sequences, Moment(config.seed, 0))
    after, tokens = responses["student"], before.tokens_of(sequences)
    assert torch.equal(before.scores.behaviour.logp, kept)
    assert not after.unscored
    assert (after.scores.behaviour.logp[tokens] < 0).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.scores = Scored()


def test_a_scorer_that_cannot_what_the_loss_needs_is_refused_before_compute(settings, tmp_path):
    config = check_config(settings | {"objective": {"kind": "lsm", "k": 6}})
    made = build_run(config, tmp_path)
    check_scorers(config, made.scorers)

    class Sampled:
        can = Needs(logp=True)

    with pytest.raises(InputError, match=r"teacher: cannot score top.*choose another objective"):
        check_scorers(config, {**made.scorers, "teacher": Sampled()})


def test_a_model_without_gradient_checkpointing_is_refused_by_the_settings_name():
    class Plain(torch.nn.Module):
        supports_gradient_checkpointing = False

    with pytest.raises(InputError, match=r"student.gradient_checkpointing = true: Plain does not support it; set it"):
        enable_checkpointing(Policy(Plain()))


def test_needs_add_up_and_say_what_is_lacking():
    both = Needs(logp=True, top=4) | Needs(top=9, at_ids=True)
    assert both == Needs(logp=True, top=9, at_ids=True)
    assert both.beyond(Needs(logp=True, top=8)) == ["top", "at_ids"]
    assert not Needs()


def test_scores_of_some_tokens_are_those_rows():
    scores = TokenScores(logp=torch.arange(5.0), top_ids=torch.arange(10).view(5, 2))
    some = scores.rows(torch.tensor([3, 1]))
    assert some.logp.tolist() == [3, 1]
    assert some.top_ids.tolist() == [[6, 7], [2, 3]]
    assert some.entropy is None


class TwoRanks(Alone):
    """A world in which the other rank has seen the same once more, and half the weights."""

    size = 2

    def sum(self, totals):
        return {name: 2 * value for name, value in totals.items()}

    def share(self, value):
        least, least_factor, weights = value
        return [value, (least / 2, least_factor, [weight / 2 for weight in weights])]


def test_sums_over_ranks_add_totals_and_keep_the_least_weight():
    sums = Sums()
    gate = torch.tensor([0.5, 0.25])
    sums.add({"loss": torch.tensor(3.0)}, Weighed(gate, gate, torch.tensor(-0.5)))
    whole = sums.over(TwoRanks())
    assert (whole.totals["loss"], whole.totals["tokens"]) == (6.0, 4.0)
    assert (whole.least, whole.least_factor) == (0.125, -0.5)
    assert torch.cat(whole.weights).tolist() == [0.5, 0.25, 0.25, 0.125]
    assert sums.over(Alone()) is sums


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200), st.integers(1, 5))
def test_ranks_share_the_forwards_evenly(lengths, budget, size):
    sequences = list(range(len(lengths)))
    shares = [dealt(lengths, sequences, budget, rank, size) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    groups = [group for share in shares for group in share]
    assert sorted(i for group in groups for i in group) == sequences
    padded = [len(group) * max(lengths[i] for i in group) for group in groups if group]
    assert all(cost <= max(budget, max(lengths)) for cost in padded)
    alone = micro_batches(lengths, sequences, budget)
    assert len(shares[0]) == -(-len(alone) // size)  # no more rounds than one process's forwards ask for
    if size == 1:
        assert shares[0] == alone


def test_a_whole_batch_in_one_forward_is_cut_for_the_ranks():
    lengths = [10, 11, 12, 13, 14, 15, 16, 17]
    shares = [dealt(lengths, list(range(8)), 10_000, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [1, 1]
    assert sorted(len(group) for share in shares for group in share) == [4, 4]


class Written:
    """An engine that notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def load(self, policy, version):
        self.version = version

    def generate(self, requests, sampling, advance=None):
        self.asked.append(requests)
        advance(sum(len(request.keys) for request in requests))
        return [[Response((int(key[0]),), (0.0,), True) for key in request.keys] for request in requests]


class Together(Alone):
    """One of three ranks, all of which run in this process, one after the other."""

    size = 3

    def __init__(self, rank, shared):
        self.rank, self.shared, self.asked = rank, shared, False

    def share(self, value):
        self.shared[self.rank] = value
        return list(self.shared)

    def ask_to_stop(self):
        self.asked = True


def test_ranks_write_a_share_of_the_responses_each_and_get_all():
    requests = [Request((1,), tuple((10 * i + n,) for n in range(count))) for i, count in enumerate((4, 1, 3, 2))]
    shared, shares, counted = [None] * 3, [], []
    for rank in (0, 1, 2):
        engine = SharedEngine(Written(), Together(rank, shared))
        groups = engine.generate(requests, None, counted.append) if rank == 2 else None
        if rank < 2:
            shared[rank] = engine.engine.generate(share_of(requests, rank, 3), None, lambda n: None)
        shares.append([len(request.keys) for request in engine.engine.asked[0]])
    assert shares == [[3], [1, 1, 1], [2, 2]]
    assert [[response.ids[0] for response in group] for group in groups] == [
        [key[0] for key in request.keys] for request in requests
    ]
    assert counted == [4 * 3]


def test_where_one_rank_is_asked_to_stop_all_stop():
    def advance(count):
        raise Stopped

    world = Together(0, [None] * 3)
    with pytest.raises(Stopped):
        SharedEngine(Written(), world).generate([Request((1,), ((1,),))] * 3, None, advance)
    assert world.asked
    other = Together(1, [None] * 3)
    other.asked_to_stop = True
    with pytest.raises(Stopped):
        SharedEngine(Written(), other).generate([Request((1,), ((1,),))] * 3, None, None)


def test_a_gate_of_tau_zero_trains_as_no_gate(settings, tmp_path):
    weights = []
    for number, gate in enumerate(({"spans": "none"}, {"spans": "block", "size": 8, "tau": 0.0})):
        config = check_config(settings | {"gate": gate, "minibatch": None})
        made, responses = collected(config, tmp_path / str(number))
        for age in range(3):
            metrics = learn(config, made, responses, range(12), Moment(config.seed, 0, age))
            assert (metrics["gate_min"], metrics["gate_ess"]) == (1.0, 1.0)
        weights.append([p.detach().clone() for p in made.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights))
