"""The worker process as its parent sees it: started on first need, limited in time and memory, replaced if it dies."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

from ..errors import InputError, RunError
from .worker import START_LIMIT_S

SCRIPT = Path(__file__).with_name("worker.py")


class MathProcess:
    """math-verify in one worker process, which is killed when it overruns, and replaced when it is gone.

    Starting the worker (about a second) is outside the time limit of a comparison. `memory_bytes` bounds the
    worker's address space, where the system can.

    Counters: `asked` comparisons, of which `overruns` hit the time limit and `deaths` ended the worker otherwise
    (memory, mostly); `respawns` workers started after the first. Use it from one thread.
    Raises InputError for limits that are not positive.
    """

    def __init__(self, limit_s: float, memory_bytes: int) -> None:
        if limit_s <= 0 or memory_bytes <= 0:
            raise InputError(f"limit_s={limit_s}, memory_bytes={memory_bytes}: give limits above 0")
        self.limit_s = limit_s
        self.memory_bytes = memory_bytes
        self.asked = self.overruns = self.deaths = self.respawns = 0
        self.popen: subprocess.Popen[str] | None = None
        self._started_before = False

    def equal(self, answer: str, gold: str) -> bool:
        """The worker's verdict, or False where it gave none. Raises RunError if a worker cannot start."""
        worker = self.living()
        self.asked += 1
        reply, overran = self._exchange(worker, json.dumps([answer, gold]), self.limit_s)
        if overran:
            self.overruns += 1
        elif reply is None:
            self.deaths += 1
        return reply is True

    def living(self) -> subprocess.Popen[str]:
        """The worker, started if there is none or it has died since; RunError if that fails."""
        if self.popen is not None and self.popen.poll() is None:
            return self.popen
        self.close()
        self.respawns += self._started_before
        self._started_before = True
        self.popen = subprocess.Popen(
            # -P keeps this folder's names from hiding library modules
            [sys.executable, "-P", str(SCRIPT), str(self.limit_s), str(self.memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
        )
        # a trial through the whole of math-verify, so that late imports too are outside the time limit
        if self._exchange(self.popen, json.dumps([r"\frac{2}{4}", "0.5"]), START_LIMIT_S)[0] is not True:
            raise RunError(
                f"the worker of math-verify gave no right answer to a trial, with memory_bytes="
                f"{self.memory_bytes}; its own message, if any, is above. Install math-verify for "
                f"{sys.executable}, or raise memory_bytes"
            )
        return self.popen

    def close(self) -> None:
        """End the worker; it has nothing to lose. A later `equal` would start another."""
        worker, self.popen = self.popen, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request it never read may still be buffered
                if pipe is not None:
                    pipe.close()

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
