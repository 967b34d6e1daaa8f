"""Processes for code that a model wrote, and for its tests: fresh for every answer, limited, and ended as a group.

The answer never runs where its tests run. It gets the arguments of the calls that the tests make, and returns values;
what these have to be, and the verdict, stay in the tests' process. See `inside`.
"""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from ..errors import InputError, RunError
from .code_tests import Assertions, Programs

Verdict = Literal["right", "wrong", "overran", "died"]
INSIDE = Path(__file__).with_name("inside")
START_LIMIT_S = 60.0
"""Seconds that a process may take to start, which do not count as the answer's."""
NAMESPACES = ("--user", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--")


class CodeSandbox:
    """Runs answers against tests. `seconds` of wall time bound each run: all assertions, or one program.

    Counters: `asked` answers, of which `overruns` hit the time limit, and `deaths` ended their process or had it ended:
    by memory, an exit, or something that is refused. Threads may share it.
    """

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self.seconds, self.memory_bytes = seconds, memory_bytes
        self.asked = self.overruns = self.deaths = 0
        self._lock = threading.Lock()

    def passes(self, code: str, tests: Assertions | Programs) -> bool:
        """Whether the code passes the tests. Raises RunError where no process starts."""
        verdict = self._verdict(code, tests)
        with self._lock:
            self.asked += 1
            self.overruns += verdict == "overran"
            self.deaths += verdict == "died"
        return verdict == "right"

    def _verdict(self, code: str, tests: Assertions | Programs) -> Verdict:
        try:
            source = code.encode()
        except UnicodeEncodeError:  # half a surrogate pair is no Python
            return "wrong"
        try:
            with tempfile.TemporaryDirectory(prefix="driftgate-", ignore_cleanup_errors=True) as folder:
                return self._verdict_in(Path(folder), source, tests)
        except OSError as error:
            raise RunError(f"verify.kind = code: an answer cannot be run ({error}); mend that and go on") from None

    def _verdict_in(self, folder: Path, source: bytes, tests: Assertions | Programs) -> Verdict:
        (folder / "answer.py").write_bytes(source)
        (folder / "own").mkdir()
        if isinstance(tests, Assertions):
            return self._asserted(folder, tests)
        for given, wanted in tests.pairs:
            verdict = self._run(folder, given, wanted)
            if verdict != "right":
                return verdict
        return "right"

    def _asserted(self, folder: Path, tests: Assertions) -> Verdict:
        """The verdict of the tests' process on an answer's."""
        asks, replies = os.pipe(), os.pipe()
        limits = (str(self.seconds), str(self.memory_bytes))
        with contextlib.ExitStack() as stack:
            try:
                ends = asks[0], replies[1]
                stack.enter_context(
                    started(folder, ["answer.py", str(folder / "answer.py"), *limits, *map(str, ends)], ends)
                )
                ends = replies[0], asks[1]
                judge = stack.enter_context(
                    started(folder, ["judge.py", *map(str, ends), *limits], ends, subprocess.PIPE, subprocess.PIPE)
                )
            finally:
                for end in (*asks, *replies):
                    os.close(end)
            assert judge.stdin is not None
            with contextlib.suppress(BrokenPipeError), judge.stdin:
                judge.stdin.write(json.dumps(vars(tests)).encode())
            self._wait_ready(judge.stdout)
            said = _byte(judge.stdout, self.seconds)
        verdicts: dict[bytes | None, Verdict] = {b"1": "right", b"0": "wrong", None: "overran"}
        return verdicts.get(said, "died")

    def _run(self, folder: Path, given: str, wanted: str) -> Verdict:
        """The verdict on a program's output."""
        words = ["answer.py", str(folder / "answer.py"), str(self.seconds), str(self.memory_bytes)]
        source, sink = folder / "input", folder / "output"
        source.write_text(given, encoding="utf-8", errors="replace")
        with (
            source.open("rb") as stdin,
            sink.open("wb") as stdout,
            started(folder, words, (), stdin, stdout, subprocess.PIPE) as answer,
        ):
            self._wait_ready(answer.stderr)
            try:
                status = answer.wait(self.seconds)
            except subprocess.TimeoutExpired:
                return "overran"
        if status < 0 or status == 99:
            return "died"
        written = sink.read_text(encoding="utf-8", errors="replace")
        return "right" if status == 0 and _lines(written) == _lines(wanted) else "wrong"

    def _wait_ready(self, pipe: IO[bytes] | None) -> None:
        if _byte(pipe, START_LIMIT_S) != b"r":
            raise RunError(
                f"verify.kind = code: a process for an answer did not start, with memory_gib = "
                f"{self.memory_bytes / 2**30:g}; raise verify.memory_gib, or lower verify.workers"
            )

    def try_out(self) -> None:
        """Run an answer that passes, and one that must be ended. Raises InputError where either is not so."""
        if os.name != "posix":
            raise InputError(
                "verify.kind = code: needs Linux or macOS, where processes can be limited; use a container"
            )
        tests = Assertions("assert f([1]) == 2", ("f",), ())
        try:
            works = self._verdict("def f(x):\n    return x[0] + 1", tests) == "right"
            holds = self._verdict("def f(x):\n    import socket\n    socket.socket()\n    return 2", tests) == "died"
        except RunError as error:
            raise InputError(str(error)) from None
        if not works or not holds:
            raise InputError(
                f"verify.kind = code: a trial in this Python ({sys.executable}) "
                f"{'did not end an answer that opened a socket' if works else 'failed on a right answer'}; raise "
                f"verify.seconds or verify.memory_gib, or use CPython of python.org in a container"
            )


@contextlib.contextmanager
def started(
    folder: Path,
    words: list[str],
    ends: tuple[int, ...],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a script of `inside`, in the folder `own` and nearly without environment; ended with all that it
    started."""
    keys = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "TMPDIR": str(folder / "own")}
    if "LD_LIBRARY_PATH" in os.environ:  # some builds of Python do not start without
        keys["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    process = subprocess.Popen(
        [*namespaces(), sys.executable, "-S", str(INSIDE / words[0]), *words[1:]],
        cwd=folder / "own",
        env=keys,
        pass_fds=ends,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@functools.cache
def namespaces() -> tuple[str, ...]:
    """The words before a command that take the network and other processes from it, and end it should this process be
    gone; none where this system forbids them to users, which is said once."""
    setpriv, unshare = shutil.which("setpriv"), shutil.which("unshare")
    if setpriv is not None and unshare is not None:
        words = (setpriv, "--pdeathsig", "KILL", "--", unshare, *NAMESPACES)
        if subprocess.run([*words, sys.executable, "-S", "-c", ""], capture_output=True).returncode == 0:
            return words
    print(
        "driftgate: verify.kind = code: this system gives no namespaces of their own to the processes of answers; "
        "Python's audit hook alone keeps them from the network, files and other processes (docs/verifiers.md)",
        file=sys.stderr,
    )
    return ()


def _byte(pipe: IO[bytes] | None, seconds: float) -> bytes | None:
    """The next byte, nothing at the end, None where none came in time."""
    assert pipe is not None
    waiting = select.poll()
    waiting.register(pipe.fileno(), select.POLLIN | select.POLLHUP)
    return os.read(pipe.fileno(), 1) if waiting.poll(seconds * 1_000) else None


def _lines(text: str) -> list[str]:
    """The lines without white space at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
