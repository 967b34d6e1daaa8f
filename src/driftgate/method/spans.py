"""Partitions of the valid response tokens into spans (arXiv 2606.24084, blocks and newline spans), and controls.

Shapes: N valid response tokens of a batch, sequence after sequence; T tokens of one sequence. `rows` int64 [N],
non-decreasing, is the sequence of each token. A partition is int64 [N]: span ids, counted from 0 over the whole batch,
so that no span crosses from one sequence into the next. Partitions whose bounds follow the data are in `changepoint`.
"""

import torch
from torch import Tensor

from . import check


def token_spans(rows: Tensor) -> Tensor:
    """Each token a span of its own: the finest partition, a control.

    rows: int64 [N]. Returns int64 [N], 0 to N - 1. Raises ValueError for a decreasing `rows`. Source: ours.
    """
    check.rows_stream(rows)
    return torch.arange(len(rows), device=rows.device)


def sequence_spans(rows: Tensor) -> Tensor:
    """Each sequence one span: the coarsest partition, a control. A `rows` with gaps is renumbered from 0.

    rows: int64 [N]. Returns int64 [N]. Raises ValueError for a decreasing `rows`. Source: ours.
    """
    check.rows_stream(rows)
    return _starts(rows).cumsum(0) - 1


def fixed_spans(rows: Tensor, size: int = 64) -> Tensor:
    """Blocks of `size` tokens counted from each sequence's first valid response token; the last may be short.

    rows: int64 [N]. Returns int64 [N]. Raises ValueError for a decreasing `rows` or a `size` below 1.
    Source: arXiv 2606.24084, Block64 (`size` = 64).
    """
    check.rows_stream(rows)
    check.at_least("size", size, 1)
    index = torch.arange(len(rows), device=rows.device)
    opens_block = (index - _row_start(rows)) % size == 0
    return opens_block.cumsum(0) - 1


def newline_spans(
    rows: Tensor, ends_line: Tensor, min_tokens: int = 16, max_tokens: int = 128, size: int = 64
) -> Tensor:
    """Spans that end with a line of text, of about `min_tokens` to `max_tokens` tokens.

    A span ends after each token whose text contains a newline. A span shorter than `min_tokens` joins the next one (the
    last of a sequence stays short). A span longer than `max_tokens` is cut into chunks of at most `max_tokens`. A
    sequence without any newline is cut into blocks of `size`.

    rows: int64 [N]; ends_line: bool [N], True where the token's text contains a newline. Returns int64 [N].
    Raises ValueError for lengths that differ, a decreasing `rows`, an `ends_line` that is not bool, `max_tokens` below
    `min_tokens`, or a `min_tokens` or `size` below 1.
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


def random_spans(rows: Tensor, spans: Tensor, uniforms: Tensor) -> Tensor:
    """Shuffled boundaries, a control: as many spans in each sequence as `spans` has there, cut at random places.

    The k - 1 cuts of a sequence with k spans are drawn uniformly, without replacement, from the places between its
    tokens. A cut stands before each of the k - 1 tokens with the smallest `uniforms`; of two equal ones, the earlier
    counts as smaller. A sequence's spans depend on its own tokens only.

    rows, spans: int64 [N]; uniforms: float [N] in [0, 1), not used for a sequence's first token. Returns int64 [N].
    Raises ValueError for lengths that differ, a `spans` that is no partition of `rows`, or a `uniforms` outside of
    [0, 1). Source: ours.
    """
    check.rows_stream(rows)
    check.same_length(rows=rows, spans=spans, uniforms=uniforms)
    require_partition(rows, spans)
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms must lie in [0, 1)")
    row = sequence_spans(rows)
    counts = torch.zeros_like(row).index_add(0, row, _starts(spans).long())[row]
    order = torch.where(_starts(rows), -1, uniforms).sort(stable=True).indices  # a first token opens a span: rank 0
    order = order[row[order].sort(stable=True).indices]
    rank = torch.arange(len(rows), device=rows.device) - _row_start(rows)
    opens = torch.zeros_like(rows).scatter(0, order, (rank < counts).long())
    return opens.cumsum(0) - 1


def require_partition(rows: Tensor, spans: Tensor) -> None:
    """Require int64 span ids [N] that never decrease and change wherever `rows` [N] does. Raises ValueError."""
    check.integer_ids("spans", spans)
    if (spans[1:] < spans[:-1]).any():
        raise ValueError("spans must not decrease: keep the tokens of a span together")
    if (_starts(rows) & ~_starts(spans)).any():
        raise ValueError("spans must not cross from one sequence into the next: begin each sequence with a new span")


def _starts(ids: Tensor) -> Tensor:
    """bool [N], True at the first token of each run of equal `ids` [N]."""
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[1:] = ids[1:] != ids[:-1]
    return starts


def _row_start(rows: Tensor) -> Tensor:
    """int64 [N]: index in the stream of the first token of each token's sequence."""
    index = torch.arange(len(rows), device=rows.device)
    return torch.where(_starts(rows), index, 0).cummax(0).values if len(rows) else index


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
    """`length` cut into chunks of `size` and a rest: _chunks(5, 2) == [2, 2, 1]."""
    whole, rest = divmod(length, size)
    return [size] * whole + [rest] * (rest > 0)
