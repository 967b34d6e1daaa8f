"""Which sequences share a forward, and how they are laid out for it. The only place where padding exists."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """One forward. B sequences, T the longest of them, N valid response tokens in sequence order."""

    input_ids: Tensor
    """int64 [B, T], prompt then response, padded on the right."""
    predicts: Tensor
    """int64 [N]: positions in the flattened [B * T] whose hidden state predicts each valid response token."""
    tokens: Tensor
    """int64 [N], on the CPU: the same tokens' places in the rollout batch's flat stream."""
    padding: int
    """Positions of `input_ids` that are padding."""


def micro_batches(lengths: Sequence[int], sequences: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut `sequences` (indices into `lengths`) into groups whose padded size stays within the budget.

    Sorted by length, so that padding is little; a sequence longer than the budget goes alone.
    """
    groups: list[list[int]] = []
    for index in sorted(sequences, key=lambda i: (lengths[i], i)):
        # sorted ascending: the newcomer is the longest and sets the padded length of the whole group
        if groups and (len(groups[-1]) + 1) * lengths[index] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pack(
    prompts: Sequence[Tensor],
    responses: Sequence[Tensor],
    keep: Sequence[Tensor],
    starts: Sequence[int],
    device: torch.device,
) -> MicroBatch:
    """Lay sequences out for one forward.

    prompts, responses: int64 [P_b], [R_b] each; keep: bool [R_b], False for tokens that are not in the stream;
    starts: place of each sequence's first kept token in the stream.
    """
    sequences = [torch.cat(pair) for pair in zip(prompts, responses)]
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    width = input_ids.shape[1]
    predicts, tokens = [], []
    for row, (prompt, kept, start) in enumerate(zip(prompts, keep, starts)):
        predicts.append(row * width + len(prompt) - 1 + kept.nonzero().flatten())
        tokens.append(start + torch.arange(int(kept.sum())))
    padding = input_ids.numel() - sum(map(len, sequences))
    return MicroBatch(input_ids.to(device), torch.cat(predicts).to(device), torch.cat(tokens), padding)
