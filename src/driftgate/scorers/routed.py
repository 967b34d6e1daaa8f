"""Several teachers as one scorer: each scores the sequences that are its own, in forwards of its own.

Shapes: B sequences, N valid response tokens.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from ..data.experience import Experience
from ..method.scores import Needs, TokenScores
from .scorer import Scorer


class RoutedScorer:
    """Asks of each sequence the scorer that `Experience.teacher` names, by its place among `scorers`."""

    def __init__(self, scorers: Sequence[Scorer]):
        self.scorers = scorers
        self.can = reduce(and_, (scorer.can for scorer in scorers)) & Needs(True, True, 10**9, True)
        """What all of them can, but hidden states: these are of another size for each model."""

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """See `Scorer.score`."""
        assert batch.teacher is not None
        owner = batch.teacher.tolist()
        groups = [range(len(owner))] if groups is None else [list(group) for group in groups]
        parts: list[tuple[Tensor, TokenScores]] = []
        for number, scorer in enumerate(self.scorers):
            own = [part for group in groups if (part := [i for i in group if owner[i] == number])]
            tokens = batch.tokens_of([i for part in own for i in part])
            if len(tokens):
                parts.append((tokens, scorer.score(batch, needs, own)))
        return joined(parts, len(batch.ids)) if parts else self.scorers[0].score(batch, needs, [])


def joined(parts: Sequence[tuple[Tensor, TokenScores]], count: int) -> TokenScores:
    """One batch's scores [N, ...] from those of its parts, in the widest of their types; 0 in the rows of no part.

    parts: (int64 rows of the part, scores of all N rows). count: N.
    """
    found: dict[str, Tensor] = {}
    for name, first in parts[0][1].items():
        values = [(tokens, dict(scores.items())[name]) for tokens, scores in parts]
        dtype = reduce(torch.promote_types, (value.dtype for _, value in values))
        whole = torch.zeros(count, *first.shape[1:], dtype=dtype)
        for tokens, value in values:
            whole[tokens] = value[tokens].to(dtype)
        found[name] = whole
    return TokenScores(**found)
