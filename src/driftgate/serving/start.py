"""A server beside this process, which ends when this process ends, even when it is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from .client import Server

GUARD = Path(__file__).with_name("guard.py")
TURN = 0.5
"""Seconds between two looks at a server that is starting."""
END = 20.0
"""Seconds that the guard has to end."""


class StartedServer:
    """Started at once; `wait_ready` returns when it answers. `close` ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, restarts: int):
        """environment: variables besides this process's own. log: takes what the server says. Raises InputError for a
        command that is not there."""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-S", str(GUARD), str(restarts), *command]
        with log.open("ab") as out:
            self.guard = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=out, stderr=out, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, url: str, limit: float) -> None:
        """limit: in seconds. Raises InputError where it ends or is not ready by then, with its last words."""
        print(f"driftgate: starts a server at {url}; its log is {self.log}", file=sys.stderr, flush=True)
        server, began = Server(url), time.monotonic()
        while not server.healthy():
            if self.guard.poll() is not None:
                raise InputError(f"rollout.engine.start: the server has ended: {self._last_words()}; see {self.log}")
            if time.monotonic() - began > limit:
                raise InputError(
                    f"rollout.engine.start.ready = {limit:g}: the server is not ready after so many seconds; see "
                    f"{self.log}, or give it longer"
                )
            time.sleep(TURN)
        print(f"driftgate: it is ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        assert self.guard.stdin is not None
        self.guard.stdin.write(b"r")
        self.guard.stdin.flush()

    def close(self) -> None:
        """End the server and wait for it."""
        if self.guard.stdin is not None:
            with suppress(OSError):
                self.guard.stdin.close()
        try:
            self.guard.wait(END)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.guard.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        """The last line of the log that says what went wrong."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or [line for line in lines if not line.startswith("guard:")] or ["it said nothing"])[-1][:300]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
