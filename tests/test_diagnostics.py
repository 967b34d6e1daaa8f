"""Diagnostics against their twins."""

import math
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weighing_case import QUICK, SEEDS

from driftgate.method.head import Summary
from driftgate.method.scores import TokenScores
from driftgate.train.diagnostics import distribution_sums, repetition


def slow_distribution(student, teacher, k):
    """Sums over positions of two rows of log-probabilities of the whole vocabulary."""
    found = dict.fromkeys(("entropy", "entropy_gap", "overlap", "overlap_advantage"), 0.0)
    for p, q in zip(student.tolist(), teacher.tolist()):
        ours, theirs = (-math.fsum(math.exp(x) * x for x in side) for side in (p, q))
        tops = [sorted(range(len(p)), key=lambda v, side=side: -side[v])[:k] for side in (p, q)]
        both = [v for v in tops[0] if v in tops[1]]
        mass = math.fsum(math.exp(p[v]) for v in both)
        found["entropy"] += ours
        found["entropy_gap"] += abs(ours - theirs)
        found["overlap"] += len(both) / k
        found["overlap_advantage"] += math.fsum(math.exp(p[v]) / mass * (q[v] - p[v]) for v in both) if both else 0.0
    return found


@QUICK
@given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 2), SEEDS)
def test_distribution_sums_equal_their_twin(count, k, more, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (torch.randn(count, 12, generator=generator, dtype=torch.float64) * 2).log_softmax(1) for _ in range(2)
    )
    ours, theirs = student.topk(k), teacher.topk(k + more)
    scores = TokenScores(
        top_ids=theirs.indices.int(), top_logp=theirs.values, entropy=-(teacher.exp() * teacher).sum(1)
    )
    summary = Summary(student[:, :1], -(student.exp() * student).sum(1), ours.indices, ours.values)
    found = distribution_sums(summary, scores, k)
    expected = slow_distribution(student, teacher, k)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_without_overlap_there_is_no_advantage_and_an_impossible_token_gives_no_nan():
    scores = TokenScores(
        top_ids=torch.tensor([[2, 3], [0, 5]]),
        top_logp=torch.tensor([[-0.1, -1e4], [-1e4, -1e4]]),
        entropy=torch.zeros(2),
    )
    top = torch.tensor([[0, 1], [0, 5]])
    summary = Summary(torch.zeros(2, 1), torch.zeros(2), top, torch.tensor([[-0.5, -1.0], [-1e4, -1e4]]))
    found = distribution_sums(summary, scores, 2)
    assert found["overlap_advantage"] == 0
    assert found["overlap"] == 1


def test_repetition_is_what_zlib_saves():
    assert repetition([]) == 0
    assert repetition([""]) == 0
    assert repetition(["a"]) == 0
    assert repetition(["the quick brown fox"]) == 0
    loop = "and again " * 200
    assert repetition([loop]) > 0.95
    assert repetition([loop]) == 1 - len(zlib.compress(loop.encode(), 9)) / 2000
    assert repetition([loop, "", "a"]) == pytest.approx(repetition([loop]) / 3)
    assert repetition(["é" * 50]) == 1 - len(zlib.compress(("é" * 50).encode(), 9)) / 100
