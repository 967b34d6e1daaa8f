"""A judge in a process of its own: a script that judges requests, one a line, until its input ends.

    python -P worker.py LIMIT_S MEMORY_BYTES [JUDGE [MODULE:FUNCTION]]

JUDGE is math (the default), regex, schema or function. Each line on stdin is a JSON list, the judge's arguments. Each
line on stdout is 1, 0, or ! and the error that the judge raised, as JSON. The script loads nothing else of the package.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

START_LIMIT_S = 300.0
"""Seconds a worker may take to import sympy, on a cold and slow disk."""


def serve(limit_s: float, memory_bytes: int, judge: Callable[..., bool]) -> None:
    """Answer each line on stdin with the judge's verdict on stdout."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the worker
    _limit_memory(memory_bytes)
    for number, line in enumerate(sys.stdin):
        if hasattr(signal, "setitimer"):  # should the parent be gone: ended by the kernel, trial apart
            signal.setitimer(signal.ITIMER_REAL, limit_s + (1 if number else START_LIMIT_S))
        reply = _reply(judge, json.loads(line))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=replies, flush=True)


def _reply(judge: Callable[..., bool], arguments: list[Any]) -> str:
    if judge is equal:
        return str(int(judge(*arguments)))  # math-verify's errors end the worker, which is then replaced
    try:
        return str(int(judge(*arguments)))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        return "!" + json.dumps(f"{type(error).__name__}: {error}"[:1_000])


def equal(answer: str, reference: str) -> bool:
    """Whether math-verify reads the same mathematics in both, LaTeX without a box. Decimals count exactly: 0.3333333 is
    not 1/3."""
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


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is found anywhere in the text."""
    return re.search(pattern, text) is not None


def valid(text: str, schema: str, wanted: str | None) -> bool:
    """Whether the last JSON value of the text is valid and, if `wanted` is given, equal to that JSON. No reference of a
    schema to another file or address is followed."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    rules = json.loads(schema)
    try:
        value = last_json(text)
    except ValueError:
        return False
    checked = validator_for(rules, default=Draft202012Validator)(rules, registry=Registry()).is_valid(value)
    # JSON's equality, not Python's: 1 is 1.0, but true is not 1
    return checked and (wanted is None or Draft202012Validator({"const": json.loads(wanted)}).is_valid(value))


def last_json(text: str) -> Any:
    """The last fenced block of the text as JSON; without one the whole text or, if that is no JSON, the last object or
    list in it. Raises ValueError where there is none."""
    blocks = re.findall(r"^[ \t]*```[^`\n]*\n(.*?)^[ \t]*```[ \t]*$", text, re.DOTALL | re.MULTILINE)
    decoder = json.JSONDecoder(parse_constant=_refuse)
    with contextlib.suppress(ValueError, RecursionError):
        return decoder.decode((blocks[-1] if blocks else text).strip())
    values, place = [], 0
    while not blocks and (begin := re.compile(r"[\[{]").search(text, place)) is not None:
        place = begin.end()
        with contextlib.suppress(ValueError, RecursionError):
            value, place = decoder.raw_decode(text, begin.start())
            values = [value]
    if not values:
        raise ValueError("no JSON")
    return values[0]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def of_user(path: str) -> Callable[..., bool]:
    """The user's function, imported by the first request. A request without arguments calls nothing."""

    def judge(*arguments: str) -> bool:
        module, _, name = path.partition(":")
        function = getattr(importlib.import_module(module), name)
        verdict = function(*arguments) if arguments else True
        if not isinstance(verdict, bool):
            raise TypeError(f"{path} returned {verdict!r:.100}, not True or False")
        return verdict

    sys.path.insert(0, os.getcwd())
    return judge


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
    kind = sys.argv[3] if len(sys.argv) > 3 else "math"
    judges = {"math": equal, "regex": found, "schema": valid}
    serve(float(sys.argv[1]), int(sys.argv[2]), of_user(sys.argv[4]) if kind == "function" else judges[kind])
