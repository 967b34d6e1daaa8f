"""A model in this process that scores a rollout batch, without gradient.

Shapes: N valid response tokens, K ids asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import torch

from ..data.experience import Experience
from ..method.scores import Needs, TokenScores
from ..models.policy import Policy
from ..world import Alone, World
from .score_tokens import score_tokens

EVERYTHING = 10**9
"""More most probable tokens than any vocabulary has."""


class LocalScorer:
    """Scores at the sampling temperature, in forwards of at most `microbatch_tokens` tokens."""

    can = Needs(logp=True, entropy=True, top=EVERYTHING, at_ids=True, hidden=True)

    def __init__(
        self,
        policy: Policy,
        microbatch_tokens: int,
        temperature: float,
        teacher_prompts: bool = False,
        world: World | None = None,
    ):
        """teacher_prompts: whether it sees the teacher's prompts, where these differ from the student's. world: the
        ranks that share the work."""
        self.policy, self.world = policy, world or Alone()
        self.microbatch_tokens = microbatch_tokens
        self.temperature = temperature
        self.teacher_prompts = teacher_prompts

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """See `Scorer.score`. Where logits are made at all, `logp` comes with them."""
        groups = [range(len(batch.responses))] if groups is None else groups
        budget, device = self.microbatch_tokens, self.policy.device
        how = budget, device, self.teacher_prompts, self.world
        micros = chain.from_iterable(batch.micro_batches(group, *how) for group in groups)
        ids = batch.ids[:, None] if needs.logits else batch.ids[:, None][:, :0]
        if needs.at_ids:
            ids = torch.cat([ids, batch.readable("student_top_ids")], 1)
        found = score_tokens(self.policy, micros, ids, needs, self.temperature, self.world)
        self.policy.release()
        if found.logp is None:
            return found
        at_ids = found.logp[:, 1:] if needs.at_ids else None
        return replace(found, logp=found.logp[:, 0], at_ids=at_ids)
