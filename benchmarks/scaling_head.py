"""CPU-seconds and memory of the head along tokens, vocabulary and support, and of the gate's arithmetic by itself."""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import measure
from growth import growth_of
from scaling_sizes import HeadSize, Sizes
from scaling_ways import GATED, INPUTS_ALONE, MEASURED, gates, inputs, learn, learn_once

LEAST_MB = 1.0
"""Memory below this cannot be told from the allocator's noise, and counts as this much."""
CALLS = 20
"""Calls of the gate's arithmetic timed as one. A single one takes less than a millisecond."""
GATE = "gate's arithmetic"


def along(name: str, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """CPU-seconds, and memory above the inputs, of the head's ways along one size ("tokens", ...)."""
    points = {value: sizes.base._replace(**{name: value}) for value in getattr(sizes, name)}
    found: dict[str, Any] = {"base": sizes.base._asdict() | {"hidden": sizes.hidden}}
    seconds = timed(MEASURED[name], points, sizes, repeats)
    found["cpu_s"] = {way: growth_of(rounds) for way, rounds in seconds.items()}
    if name in sizes.memory:
        ways = [way for way in MEASURED[name] if way.endswith(sizes.memory_ways)]
        found["memory_mb"] = {way: memory_growth(way, points, sizes) for way in ways}
    return found


def timed(
    names: Sequence[str], points: Mapping[int, HeadSize], sizes: Sizes, repeats: int
) -> dict[str, dict[int, list[float]]]:
    """CPU-seconds of each round, by way and value of the size."""
    found: dict[str, dict[int, list[float]]] = {name: {} for name in names}
    for value, size in points.items():
        given = inputs(size, sizes.hidden, sizes.response)
        ways = {name: functools.partial(learn, name, given) for name in names if fits(name, size, sizes)}
        for name, seconds in measure.rounds(ways, repeats).items():
            found[name][value] = seconds
    return found


def fits(name: str, size: HeadSize, sizes: Sizes) -> bool:
    return "full" not in name or size.tokens <= sizes.tokens_full


def memory_growth(name: str, points: Mapping[int, HeadSize], sizes: Sizes) -> dict[str, Any]:
    """Megabytes above the inputs and their gradients, one process each."""
    chosen = {value: size for value, size in points.items() if fits(name, size, sizes)}
    with ThreadPoolExecutor(sizes.at_once) as pool:
        figures = pool.map(lambda size: [above_inputs(name, size, sizes)], chosen.values())
    return growth_of(dict(zip(chosen, figures)))


def above_inputs(name: str, size: HeadSize, sizes: Sizes) -> float:
    """The most memory of a way beyond that of a process that makes inputs and gradients alone."""
    return max(peak(name, size, sizes) - peak(INPUTS_ALONE, size, sizes), LEAST_MB)


@functools.cache
def peak(name: str, size: HeadSize, sizes: Sizes) -> float:
    # freed memory goes back to the system at once: the peak is what is held, however the heap is divided
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")
    return measure.peak_mb(learn_once, name, size, sizes.hidden, sizes.response)


def memory_noise(sizes: Sizes) -> dict[str, list[float]]:
    """The peak of each gated way at the base, in so many processes."""
    return {name: [peak.__wrapped__(name, sizes.base, sizes) for _ in range(sizes.noise)] for name in GATED}


def gate_alone(sizes: Sizes, repeats: int, update: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a call of the gate's arithmetic: along tokens with blocks of 64, and along block sizes with the most
    tokens.

    update: CPU-seconds of the head of an LSM update along the same tokens, of which the gate is a share.
    """
    most = sizes.tokens[-1]
    by_tokens = {count: gate_seconds(count, 64, sizes, repeats) for count in sizes.tokens}
    by_block = {size or sizes.response: gate_seconds(most, size, sizes, repeats) for size in sizes.blocks}
    lines = {"tokens": growth_of(by_tokens), "block": growth_of(by_block)}
    whole = update["median"][update["sizes"].index(most)]
    return {
        "tokens": most,
        "cpu_s": lines,
        "share_of_head": [seconds / whole for seconds in lines["block"]["median"]],
    }


def gate_seconds(tokens: int, block: int | None, sizes: Sizes, repeats: int) -> list[float]:
    """Of each round."""
    given = inputs(HeadSize(tokens, 2, 2), 1, sizes.response)
    logp = given.behaviour + 0.01 * given.hidden.detach()[:, 0]

    def calls() -> None:
        for _ in range(CALLS):
            gates(logp, given, block)

    return [seconds / CALLS for seconds in measure.rounds({GATE: calls}, repeats)[GATE]]
