"""How far a student is from its teacher on the student's own answers: KL over the whole vocabulary, per token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.experience import Experience
from ..data.packing import MicroBatch
from ..data.prompts import Prompt
from ..data.response import Response
from ..method.vocabulary import vocabulary_divergence
from ..models.policy import Policy


@torch.no_grad()
def divergence_by_prompt(
    student: Policy,
    teacher: Policy,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    temperature: float,
    microbatch_tokens: int,
) -> list[float]:
    """KL(student || teacher) in nats, the mean over a prompt's response tokens; one value a prompt.

    The teacher sees its own prompts. Responses must be the student's, or this is not its own distribution.
    """
    batch = Experience.of(prompts, responses)
    values = torch.empty(len(batch.ids))
    for row in range(len(batch.responses)):
        ours, theirs = (
            next(batch.micro_batches([row], microbatch_tokens, policy.device, teacher=policy is teacher))
            for policy in (student, teacher)
        )
        hidden_q, weight_q = teacher(theirs, lambda h, w: (h, w))
        values[ours.tokens] = _reverse_kl(student, ours, hidden_q, weight_q, temperature)
    means = torch.stack([part.mean() for part in values.split([int(k.sum()) for k in batch.keep])])
    return means.view(len(prompts), -1).mean(1).tolist()


def _reverse_kl(student: Policy, micro: MicroBatch, hidden_q: Tensor, weight_q: Tensor, temperature: float) -> Tensor:
    """[N] on the CPU."""
    theirs = hidden_q, weight_q, "reverse_kl", 0.5, temperature
    return student(micro, lambda h, w: vocabulary_divergence(h, w, *theirs)).float().cpu()
