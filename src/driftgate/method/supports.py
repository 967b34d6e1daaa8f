"""Supports: the tokens over which a local objective is computed, one set per position (arXiv 2604.13016).

Shapes: N valid response tokens, Ks and Kt most probable tokens of student and teacher, K tokens of a support. A support
is int64 or int32 [N, K]; a slot without a token holds -1. Each side's tokens are distinct inside a position.
"""

import torch
from torch import Tensor


def union(student_ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """The teacher's tokens, then the student's; -1 in place of a student's token that the teacher has too.

    student_ids: int [N, Ks]; teacher_ids: int [N, Kt]. Returns int [N, Kt + Ks]. Raises ValueError naming the argument.
    """
    _check(student_ids, teacher_ids)
    return torch.cat([teacher_ids, student_ids.masked_fill(_held(student_ids, teacher_ids), -1)], dim=1)


def intersection(student_ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """The teacher's tokens; -1 in place of one that the student does not have.

    student_ids: int [N, Ks]; teacher_ids: int [N, Kt]. Returns int [N, Kt]. Raises ValueError naming the argument.
    """
    _check(student_ids, teacher_ids)
    return teacher_ids.masked_fill(~_held(teacher_ids, student_ids), -1)


def overlap_ratio(student_ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """The share of the teacher's Kt tokens that are also the student's, in [0, 1].

    student_ids: int [N, Ks]; teacher_ids: int [N, Kt]. Returns float32 [N]. Raises ValueError naming the argument.
    """
    return (intersection(student_ids, teacher_ids) >= 0).float().mean(1)


def _held(ids: Tensor, others: Tensor) -> Tensor:
    """bool [N, K]: whether a position's `others` hold the id. One column at a time, because [N, K, K'] is large."""
    held = torch.zeros_like(ids, dtype=torch.bool)
    for column in others.split(1, dim=1):
        held |= ids == column
    return held


def _check(student_ids: Tensor, teacher_ids: Tensor) -> None:
    for name, ids in (("student_ids", student_ids), ("teacher_ids", teacher_ids)):
        if ids.dtype not in (torch.int32, torch.int64) or ids.dim() != 2 or ids.shape[1] < 1:
            raise ValueError(f"{name} must be int64 or int32 [N, K], K at least 1, not {ids.dtype} {list(ids.shape)}")
    if len(student_ids) != len(teacher_ids):
        raise ValueError(
            f"teacher_ids has {len(teacher_ids)} positions but student_ids has {len(student_ids)}; "
            f"give both for the same tokens"
        )
