"""Argument checks of the public functions. Every error names the argument.

Shapes: N valid response tokens.
"""

import math

import torch
from torch import Tensor


def same_length(**streams: Tensor) -> None:
    """Require 1-D tensors [N] of one length. Raises ValueError naming the first argument that differs."""
    first, *_ = streams
    for name, stream in streams.items():
        if stream.dim() != 1:
            raise ValueError(f"{name} must be 1-D, one value per valid token; its shape is {list(stream.shape)}")
        if stream.shape != streams[first].shape:
            raise ValueError(f"{name} has {len(stream)} tokens but {first} has {len(streams[first])}")


def integer_ids(name: str, ids: Tensor) -> None:
    """Require int64 ids from 0. Raises ValueError naming the argument."""
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, not {ids.dtype}")
    if len(ids) and ids.min() < 0:
        raise ValueError(f"{name} must not be negative; its smallest value is {int(ids.min())}")


def rows_stream(rows: Tensor) -> None:
    """Require int64 [N], not negative, non-decreasing. Raises ValueError."""
    same_length(rows=rows)
    integer_ids("rows", rows)
    if (rows[1:] < rows[:-1]).any():
        raise ValueError("rows must not decrease: keep the tokens of a sequence together and the sequences in order")


def positive(name: str, value: float) -> None:
    """Require a finite number above 0. Raises ValueError naming the argument."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, not {value}")


def not_negative(name: str, value: float) -> None:
    """Require a finite number of at least 0. Raises ValueError naming the argument."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}")


def at_least(name: str, value: int, least: int) -> None:
    """Require an integer of at least `least`. Raises ValueError naming the argument."""
    if value != int(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value}")
