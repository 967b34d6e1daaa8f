"""Nucleus sampling from given uniform numbers, so that a draw depends on its random key only.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NUCLEUS_WIDTHS = (256, 4096)
"""Numbers of most probable tokens that are searched for the nucleus, in turn. A wider nucleus needs a full sort."""
CDF_BLOCK = 256
"""Tokens per block of the inverse CDF. Blocks are searched first, then the tokens of one block."""


def sample(logits: Tensor, uniforms: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row from the smallest set of most probable tokens with mass >= top_p, by inverse CDF.

    logits: float [B, V], already divided by the temperature; uniforms: float64 [B] in [0, 1).
    Returns ids int64 [B] and log-probabilities float32 [B] under the whole distribution, not the nucleus.
    """
    logp = logits.float().log_softmax(-1)
    ids = _inverse_cdf(logp.exp(), uniforms) if top_p >= 1 else _nucleus(logp, uniforms, top_p, NUCLEUS_WIDTHS)
    return ids, logp.gather(1, ids[:, None])[:, 0]


def _inverse_cdf(probability: Tensor, uniforms: Tensor) -> Tensor:
    """The first id at which the running mass exceeds uniforms * total mass: first its block, then its place there.

    A running sum over all V in float64 would take longer than the product with the output embedding.
    """
    blocks = F.pad(probability, (0, -probability.shape[1] % CDF_BLOCK)).unflatten(1, (-1, CDF_BLOCK))
    mass = blocks.sum(-1).double()
    running = mass.cumsum(-1)
    target = uniforms * running[:, -1]
    block = _search(running, target)[:, None]
    before = (running - mass).gather(1, block)[:, 0]
    inside = blocks.gather(1, block[..., None].expand(-1, 1, CDF_BLOCK))[:, 0].double().cumsum(-1)
    return block[:, 0] * CDF_BLOCK + _search(inside, target - before)


def _nucleus(logp: Tensor, uniforms: Tensor, top_p: float, widths: Sequence[int]) -> Tensor:
    """Inverse CDF inside each row's nucleus. widths: tokens to search, in turn, before the whole vocabulary."""
    width = min([*widths[:1], logp.shape[1]])
    top, ids = logp.topk(width, dim=-1)
    mass = top.double().exp_().cumsum(-1)
    if width < logp.shape[1] and not bool((mass[:, -1] >= top_p).all()):
        return _nucleus(logp, uniforms, top_p, widths[1:])
    last = (mass < top_p).sum(-1, keepdim=True).clamp(max=mass.shape[1] - 1)
    place = _search(mass, uniforms * mass.gather(1, last)[:, 0])
    return ids.gather(1, torch.minimum(place[:, None], last))[:, 0]


def _search(mass: Tensor, target: Tensor) -> Tensor:
    """First index of each row at which the running mass exceeds the target; never a token without mass."""
    below = mass[:, -1] * (1 - 1e-12)
    return torch.searchsorted(mass, torch.minimum(target, below)[:, None], right=True)[:, 0]
