"""Everything that is reported of graded samples: pass@k for every k, avg@n, maj@k, each with its interval."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .majority import majority_at
from .passk import estimates, pass_at_k

Outcome = tuple[str | None, bool]
"""A sample's answer (None for none) and whether it is right."""


def measures(rows: Iterable[Mapping[str, Any]], votes: bool = True) -> dict[str, dict[str, dict[str, float]]]:
    """benchmark or "mean" -> measure -> {"mean", "low", "high"}, of rows of samples.jsonl.

    With n samples a problem: pass@1 ... pass@n; avg@n, the share of right samples, which pass@1 is too; maj@k for
    k = 2, 4, 8 ... below n, and n. votes: whether samples have answers to vote by; there is no maj@k without. Raises
    InputError as `passk.summarise` does.
    """
    problems: dict[str, dict[str, list[Outcome]]] = {}
    for row in rows:
        samples = problems.setdefault(row["benchmark"], {}).setdefault(row["problem"], [])
        samples.append((row["answer"], row["correct"]))
    n = max(len(samples) for part in problems.values() for samples in part.values())
    by_measure: dict[str, dict[str, list[float]]] = {}
    for benchmark, part in problems.items():
        for samples in part.values():
            for measure, value in _values(samples, n, votes).items():
                by_measure.setdefault(measure, {}).setdefault(benchmark, []).append(value)
    return estimates(by_measure)


def shown(scores: Mapping[str, Any]) -> list[str]:
    """The measures that a table has room for: pass@1, and pass@k and maj@k of the largest k."""
    kinds = [[name for name in scores if name.startswith(kind)] for kind in ("pass@", "maj@")]
    last = [max(names, key=lambda name: int(name.partition("@")[2])) for names in kinds if names]
    return list(dict.fromkeys(["pass@1", *last]))


def majority_sizes(n: int) -> list[int]:
    """2, 4, 8 ... below n, and n."""
    return [k for k in (2**power for power in range(1, n)) if k < n] + [n] if n > 1 else [1]


def _values(samples: Sequence[Outcome], n: int, votes: bool) -> dict[str, float]:
    """Measures of one problem. Right samples count as one answer, however they are spelled."""
    right = sum(correct for _, correct in samples)
    found = {f"pass@{k}": pass_at_k(right, len(samples), k) for k in range(1, n + 1)}
    found |= {f"avg@{n}": right / len(samples)}
    if not votes:
        return found
    wrong = Counter(answer for answer, correct in samples if not correct and answer is not None)
    silent = sum(answer is None and not correct for answer, correct in samples)
    majority = majority_at(right, tuple(sorted(wrong.values())), silent)
    return found | {f"maj@{k}": majority[k - 1] for k in majority_sizes(n)}
