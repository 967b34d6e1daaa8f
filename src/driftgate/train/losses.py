"""From hidden states to what the losses need: one pass over the head for all objectives of a term's responses.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary, K tokens of a support.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..method import head
from ..method.logits import Head
from ..method.scores import Scored
from ..objectives import Objective, Outputs

Heads = Mapping[str, Callable[[], Head]]
"""Output heads of "teacher" and "initial"."""


def read_head(
    hidden: Tensor,
    output: Head,
    ids: Tensor,
    objectives: Sequence[Objective],
    scores: Scored,
    temperature: float,
    want_logp: bool,
    target_heads: Heads,
) -> Outputs:
    """One pass over the vocabulary at most. hidden: [N, H]; output: the student's; ids: int64 [N], the sampled tokens.

    Where no objective reads the vocabulary, only the supports' K rows of the head carry a gradient; log p(y_t) then
    costs a pass without gradient, made if `want_logp`.
    """
    supports = {o: o.support_ids(scores) for o in objectives}
    wanted = {o: part.long().clamp(min=0) for o, part in supports.items() if part is not None}
    outputs = Outputs(hidden, output, None, temperature, target_heads, ids=ids)
    if any(objective.reads_vocabulary for objective in objectives):
        columns = torch.cat([ids[:, None], *wanted.values()], 1)
        logp = head.token_logprobs(hidden, output, columns, temperature)
        own, *parts = logp.split([1, *(part.shape[1] for part in wanted.values())], dim=1)
        outputs.logp, outputs.supports = own[:, 0], dict(zip(wanted, parts))
        return outputs
    outputs.supports = {o: head.support_logits(hidden, output, part, temperature) for o, part in wanted.items()}
    if want_logp:
        with torch.no_grad():
            outputs.logp = head.token_logprobs(hidden, output, ids, temperature)
    return outputs
