"""Whether a model is a causal LM: training pads on the right and needs that no position sees a later one."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .policy import Policy

TOKENS = 8
"""Of the short sequence that is compared with a longer one."""


@torch.no_grad()
def check_causal(policy: Policy, role: str, path: str) -> None:
    """Require hidden states of token ids alone that do not depend on later ids. Raises InputError.

    Any kind of layer is exact under right padding if it is causal: attention of all kinds, windows, convolutions,
    recurrent states, experts without a limit of tokens.
    """
    vocabulary = policy.vocabulary_size
    short = torch.arange(1, TOKENS + 1, device=policy.device) % vocabulary
    longer = torch.arange(1, TOKENS + 4, device=policy.device) % vocabulary
    longer[TOKENS - 1 :] = (longer[TOKENS - 1 :] + 7) % vocabulary  # another last id, and three more
    try:
        one, other = (_hidden(policy.model, ids)[: TOKENS - 1].double() for ids in (short, longer))
    except Exception as error:  # whatever a model of another kind raises
        raise InputError(
            f"{role}.path = {path!r}: {type(policy.model).__name__} gives no hidden states for token ids alone "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); choose a causal "
            f"language model of text"
        ) from None
    gap = share_of_size(one - other, one)
    if not gap <= rounding(policy.model):
        raise InputError(
            f"{role}.path = {path!r}: {type(policy.model).__name__} is not causal: its hidden states change by "
            f"{gap:.2g} of their size with tokens that follow; choose a causal model (an encoder such as BERT needs "
            f"is_decoder = true in its config.json)"
        )


def share_of_size(gap: Tensor, states: Tensor) -> float:
    """Mean absolute value of a gap between hidden states, as a share of their root mean square; they may all be the
    same number, so it is not a share of their spread."""
    size = states.square().mean().sqrt().clamp(min=torch.finfo(states.dtype).tiny)
    return float(gap.abs().mean() / size)


def rounding(model: Any) -> float:
    """The largest mean gap, as a share of the size, that two orders of adding may leave between hidden states."""
    return max(1e-3, 8 * torch.finfo(model.get_output_embeddings().weight.dtype).eps)


def _hidden(model: Any, ids: Tensor) -> Tensor:
    """[T, H] of ids int64 [T]."""
    return model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
