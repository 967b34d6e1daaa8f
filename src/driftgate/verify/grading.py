r"""Right or wrong: the last \boxed{} of an answer against the reference, as an integer or as mathematics.

Only a box counts: a text without one is wrong, whatever else it says. Nothing an answer holds may stop the
run, so math-verify works in a process of its own, with limits on memory and time, which is this same file
run as a script. Answers are judged one at a time; use one grader from one thread.
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

LONGEST_ANSWER = 2_000
"""Characters in a box beyond which it is wrong unread. References have tens, floods of digits millions."""

START_LIMIT_S = 300.0
"""Seconds a worker may take to import sympy, on a cold and slow disk."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not a group
_INTEGER = re.compile(r"([+-]?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)")
_COMMA = re.compile(r"\{,\}|,\\!\s*")  # a thousands comma as LaTeX sets it without a gap
_STOP = re.compile(r"(?<!\\right)(?<!\.)\.$")  # neither an invisible delimiter nor an ellipsis
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


class Grader(Protocol):
    """What an evaluation needs: judge texts against references, inside a `with` block."""

    def grade(self, text: str, gold: str) -> bool: ...
    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} or \fbox{...}; None if there is none or its braces never close.

    Of nested boxes the innermost counts. Time linear in the text.
    """
    for box in deque(_BOX.finditer(text), maxlen=1):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[box.end() : brace.start()]
    return None


def canonical_integer(content: str) -> str | None:
    """The sign and digits of an integer written in ASCII, or None: "007", "$7$" and "+7" all give "7".

    Thousands may be set off by commas, also in LaTeX's spellings `{,}` and `,` before a thin negative space.
    Stays text, since int() refuses beyond 4300 digits; time linear in the content.
    """
    match = _INTEGER.fullmatch(_COMMA.sub(",", _bare(content)))
    if match is None:
        return None
    digits = match[2].replace(",", "").lstrip("0")
    return ("-" if match[1] == "-" else "") + digits if digits else "0"


def answer_of(text: str) -> str | None:
    r"""What a text answers, for comparing answers with each other: the content of its last box, an integer as its
    digits, else without surrounding space, math delimiters and full stops, cut at LONGEST_ANSWER characters.

    None without a box, or with an empty one.
    """
    content = last_boxed(text)
    if content is None:
        return None
    return canonical_integer(content[:LONGEST_ANSWER]) or _bare(content)[:LONGEST_ANSWER] or None


def grade_integer(text: str, gold: str) -> bool:
    """Whether the last box of the text holds the integer `gold`. Never raises for what the text holds.

    Raises InputError if gold is no integer.
    """
    wanted = canonical_integer(gold)
    if wanted is None:
        raise _input_error(f"the reference answer {gold[:80]!r} is no integer: grade it with MathGrader")
    content = last_boxed(text)
    return content is not None and canonical_integer(content) == wanted


class IntegerGrader:
    """`grade_integer` in the shape of a Grader; holds nothing."""

    def grade(self, text: str, gold: str) -> bool:
        """See `grade_integer`."""
        return grade_integer(text, gold)

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """One verdict for each (text, gold), in order."""
        return [grade_integer(text, gold) for text, gold in pairs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class MathGrader:
    """Judges with math-verify in one worker process, which is killed and replaced when it overruns or dies.

    An answer that overruns `limit_s` seconds, or kills the worker, is wrong. Starting the worker (about a
    second) is outside that limit. `memory_bytes` bounds the worker's address space, where the system can.

    Counters: `judged` answers sent to the worker, of which `overruns` hit the time limit and `deaths` ended
    the worker otherwise (memory, mostly); `respawns` workers started after the first.
    Raises InputError for limits that are not positive, RunError if a worker cannot start.
    """

    def __init__(self, limit_s: float = 5.0, memory_bytes: int = 2 * 2**30) -> None:
        if limit_s <= 0 or memory_bytes <= 0:
            raise _input_error(f"limit_s={limit_s}, memory_bytes={memory_bytes}: give limits above 0")
        self.limit_s = limit_s
        self.memory_bytes = memory_bytes
        self.judged = self.overruns = self.deaths = self.respawns = 0
        self._worker: subprocess.Popen[str] | None = None
        self._started_before = False

    def __enter__(self) -> Self:
        self._living_worker()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; it has nothing to lose. A later `grade` would start another."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request it never read may still be buffered
                if pipe is not None:
                    pipe.close()

    def grade(self, text: str, gold: str) -> bool:
        """Whether the last box of the text equals `gold`, given without a box. Never raises for the text."""
        return self._judge(last_boxed(text), gold)

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """One verdict for each (text, gold), in order; equal boxes with equal references are judged once."""
        known: dict[tuple[str | None, str], bool] = {}
        verdicts = []
        for text, gold in pairs:
            key = (last_boxed(text), gold)
            if key not in known:
                known[key] = self._judge(*key)
            verdicts.append(known[key])
        return verdicts

    def _judge(self, content: str | None, gold: str) -> bool:
        """The verdict on the content of a box: equal text is right at once, the rest goes to the worker."""
        if content is None or len(content) > LONGEST_ANSWER:
            return False
        content, wanted = _bare(content), _bare(gold)
        if not content:
            return False
        return content == wanted or self._ask(content, wanted)

    def _ask(self, content: str, gold: str) -> bool:
        """The worker's verdict, or False where it gave none."""
        worker = self._living_worker()
        self.judged += 1
        reply, overran = self._exchange(worker, json.dumps([content, gold]), self.limit_s)
        if overran:
            self.overruns += 1
        elif reply is None:
            self.deaths += 1
        return reply is True

    def _living_worker(self) -> subprocess.Popen[str]:
        """The worker, started if there is none or it has died since; RunError if that fails."""
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self.close()
        self.respawns += self._started_before
        self._started_before = True
        self._worker = _start_worker(self.limit_s, self.memory_bytes)
        # a trial through the whole of math-verify, so that late imports too are outside the time limit
        if self._exchange(self._worker, json.dumps([r"\frac{2}{4}", "0.5"]), START_LIMIT_S)[0] is not True:
            raise _run_error(
                f"the worker of math-verify gave no right answer to a trial, with memory_bytes="
                f"{self.memory_bytes}; its own message, if any, is above. Install math-verify for "
                f"{sys.executable}, or raise memory_bytes"
            )
        return self._worker

    def _exchange(self, worker: subprocess.Popen[str], request: str, limit_s: float) -> tuple[bool | None, bool]:
        """Send one request: (verdict or None, whether it overran). Without a verdict the worker is ended."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        verdict = None
        overran = threading.Event()
        timer = threading.Timer(limit_s, lambda: (overran.set(), worker.kill()))
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a dead worker: the empty reply says so
                worker.stdin.write(request + "\n")
                worker.stdin.flush()
            verdict = {"1\n": True, "0\n": False}.get(worker.stdout.readline())
        finally:
            timer.cancel()
            timer.join()  # from here on it either has fired or never will
            # also on Ctrl-C, or the next request would read this one's late reply
            if verdict is None or overran.is_set():
                self.close()
        return verdict, overran.is_set() and verdict is None


def grader_for(answers: Sequence[str]) -> Grader:
    """An IntegerGrader if every reference answer is an integer, else a MathGrader; use it in a `with` block.

    Raises InputError for no answers.
    """
    if not answers:
        raise _input_error("no reference answers to choose a grader by: the benchmark is empty")
    if all(canonical_integer(answer) is not None for answer in answers):
        return IntegerGrader()
    return MathGrader()


def _bare(content: str) -> str:
    """The content without surrounding space, one pair of math delimiters, and final full stops."""
    content = _STOP.sub("", content.strip())
    for opening, closing in _DELIMITERS:
        inside = content.removeprefix(opening).removesuffix(closing)
        if len(inside) == len(content) - len(opening) - len(closing) and closing not in inside:
            return _STOP.sub("", inside.strip())
    return content


def _input_error(message: str) -> Exception:
    """An InputError. Imported late: the worker runs this file alone and must not load the package."""
    from driftgate.errors import InputError

    return InputError(message)


def _run_error(message: str) -> Exception:
    """A RunError, imported late for the same reason."""
    from driftgate.errors import RunError

    return RunError(message)


def _start_worker(limit_s: float, memory_bytes: int) -> subprocess.Popen[str]:
    """Start this file as a script; -P keeps this folder's names from hiding library modules."""
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), str(limit_s), str(memory_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="ascii",
    )


def _serve(limit_s: float, memory_bytes: int) -> None:
    """Worker: answer each line [content, gold] on stdin with 1 or 0 on stdout, until stdin ends."""
    from math_verify import parse, verify

    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the worker
    _limit_memory(memory_bytes)
    for number, line in enumerate(sys.stdin):
        if hasattr(signal, "setitimer"):  # should the parent be gone: ended by the kernel, trial apart
            signal.setitimer(signal.ITIMER_REAL, limit_s + (1 if number else START_LIMIT_S))
        # math-verify's own alarms are off: one time limit, the parent's, which no C code can sit out
        answer, gold = (parse(rf"\boxed{{{part}}}", parsing_timeout=0) for part in json.loads(line))
        verdict = verify(gold, answer, timeout_seconds=0)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(int(verdict), file=replies, flush=True)


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
    _serve(float(sys.argv[1]), int(sys.argv[2]))
