"""A rollout batch, what an optimiser update takes of it, and in which order updates come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import keyed
from ..config import TrainConfig
from ..config.partitions import BlockPartition
from ..data.experience import Experience
from .weighing import Moment, Spans, fixed_partitions, partition_spans, streams_of


@dataclass(frozen=True)
class ScheduledUpdate:
    """One optimiser update of a step. All numbers count from 0."""

    step: int
    number: int
    """Of the update within the step."""
    pass_: int
    minibatch: int
    sequences: tuple[int, ...]
    """The student's responses that it learns from."""

    @property
    def place(self) -> dict[str, int]:
        """For metrics and messages, counted from 1."""
        numbers = {"step": self.step, "update": self.number, "pass": self.pass_, "minibatch": self.minibatch}
        return {name: number + 1 for name, number in numbers.items()}


def schedule(config: TrainConfig, step: int, done: int = 0) -> Iterator[ScheduledUpdate]:
    """The updates of a step without the first `done`; each pass shuffles the responses anew, keyed."""
    responses = config.prompts.per_step * config.rollout.samples
    size, number = config.minibatch or responses, 0
    for pass_ in range(config.passes):
        order = keyed.generator(config.seed, "minibatches", step, pass_).permutation(responses).tolist()
        for minibatch, start in enumerate(range(0, responses, size)):
            if number >= done:
                yield ScheduledUpdate(step, number, pass_, minibatch, tuple(order[start : start + size]))
            number += 1


@dataclass
class Portion:
    """What an optimiser batch takes of one group of responses."""

    batch: Experience
    sequences: Sequence[int]
    spans: Spans
    """Partitions of the group's tokens that do not move with the drift."""
    drift_spans: Tensor | None = None
    """int64 [tokens of the group]: what the drift metric averages over."""
    tokens: Tensor = field(init=False)
    """int64: places of the portion's tokens among the group's."""

    def __post_init__(self) -> None:
        self.tokens = self.batch.tokens_of(self.sequences)

    def spans_of(self, tokens: Tensor, device: torch.device) -> Spans:
        return {partition: ids[tokens].to(device) for partition, ids in self.spans.items()}


@dataclass
class Batch:
    """A scored rollout batch."""

    config: TrainConfig
    responses: dict[str, Experience]
    """By whose they are: "student" and, where a term is on them, "reference" and "teacher"."""
    newline_ids: Tensor
    """bool [V], True where a token's text contains a newline."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the rollout; empty where a run was resumed in the middle of the step."""

    def __post_init__(self) -> None:
        self.spans = {n: spans_of(self.config, n, part, self.newline_ids) for n, part in self.responses.items()}

    @property
    def student(self) -> Experience:
        return self.responses["student"]

    @property
    def version(self) -> int:
        """Optimiser updates that the weights had seen which wrote the student's responses."""
        return self.student.version

    def portion(self, update: ScheduledUpdate) -> dict[str, Portion]:
        """What an update takes of each group of responses that a term of its step learns from."""
        wanted = {term.responses for term in self.config.terms_at(update.step).values()}
        for name in wanted & self.responses.keys():
            self.responses[name] = with_ahead(self.config, name, self.responses[name], update.step)
        return {
            name: Portion(part, sequences_of(self.config, name, part, update), *self.spans[name])
            for name, part in self.responses.items()
            if name in wanted
        }

    def add_behaviour(self, logp: Tensor | None) -> None:
        """Take in the old log-probabilities that the first update found; None where there were none to find."""
        if logp is not None:
            self.responses["student"] = self.student.with_behaviour(logp)


def with_ahead(config: TrainConfig, name: str, batch: Experience, step: int) -> Experience:
    """A group of responses with what its terms' losses depend on of other tokens (`Objective.ahead`), unless that has
    been found before."""
    found = dict(batch.scores.ahead)
    for term in config.terms_at(step).values():
        objective = term.objective
        if term.responses == name and objective.looks_ahead and objective not in found:
            every, cpu, moment = torch.arange(len(batch.ids)), torch.device("cpu"), Moment(config.seed, step)
            streams = streams_of(batch, every, objective.reads_batch, None, moment, config.diagnostics.k, cpu)
            found[objective] = objective.ahead(streams)
    return batch if len(found) == len(batch.scores.ahead) else replace(batch, scores=replace(batch.scores, ahead=found))


def spans_of(config: TrainConfig, name: str, batch: Experience, newline_ids: Tensor) -> tuple[Spans, Tensor | None]:
    """The partitions of a group of responses that its terms' weights use, and the one that the drift metric averages
    over.

    newline_ids: bool [V], True where a token's text contains a newline.
    """
    spans: Spans = {}
    for term in config.all_terms.values():
        if term.responses == name:
            spans |= fixed_partitions(term, batch, newline_ids)
    if name != "student":
        return spans, None
    measured = config.gate.partition if config.gate.spans != "changepoint" else BlockPartition(size=config.gate.size)
    return spans, partition_spans(measured, batch, newline_ids)


def sequences_of(config: TrainConfig, name: str, batch: Experience, update: ScheduledUpdate) -> list[int]:
    """A group's share of a minibatch: the student's own sequences; of others every n-th, for n minibatches."""
    if name == "student":
        return list(update.sequences)
    return list(range(update.minibatch, len(batch.responses), config.updates_per_step))
