"""A target in this process, a teacher or the initial student: scores a rollout batch once, without gradient.

Shapes: N valid response tokens, K most probable tokens, H' the target's hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.experience import Experience
from ..data.packing import MicroBatch
from ..method import head
from ..models.policy import Policy


@dataclass
class TargetNeeds:
    """What is wanted of a target."""

    logp: bool = False
    """Its log-probability of each sampled token."""
    entropy: bool = False
    top: int = 0
    """Its so many most probable tokens."""
    at_student: bool = False
    """Its log-probabilities of the student's most probable tokens."""
    hidden: bool = False
    """Its hidden states, from which a divergence over the vocabulary makes its logits chunk by chunk."""

    @property
    def logits(self) -> bool:
        """Whether its logits have to be made."""
        return self.logp or self.entropy or self.top > 0 or self.at_student


class LocalTeacher:
    """Scores a rollout batch at the sampling temperature, in forwards of at most `microbatch_tokens` tokens."""

    def __init__(self, policy: Policy, microbatch_tokens: int, temperature: float, name: str = "teacher"):
        """name: what its scores are called in the batch; only the teacher sees prompts of its own."""
        self.policy = policy.requires_grad_(False)
        self.microbatch_tokens = microbatch_tokens
        self.temperature = temperature
        self.name = name

    def score(self, batch: Experience, needs: TargetNeeds) -> Experience:
        """The batch with, as needed, NAME_logp [N], NAME_entropy [N], NAME_top_ids and NAME_top_logp [N, K],
        NAME_at_student [N, K], NAME_hidden [N, H']; log-probabilities in nats, of the whole vocabulary.

        Where its logits are made at all, NAME_logp is there too.
        """
        everything = range(len(batch.responses))
        micros = batch.micro_batches(
            everything, self.microbatch_tokens, self.policy.device, teacher=self.name == "teacher"
        )
        ids = batch.ids[:, None] if needs.logits else batch.ids[:, None][:, :0]
        if needs.at_student:
            ids = torch.cat([ids, batch.scores["student_top_ids"]], 1)
        scores = score_tokens(self.policy, micros, ids, needs, self.temperature)
        if needs.logits:
            logp = scores.pop("logp")
            scores |= {"logp": logp[:, 0]} | ({"at_student": logp[:, 1:]} if needs.at_student else {})
        return batch.with_scores(**{f"{self.name}_{name}": value for name, value in scores.items()})


@torch.no_grad()
def score_tokens(
    policy: Policy, micros: Iterator[MicroBatch], ids: Tensor, needs: TargetNeeds, temperature: float
) -> dict[str, Tensor]:
    """Log-probabilities `logp` [N, K] of ids int64 [N, K] and, as needed, `entropy`, `top_ids`, `top_logp`, `hidden`;
    on the CPU, 0 where no micro-batch reaches. Without ids no logits are made."""
    scores = {"logp": torch.zeros(ids.shape, dtype=policy.wide)} if ids.shape[1] else {}
    for micro in micros:

        def finish(hidden: Tensor, weight: Tensor, micro: MicroBatch = micro) -> dict[str, Tensor | None]:
            kept: dict[str, Tensor | None] = {"hidden": hidden if needs.hidden else None}
            wanted = ids[micro.tokens].to(hidden.device)
            if wanted.shape[1]:
                found = head.summary(hidden, weight, wanted, needs.top, needs.entropy, temperature)
                top_ids = None if found.top_ids is None else found.top_ids.int()
                kept |= {"logp": found.logp, "entropy": found.entropy, "top_ids": top_ids, "top_logp": found.top_logp}
            return kept

        for name, value in policy(micro, finish).items():
            if value is not None:
                whole = scores.setdefault(name, torch.zeros(len(ids), *value.shape[1:], dtype=value.dtype))
                whole[micro.tokens] = value.cpu()
    return scores
