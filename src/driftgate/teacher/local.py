"""A teacher in this process: scores the sampled tokens, or names its K most probable ones, without gradient.

Shapes: N valid response tokens, K support tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import LsmObjective, SampledTokenObjective
from ..data.experience import Experience
from ..data.packing import MicroBatch
from ..method import head
from ..models.policy import Policy


class LocalTeacher:
    """Scores a rollout batch at the sampling temperature, in forwards of at most `microbatch_tokens` tokens."""

    def __init__(self, policy: Policy, microbatch_tokens: int, temperature: float):
        self.policy = policy.requires_grad_(False)
        self.microbatch_tokens = microbatch_tokens
        self.temperature = temperature

    def score(self, batch: Experience, objective: SampledTokenObjective | LsmObjective) -> Experience:
        """The batch with what the objective needs: log q(y_t), or the top-K ids and logits."""
        if objective.kind == "sampled_token":
            return batch.with_scores(teacher_logp=self.token_logprobs(batch))
        ids, logits = self.top_k(batch, objective.k)
        return batch.with_scores(support_ids=ids, support_logits=logits)

    def token_logprobs(self, batch: Experience) -> Tensor:
        """float32 [N]: log q(y_t), in nats."""
        return token_logprobs(self.policy, batch, self._micro_batches(batch), self.temperature)

    @torch.no_grad()
    def top_k(self, batch: Experience, k: int) -> tuple[Tensor, Tensor]:
        """ids int32 [N, K] and logits float32 [N, K]."""
        ids = torch.empty(len(batch.ids), k, dtype=torch.int32)
        logits = torch.empty(len(batch.ids), k, dtype=self.policy.wide)
        for micro in self._micro_batches(batch):
            top_ids, top_logits = self.policy(micro, lambda h, w: head.top_k(h, w, k, self.temperature))
            ids[micro.tokens], logits[micro.tokens] = top_ids.cpu().int(), top_logits.cpu()
        return ids, logits

    def _micro_batches(self, batch: Experience) -> Iterator[MicroBatch]:
        everything = range(len(batch.responses))
        return batch.micro_batches(everything, self.microbatch_tokens, self.policy.device, teacher=True)


@torch.no_grad()
def token_logprobs(policy: Policy, batch: Experience, micros: Iterator[MicroBatch], temperature: float) -> Tensor:
    """Log-probability of every sampled token under `policy`, in nats: [N] on the CPU, 0 where no micro reaches."""
    logp = torch.zeros(len(batch.ids), dtype=policy.wide)
    for micro in micros:
        ids = batch.ids[micro.tokens].to(policy.device)
        logp[micro.tokens] = policy(micro, lambda h, w, ids=ids: head.token_logprobs(h, w, ids, temperature)).cpu()
    return logp
