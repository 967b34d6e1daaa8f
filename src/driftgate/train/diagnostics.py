"""How far student and teacher are apart on the student's own responses, and how repetitive the responses are.

Sources: arXiv 2604.13016, 2604.08527.

Shapes: N valid response tokens, K most probable tokens of each side.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..method.head import Summary
from ..method.scores import TokenScores
from ..method.supports import overlap_ratio


def distribution_sums(student: Summary, teacher: TokenScores | None, k: int) -> dict[str, Tensor]:
    """Sums over tokens of the student's entropy, the entropy gap, the overlap ratio and the overlap advantage.

    student: the current student's entropy and K most probable tokens. teacher: the same of the teacher; None where
    there is none, and the student's entropy is all there is.

    - entropy: H^S, in nats.
    - entropy_gap: |H^S - H^T|, in nats.
    - overlap: share of the teacher's K tokens that are among the student's K.
    - overlap_advantage: mean of log q - log p over the tokens in both sets, weighted by the student's probabilities;
      0 if no token is in both.
    """
    assert student.entropy is not None
    if teacher is None:
        return {"entropy": student.entropy.sum()}
    assert student.top_ids is not None
    assert student.top_logp is not None
    assert teacher.entropy is not None
    assert teacher.top_ids is not None
    assert teacher.top_logp is not None
    teacher_ids, teacher_logp = teacher.top_ids[:, :k].long(), teacher.top_logp[:, :k]
    gap = (student.entropy - teacher.entropy).abs()
    same = student.top_ids[:, :, None] == teacher_ids[:, None]
    shared = same.any(2)
    log_q = torch.where(same, teacher_logp[:, None], 0.0).sum(2)
    mass = student.top_logp.exp() * shared
    advantage = (mass * (log_q - student.top_logp)).sum(1) / mass.sum(1).clamp(min=torch.finfo(mass.dtype).tiny)
    return {
        "entropy": student.entropy.sum(),
        "entropy_gap": gap.sum(),
        "overlap": overlap_ratio(student.top_ids, teacher_ids).sum(),
        "overlap_advantage": advantage.sum(),
    }


def repetition(texts: Sequence[str]) -> float:
    """Share of bytes that zlib compression saves, as a mean over texts: 0 if nothing repeats, near 1 if nearly
    everything does. 0 for no texts."""
    shares = []
    for text in texts:
        raw = text.encode()
        shares.append(max(0.0, 1 - len(zlib.compress(raw, 9)) / len(raw)) if raw else 0.0)
    return sum(shares) / len(shares) if shares else 0.0
