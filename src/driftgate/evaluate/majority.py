"""maj@k: how often the commonest answer of k samples is right, averaged over which k of the n samples are drawn."""

import functools
from math import comb

import numpy as np


@functools.cache  # problems share few such counts
def majority_at(right: int, wrong: tuple[int, ...], silent: int) -> tuple[float, ...]:
    """Chance, for k = 1 ... n, that k of the n samples drawn without replacement elect the right answer.

    right: samples with the right answer. wrong: samples with each wrong answer, in any fixed order. silent: samples
    without an answer, which vote for none. Wang et al. (2022, arXiv 2203.11171) take the commonest answer; a tie is
    drawn by lot here, so that the value depends on no order of samples. Without a vote nothing is won. Counted in
    whole numbers over all subsets, one number of votes for the right answer after the other; rounded at the end.
    """
    n = right + sum(wrong) + silent
    won = [[0] * (n + 1) for _ in range(len(wrong) + 1)]  # [tied][k]: subsets that it wins beside `tied` others
    for votes in range(1, right + 1):
        for tied, row in enumerate(_ways_of_others(wrong, silent, votes)):
            for size, ways in enumerate(row):
                won[tied][votes + size] += comb(right, votes) * ways
    return tuple(sum(row[k] / ((1 + tied) * comb(n, k)) for tied, row in enumerate(won)) for k in range(1, n + 1))


def _ways_of_others(wrong: tuple[int, ...], silent: int, votes: int) -> np.ndarray:
    """[tied, size]: ways to draw `size` of the other samples with no wrong answer above `votes` votes, `tied` at it."""
    width = sum(wrong) + silent + 1
    ways = np.array([[comb(silent, size) for size in range(width)]], dtype=object)  # Python's unbounded integers
    for count in wrong:
        grown = np.zeros((len(ways) + (count >= votes), width), dtype=object)
        for drawn in range(min(count, votes) + 1):
            first = int(drawn == votes)
            grown[first : first + len(ways), drawn:] += comb(count, drawn) * ways[:, : width - drawn]
        ways = grown
    return ways
