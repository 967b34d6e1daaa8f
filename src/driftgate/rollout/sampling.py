"""Temperature and nucleus sampling from given uniform numbers, so that a draw depends on its address alone.

Shapes: B rows, V vocabulary.
"""

import torch
from torch import Tensor

WIDTH = 256
"""Tokens looked at first; a nucleus wider than this costs a full sort."""


def sample(logits: Tensor, uniforms: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row from the smallest set of most probable tokens with mass >= top_p, by inverse CDF.

    logits: float [B, V], already divided by the temperature; uniforms: float64 [B] in [0, 1).
    Returns ids int64 [B] and log-probabilities float32 [B] under the whole distribution, not the nucleus.
    """
    logits = logits.float()
    log_total = logits.logsumexp(-1, keepdim=True)
    ids = _inverse_cdf(logits, log_total, uniforms, top_p)
    return ids, (logits.gather(1, ids[:, None]) - log_total)[:, 0]


def _inverse_cdf(logits: Tensor, log_total: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    if top_p >= 1:
        mass = (logits - log_total).exp_().cumsum(-1, dtype=torch.float64)
        return _search(mass, uniforms * mass[:, -1])
    for width in (min(WIDTH, logits.shape[1]), logits.shape[1]):
        top, ids = logits.topk(width, dim=-1)
        mass = (top - log_total).exp_().cumsum(-1, dtype=torch.float64)
        if width == logits.shape[1] or bool((mass[:, -1] >= top_p).all()):
            break
    last = (mass < top_p).sum(-1, keepdim=True).clamp(max=mass.shape[1] - 1)
    place = _search(mass, uniforms * mass.gather(1, last)[:, 0])
    return ids.gather(1, torch.minimum(place[:, None], last))[:, 0]


def _search(mass: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative mass exceeds the target."""
    place = torch.searchsorted(mass, target[:, None], right=True)[:, 0]
    return place.clamp(max=mass.shape[1] - 1)
