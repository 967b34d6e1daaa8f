"""The seams between the rooms: versions and ages, scorers that say what they can, sums over ranks, frozen batches."""

import dataclasses

import pytest
import torch
from conftest import collected, learn

from driftgate.data.experience import Experience
from driftgate.errors import InputError
from driftgate.method.scores import Needs, Scored, TokenScores
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.train.build import build_run
from driftgate.train.loop import train
from driftgate.train.policies import enable_checkpointing
from driftgate.train.portions import Batch, schedule
from driftgate.train.scoring import check_scorers
from driftgate.train.sums import Sums
from driftgate.train.weighing import Moment, Weighed

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


class TwoRanks:
    """A world in which the other rank has seen the same once more."""

    rank, size = 0, 2

    def sum(self, totals):
        return {name: 2 * value for name, value in totals.items()}

    def gather(self, values):
        return torch.cat([values, values + 1])

    def agree(self, wish):
        return wish


def test_sums_over_ranks_add_totals_and_keep_the_least_weight():
    sums = Sums()
    gate = torch.tensor([0.5, 0.25])
    sums.add({"loss": torch.tensor(3.0)}, Weighed(gate, gate, torch.tensor(-0.5)))
    whole = sums.over(TwoRanks())
    assert (whole.totals["loss"], whole.totals["tokens"]) == (6.0, 4.0)
    assert (whole.least, whole.least_factor) == (0.25, -0.5)
    assert torch.cat(whole.weights).tolist() == [0.5, 0.25, 1.5, 1.25]


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
