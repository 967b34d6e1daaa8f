"""One model's scores of given token ids, micro-batch by micro-batch, without gradient.

Shapes: N valid response tokens, K ids asked for, H hidden, V vocabulary.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..data.packing import MicroBatch
from ..method import head
from ..method.logits import Head
from ..method.scores import Needs, TokenScores
from ..models.policy import Policy
from ..world import Alone, World


@torch.no_grad()
def score_tokens(
    policy: Policy,
    micros: Iterable[MicroBatch],
    ids: Tensor,
    needs: Needs,
    temperature: float,
    world: World | None = None,
) -> TokenScores:
    """`logp` [N, K] of ids int64 [N, K] and, as needed, `entropy`, `top_ids`, `top_logp` and `hidden`; on the CPU, 0
    where no micro-batch of any rank reaches. Without ids (K = 0) no logits are made, and `logp` is None."""
    scores = {"logp": torch.zeros(ids.shape, dtype=policy.wide)} if ids.shape[1] else {}
    for micro in micros:

        def finish(hidden: Tensor, output: Head, micro: MicroBatch = micro) -> TokenScores:
            return _of_micro_batch(hidden, output, ids[micro.tokens].to(hidden.device), needs, temperature)

        for name, value in policy(micro, finish).items():
            whole = scores.setdefault(name, torch.zeros(len(ids), *value.shape[1:], dtype=value.dtype))
            whole[micro.tokens] = value.cpu()
    return TokenScores(**{name: (world or Alone()).add(value) for name, value in scores.items()})


def _of_micro_batch(hidden: Tensor, output: Head, ids: Tensor, needs: Needs, temperature: float) -> TokenScores:
    kept = hidden if needs.hidden else None
    if not ids.shape[1]:
        return TokenScores(hidden=kept)
    found = head.summary(hidden, output, ids, needs.top, needs.entropy, temperature)
    top_ids = None if found.top_ids is None else found.top_ids.int()
    return TokenScores(logp=found.logp, entropy=found.entropy, top_ids=top_ids, top_logp=found.top_logp, hidden=kept)
