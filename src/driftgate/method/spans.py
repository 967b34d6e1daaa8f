"""Partitions of the valid response tokens into spans (arXiv 2606.24084, blocks and newline spans).

Shapes: N valid response tokens of a batch, sequence after sequence. `rows` int64 [N], non-decreasing, says which
sequence a token belongs to. A partition is int64 [N]: span ids counted from 0 over the whole batch, so that no span
crosses from one sequence into the next.
"""

import torch
from torch import Tensor

from . import check


def fixed_spans(rows: Tensor, size: int = 64) -> Tensor:
    """Blocks of `size` tokens counted from each sequence's first valid response token; the last may be short.

    rows: int64 [N]. Returns int64 [N]. Raises ValueError for a decreasing `rows` or a `size` below 1.
    Source: arXiv 2606.24084, Block64 (`size` = 64).
    """
    check.rows_stream(rows)
    check.at_least("size", size, 1)
    index = torch.arange(len(rows), device=rows.device)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    row_start = torch.where(first, index, 0).cummax(0).values if len(rows) else index
    opens_block = (index - row_start) % size == 0
    return opens_block.cumsum(0) - 1


def newline_spans(
    rows: Tensor, ends_line: Tensor, min_tokens: int = 16, max_tokens: int = 128, size: int = 64
) -> Tensor:
    """Spans that end with a line of text, of about `min_tokens` to `max_tokens` tokens.

    A span closes after each token whose text contains a newline; one shorter than `min_tokens` joins the span after
    it (the last of a sequence has none after it and stays short); one longer than `max_tokens` is cut into chunks of
    at most that. A sequence without any newline falls back to blocks of `size`.

    rows: int64 [N]; ends_line: bool [N], True where the token's text contains a newline. Returns int64 [N].
    Raises ValueError for lengths that differ, a decreasing `rows`, or `max_tokens` below `min_tokens`.
    Source: arXiv 2606.24084, NewlineSpan; the two bounds are ours.
    """
    check.rows_stream(rows)
    check.same_length(rows=rows, ends_line=ends_line)
    if ends_line.dtype != torch.bool:
        raise ValueError(f"ends_line must be bool, not {ends_line.dtype}")
    check.at_least("min_tokens", min_tokens, 1)
    check.at_least("max_tokens", max_tokens, min_tokens)
    check.at_least("size", size, 1)
    lengths: list[int] = []
    _, row_lengths = rows.unique_consecutive(return_counts=True)
    for ends in ends_line.cpu().split(row_lengths.tolist()):
        if ends.any():
            lengths += _line_lengths(ends, min_tokens, max_tokens)
        else:
            lengths += _chunks(len(ends), size)
    span_lengths = torch.tensor(lengths, dtype=torch.int64)
    return torch.repeat_interleave(span_lengths).to(rows.device)


def _line_lengths(ends: Tensor, min_tokens: int, max_tokens: int) -> list[int]:
    """Span lengths of one sequence with at least one newline. ends: bool [T]."""
    cuts = [*(ends.nonzero().flatten() + 1).tolist(), len(ends)]
    lengths, start = [], 0
    for cut in cuts:
        if cut - start >= min_tokens or (cut == len(ends) and cut > start):
            lengths += _chunks(cut - start, max_tokens)
            start = cut
    return lengths


def _chunks(length: int, size: int) -> list[int]:
    """`length` as a list of `size`s and a rest: _chunks(5, 2) == [2, 2, 1]."""
    whole, rest = divmod(length, size)
    return [size] * whole + [rest] * (rest > 0)
