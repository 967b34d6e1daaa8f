"""Which sequences share a forward pass, and their layout in it. In training, padding exists only here.

Shapes: B sequences, T tokens of the longest, N valid response tokens, P_b and R_b prompt and response tokens of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. The N tokens are in sequence order."""

    input_ids: Tensor
    """int64 [B, T], prompt then response, padded on the right."""
    predicts: Tensor
    """int64 [N]: positions in the flattened [B * T] whose hidden state predicts each valid response token."""
    tokens: Tensor
    """int64 [N], on the CPU: indices of the same tokens in the rollout batch's flat stream."""
    padding: int
    """Number of padding positions in `input_ids`."""


def micro_batches(lengths: Sequence[int], sequences: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut `sequences` (indices into `lengths`) into groups whose padded size stays within the budget, in tokens.

    They are sorted by length, so that there is little padding. A sequence longer than the budget is a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(sequences, key=lambda i: (lengths[i], i)):
        # ascending order: the sequence added last is the longest and sets the padded length of its group
        if groups and (len(groups[-1]) + 1) * lengths[index] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def dealt(lengths: Sequence[int], sequences: Sequence[int], token_budget: int, rank: int, size: int) -> list[list[int]]:
    """The groups that one of `size` ranks takes of `sequences`; every rank gets as many, of about the same padded size.
    A rank for which there is none left gets an empty group.

    With several ranks the sequences are cut into smaller groups than the budget allows, so that every rank has work.
    """
    whole = micro_batches(lengths, sequences, token_budget)
    if size == 1 or not whole:
        return whole
    rounds = -(-len(whole) // size)
    low, high = 0, token_budget  # the smallest budget that needs no more rounds
    while high - low > 1:
        middle = (low + high) // 2
        enough = len(micro_batches(lengths, sequences, middle)) <= rounds * size
        low, high = (low, middle) if enough else (middle, high)
    groups = micro_batches(lengths, sequences, high)
    groups.sort(key=lambda group: (-len(group) * max(lengths[i] for i in group), group[0]))
    own = groups[rank::size]
    return own + [[]] * (rounds - len(own))


def nothing(device: torch.device) -> MicroBatch:
    """A micro-batch without a token to learn from: forward and backward change nothing, and ranks stay in step."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return MicroBatch(ids, ids.new_zeros(0), torch.zeros(0, dtype=torch.int64), 0)


def pack(
    prompts: Sequence[Tensor],
    responses: Sequence[Tensor],
    keep: Sequence[Tensor],
    starts: Sequence[int],
    device: torch.device,
) -> MicroBatch:
    """Lay sequences out for one forward pass.

    prompts, responses: int64 [P_b], [R_b] each; keep: bool [R_b] each, False for tokens that are not in the stream;
    starts: index in the stream of each sequence's first kept token.
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
