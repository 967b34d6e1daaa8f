"""Random numbers by key: every draw is a function of its key only.

So a resumed run, another batch split or another order of requests draws the same numbers.
"""

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """The random generator of a key such as (run seed, "rollout", step, prompt id, sample index)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
