"""Which source of a mixture each prompt of a run is from.

A source of weight w has its n-th prompt, counted from 0, at the time (2n + 1) / 2w. The prompts of all sources in order
of these times are the run's; of equal times the source with the first name comes first. This is the method of
Sainte-Laguë (1910) that parliaments share seats by: in every stretch of the run the sources have the shares of their
weights, to within rounding. Nothing is drawn, so no state has to be kept.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import count, islice


def places_of(weights: Mapping[str, float], start: int, stop: int) -> list[tuple[str, int]]:
    """(source, number among its own prompts) of the prompts `start` to `stop` of a run, all counted from 0. weights: by
    source, positive. Depends on the weights alone, and takes the same time for every start."""
    exact = {name: Fraction(repr(float(weights[name]))) for name in sorted(weights)}
    # before this time each source has half a prompt more than its share at most, so all together not more than `start`
    begin = Fraction(start - len(exact), 1) / sum(exact.values())
    first = {name: max(0, math.ceil(begin * weight - Fraction(1, 2))) for name, weight in exact.items()}
    skipped = sum(first.values())
    merged = heapq.merge(*(_times(name, exact[name], first[name]) for name in exact))
    return [(name, number) for _, name, number in islice(merged, start - skipped, stop - skipped)]


def _times(name: str, weight: Fraction, first: int) -> Iterator[tuple[Fraction, str, int]]:
    return ((Fraction(2 * number + 1, 2) / weight, name, number) for number in count(first))
