"""math-verify in a process of its own: a script that compares answers, one a line, until its input ends.

    python -P worker.py LIMIT_S MEMORY_BYTES

Each line on stdin is a JSON list [answer, reference], both LaTeX without a box. Each line on stdout is 1 or 0.
Numbers with decimals count exactly: 0.3333333 is not 1/3. The script loads nothing else of the package.
"""

import contextlib
import json
import logging
import os
import signal
import sys

START_LIMIT_S = 300.0
"""Seconds a worker may take to import sympy, on a cold and slow disk."""


def serve(limit_s: float, memory_bytes: int) -> None:
    """Answer each line on stdin with 1 or 0 on stdout."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the worker
    _limit_memory(memory_bytes)
    for number, line in enumerate(sys.stdin):
        if hasattr(signal, "setitimer"):  # should the parent be gone: ended by the kernel, trial apart
            signal.setitimer(signal.ITIMER_REAL, limit_s + (1 if number else START_LIMIT_S))
        verdict = equal(*json.loads(line))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(int(verdict), file=replies, flush=True)


def equal(answer: str, reference: str) -> bool:
    """Whether math-verify reads the same mathematics in both."""
    from math_verify import parse, verify

    # math-verify's own alarms are off: one time limit, the parent's, which no C code can sit out
    given, wanted = (parse(rf"\boxed{{{part}}}", parsing_timeout=0) for part in (answer, reference))
    return verify([_exact(part) for part in wanted], [_exact(part) for part in given], timeout_seconds=0)


def _exact(expression):
    """The expression with its decimals as fractions, since math-verify compares decimals to six places only."""
    from sympy import Basic, Float, MatrixBase, Rational

    if not isinstance(expression, Basic | MatrixBase):
        return expression  # what could not be read stays text
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _limit_memory(memory_bytes: int) -> None:
    """Bound this process's address space and forbid core files, where the system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit stands alone
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses to set an address-space limit; a lower hard limit set from outside stands as it is
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
