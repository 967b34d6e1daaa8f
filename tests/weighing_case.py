"""A batch to weigh, and the configurations, moments and draws that the tests of weights share."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from twins import rows_of

from driftgate.config import Factor, GateSettings, TermSettings
from driftgate.data.experience import Experience
from driftgate.method.scores import Scored, TokenScores
from driftgate.train.weighing import Moment, fixed_partitions, streams_of, weigh

SEEDS = st.integers(0, 10**6)
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=5)
QUICK = settings(max_examples=20, deadline=None)
LONG = [300, 1, 200, 64, 17]
NOW = Moment(seed=1, step=2, age=3)
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


RANDOM = {
    "bernoulli": factor_of(signal="teacher_ratio", map="bernoulli"),
    "shuffle_within": factor_of(signal="drift", control="shuffle_within"),
    "shuffle_across": factor_of(signal="drift", control="shuffle_across"),
    "resample": factor_of(signal="drift", control="resample"),
    "shuffle_boundaries": factor_of(signal="drift", partition="block8", control="shuffle_boundaries"),
}


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
