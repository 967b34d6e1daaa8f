"""Benchmarks by name or file: problems with answers, in a fixed order."""

import difflib
from pathlib import Path

from ..errors import InputError
from ..sandbox import tasks
from .prompts import Problem, jsonl_rows, parse_problems

EMBEDDED_SIZE = 200
"""Problems of each embedded benchmark."""


def load_benchmark(name: str, limit: int | None = None) -> list[Problem]:
    """The embedded `lock16` ... `lock25`, or a JSONL file with `problem` and `answer` on each line.

    limit: only the first so many problems. Raises InputError for an unknown name or a problem without answer.
    """
    if name in tasks.BENCHMARKS:
        count = EMBEDDED_SIZE if limit is None else min(limit, EMBEDDED_SIZE)
        return [Problem(p.id, p.problem, p.answer, p.solution) for p in tasks.benchmark(name, count)]
    if Path(name).suffix not in (".jsonl", ".json"):
        near = difflib.get_close_matches(name, tasks.BENCHMARKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"--benchmark {name}: {hint}the embedded ones are {', '.join(tasks.BENCHMARKS)}; or give a .jsonl"
        )
    problems = parse_problems(jsonl_rows(Path(name).expanduser(), "--benchmark"))
    without = next((p.id for p in problems if p.answer is None), None)
    if without is not None:
        raise InputError(f"--benchmark {name}: problem {without!r} has no `answer`, so it cannot be graded")
    return problems[:limit]
