"""The permutation test over training seeds: arm and base change places within a seed."""

import itertools
from functools import cache

import numpy as np

from ..keyed import generator

_EXACT_UP_TO = 12
_DRAWS = 10_000


def sign_flip_p(per_seed: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """(p, least attainable p) of the difference's mean over seeds, from float64 [seeds] differences.

    Hypothesis: in every seed, arm and base could as well have been named the other way round, on these problems.
    That is narrower than "no difference on average over problems of this kind": where an arm wins some kinds of
    problem and loses others, these problems can favour it, and this test alone then says nothing of other problems.
    With S seeds there are 2^S outcomes, so p is never below 2 / 2^S: 0.25 with 3 seeds, 0.0625 with 5.
    Up to 12 seeds every outcome is counted; beyond, 10,000 random ones and the observed.
    """
    signs = _signs(len(per_seed), seed)
    sums = np.abs(signs @ per_seed)
    least = (2 if len(per_seed) <= _EXACT_UP_TO else 1) / len(signs)
    return float(np.mean(sums >= sums[0] * (1 - 1e-12))), least


@cache
def _signs(seeds: int, seed: int) -> np.ndarray:
    """float64 [outcomes, seeds] of 1 and -1; the first row is what was observed."""
    if seeds <= _EXACT_UP_TO:
        return np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
    drawn = generator(seed, "compare", "sign flips").choice((1.0, -1.0), size=(_DRAWS, seeds))
    return np.concatenate([np.ones((1, seeds)), drawn])
