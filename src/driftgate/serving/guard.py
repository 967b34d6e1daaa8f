"""Runs a server as long as the process that started it lives; a program of its own, without any import of driftgate.

python guard.py RESTARTS COMMAND...

Its standard input is a pipe from that process. When the pipe ends, in whatever way the other process ended, so does the
server with all its processes. A byte in the pipe says that the server was ready once: from then on it is started again
when it dies, at most RESTARTS times.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 10.0
"""Seconds that the server has to end by itself."""
TURN = 0.2


def main() -> int:
    """Exit code of the server, where it ended before it was ready or too often."""
    left, command, ready = int(sys.argv[1]), sys.argv[2:], False
    while True:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while child.poll() is None:
            if select.select([0], [], [], TURN)[0]:
                if not os.read(0, 1):
                    end()
                ready = True
        print(f"guard: the server ended with code {child.returncode}", flush=True)
        if not ready or not left:
            return child.returncode or 1
        left -= 1
        print(f"guard: starts it again; {left} times are left", flush=True)


def end() -> None:
    """All processes of this group, which the server's are in; this one too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and others():
        time.sleep(TURN)
    os.killpg(0, signal.SIGKILL)


def others() -> bool:
    """Whether children are left."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    sys.exit(main())
