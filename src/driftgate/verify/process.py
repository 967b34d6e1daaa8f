"""The worker process as its parent sees it: started on first need, limited in time and memory, replaced if it dies."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, RunError
from .worker import START_LIMIT_S

SCRIPT = Path(__file__).with_name("worker.py")


class JudgeProcess:
    """A judge in one worker process, which is killed when it overruns, and replaced when it is gone.

    judge: its words on the worker's command line. trial: a request that a worker must answer with 1 before it is used.
    Starting the worker (for math-verify about a second) is outside the time limit of a request. `memory_bytes` bounds
    the worker's address space, where the system can.

    Counters: `asked` requests, of which `overruns` hit the time limit, `deaths` ended the worker otherwise (memory,
    mostly) and `errors` raised in it; `respawns` workers started after the first. Use it from one thread.
    Raises InputError for limits that are not positive.
    """

    def __init__(self, judge: Sequence[str], trial: Sequence[str | None], limit_s: float, memory_bytes: int) -> None:
        if limit_s <= 0 or memory_bytes <= 0:
            raise InputError(f"limit_s={limit_s}, memory_bytes={memory_bytes}: give limits above 0")
        self.judge, self.trial = judge, trial
        self.limit_s = limit_s
        self.memory_bytes = memory_bytes
        self.asked = self.overruns = self.deaths = self.errors = self.respawns = 0
        self.error = ""
        """What the judge last raised."""
        self.popen: subprocess.Popen[str] | None = None
        self._started_before = False

    def ask(self, *request: str | None) -> bool:
        """The worker's verdict, or False where it gave none. Raises RunError if a worker cannot start."""
        worker = self.living()
        self.asked += 1
        reply, overran = self._exchange(worker, json.dumps(request), self.limit_s)
        if overran:
            self.overruns += 1
        elif reply is None:
            self.deaths += 1
        elif reply.startswith("!"):
            self._note(json.loads(reply[1:]))
        return reply == "1"

    def _note(self, error: str) -> None:
        """Count an error of the judge; the first is shown."""
        self.errors += 1
        self.error = error
        if self.errors == 1:
            print(f"driftgate: verify {' '.join(self.judge)}: {error}; such answers are wrong", file=sys.stderr)

    def living(self) -> subprocess.Popen[str]:
        """The worker, started if there is none or it has died since; RunError if that fails."""
        if self.popen is not None and self.popen.poll() is None:
            return self.popen
        self.close()
        self.respawns += self._started_before
        self._started_before = True
        self.popen = subprocess.Popen(
            # -P keeps this folder's names from hiding library modules
            [sys.executable, "-P", str(SCRIPT), str(self.limit_s), str(self.memory_bytes), *self.judge],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
        )
        # a trial through the whole of the judge, so that late imports too are outside the time limit
        reply = self._exchange(self.popen, json.dumps(self.trial), START_LIMIT_S)[0]
        if reply != "1":
            raised = json.loads(reply[1:]) if reply and reply.startswith("!") else "its own message, if any, is above"
            raise RunError(self._no_start(raised))
        return self.popen

    def _no_start(self, why: str) -> str:
        return (
            f"the worker of verify.kind = {self.judge[0]} gave no right answer to a trial, with memory_bytes="
            f"{self.memory_bytes}: {why}. Mend that, or raise the memory"
        )

    def close(self) -> None:
        """End the worker; it has nothing to lose. A later `ask` would start another."""
        worker, self.popen = self.popen, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request it never read may still be buffered
                if pipe is not None:
                    pipe.close()

    def _exchange(self, worker: subprocess.Popen[str], request: str, limit_s: float) -> tuple[str | None, bool]:
        """Send one request: (reply or None, whether it overran). Without a reply the worker is ended."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        reply = None
        overran = threading.Event()
        timer = threading.Timer(limit_s, lambda: (overran.set(), worker.kill()))
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a dead worker: the empty reply says so
                worker.stdin.write(request + "\n")
                worker.stdin.flush()
            line = worker.stdout.readline()
            if line in ("1\n", "0\n") or (line.startswith("!") and line.endswith("\n")):
                reply = line[:-1]
        finally:
            timer.cancel()
            timer.join()  # from here on it either has fired or never will
            # also on Ctrl-C, or the next request would read this one's late reply
            if reply is None or overran.is_set():
                self.close()
        return reply, overran.is_set() and reply is None


class MathProcess(JudgeProcess):
    """math-verify, for pairs of answer and reference in LaTeX."""

    def __init__(self, limit_s: float, memory_bytes: int) -> None:
        super().__init__(["math"], [r"\frac{2}{4}", "0.5"], limit_s, memory_bytes)

    def equal(self, answer: str, gold: str) -> bool:
        """See `ask`."""
        return self.ask(answer, gold)

    def _no_start(self, why: str) -> str:
        return (
            f"the worker of math-verify gave no right answer to a trial, with memory_bytes={self.memory_bytes}; {why}. "
            f"Install math-verify for {sys.executable}, or raise memory_bytes"
        )
