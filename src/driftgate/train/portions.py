"""What an optimiser update takes of each response stream, and in which order updates come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import keyed
from ..config import TrainConfig
from ..data.experience import Experience
from ..loss_config import BlockPartition
from .weighing import Spans, fixed_partitions, partition_spans


@dataclass
class Portion:
    """What an optimiser batch takes of one response stream."""

    batch: Experience
    sequences: Sequence[int]
    spans: Spans
    """Partitions of the whole stream that do not move with the drift."""
    drift_spans: Tensor | None = None
    """int64 [tokens of the stream]: what the drift metric averages over."""
    tokens: Tensor = field(init=False)
    """int64: places in the stream of the portion's tokens."""

    def __post_init__(self) -> None:
        self.tokens = self.batch.tokens_of(self.sequences)

    def spans_of(self, tokens: Tensor, device: torch.device) -> Spans:
        return {partition: ids[tokens].to(device) for partition, ids in self.spans.items()}


def schedule(config: TrainConfig, step: int) -> Iterator[tuple[int, int, list[int]]]:
    """(pass, minibatch, responses of it) of every update of a step; each pass shuffles anew, keyed."""
    responses = config.prompts.per_step * config.rollout.samples
    size = config.minibatch or responses
    for pass_ in range(config.passes):
        order = keyed.generator(config.seed, "minibatches", step, pass_).permutation(responses).tolist()
        for minibatch, start in enumerate(range(0, responses, size)):
            yield pass_, minibatch, order[start : start + size]


def spans_of(config: TrainConfig, name: str, batch: Experience, newline_ids: Tensor) -> tuple[Spans, Tensor | None]:
    """The partitions of a stream that its terms' weights use, and the one that the drift metric averages over.

    newline_ids: bool [V], True where a token's text contains a newline.
    """
    spans: Spans = {}
    for term in config.all_terms.values():
        if term.stream == name:
            spans |= fixed_partitions(term, batch, newline_ids)
    if name != "student":
        return spans, None
    measured = config.gate.partition if config.gate.spans != "changepoint" else BlockPartition(size=config.gate.size)
    return spans, partition_spans(measured, batch, newline_ids)


def sequences_of(config: TrainConfig, name: str, batch: Experience, sequences: list[int], minibatch: int) -> list[int]:
    """A stream's share of a minibatch: the student's own sequences; of other streams every n-th, for n minibatches."""
    if name == "student":
        return sequences
    return list(range(minibatch, len(batch.responses), config.updates_per_step))
