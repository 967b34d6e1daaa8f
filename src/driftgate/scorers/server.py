"""A teacher on servers that scores a rollout batch.

Shapes: N valid response tokens, K most probable tokens.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..data.experience import Experience
from ..method.scores import Needs, TokenScores
from ..rollout.shared import of_first
from ..stop import Stopped
from ..world import World
from .served_teacher import Job, TeacherServers


class ServedScorer:
    """Scores at temperature 1. Rank 0 alone talks to the servers; all ranks get the scores, and fail together."""

    def __init__(self, connect: Callable[[], TeacherServers], world: World, top: int):
        """connect: called on rank 0 alone; raises on every rank what it raises there. top: most probable tokens that it
        has been asked for."""
        self.world, self.made = world, []

        def begin():
            self.made.append(connect())
            return self.made[0].about

        self.about = of_first(world, begin)
        self.can = Needs(logp=True, top=top, at_ids=self.about.chosen)
        self.check: Callable[[], None] = lambda: None
        """Called again and again while servers work. It may raise Stopped."""

    @property
    def sha256(self) -> str:
        """Of the model's name and what it says of fixed tokens, in hex."""
        return hashlib.sha256(json.dumps([self.about.model, self.about.probe]).encode()).hexdigest()

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """See `Scorer.score`; in float32, `logp` always. How sequences are grouped makes no difference. Raises
        ServingError where no server is left."""
        chosen = range(len(batch.responses)) if groups is None else [i for group in groups for i in group]
        sequences = sorted(i for i in chosen if batch.keep[i].any())

        def advance(count: int) -> None:
            if self.world.asked_to_stop:
                raise Stopped
            self.check()

        def ask() -> list[dict[str, Tensor]]:
            jobs = [job_of(batch, i, needs.at_ids) for i in sequences]
            return self.made[0].scored(jobs, needs, advance)

        tokens, parts = batch.tokens_of(sequences), of_first(self.world, ask)
        scores = {"logp": torch.zeros(len(batch.ids))}
        for name in parts[0] if parts else ():
            values = torch.cat([part[name] for part in parts])
            scores[name] = torch.zeros(len(batch.ids), *values.shape[1:], dtype=values.dtype)
            scores[name][tokens] = values
        return TokenScores(**scores)


def job_of(batch: Experience, sequence: int, at_ids: bool) -> Job:
    """A sequence behind the teacher's prompt. at_ids: ask for the writing student's most probable tokens."""
    prompt, response = batch.teacher_prompts[sequence], batch.responses[sequence]
    chosen = batch.readable("student_top_ids")[batch.tokens_of([sequence])] if at_ids else None
    ids = tuple(torch.cat([prompt, response]).tolist())
    return Job(ids, len(prompt), batch.keep[sequence].nonzero().flatten(), chosen)
