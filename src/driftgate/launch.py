"""`driftgate train --processes N`: the ranks of one machine, started, watched and stopped together.

As torchrun does for several machines; but it passes on the exit code, and says in one line which rank has died.
"""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

import torch.distributed as dist

LET_END = 10.0
"""Seconds that ranks have to end by themselves once one has failed."""


def launch(processes: int, command: list[str]) -> int:
    """Run a command as `processes` ranks; SIGINT and SIGTERM are passed on to all of them.

    Returns the exit code: 0 where all ranks ended well, else the largest; 1 for a rank that was killed.
    """
    # port 0 takes one that is free
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    ranks = [_start(rank, processes, store.port, command) for rank in range(processes)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(ranks)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in ranks:
            process.kill()


def _start(rank: int, size: int, port: int, command: list[str]) -> subprocess.Popen:
    """In a session of its own: Ctrl-C in the terminal reaches it once, through `launch`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    threads = {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // size)}
    environment = {name: str(value) for name, value in (threads | dict(os.environ) | place | meeting).items()}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Until all have ended, or one was killed: the others can do nothing without it. Where one has failed, the others
    have `LET_END` seconds."""
    codes: list[int | None] = [None]
    failed: float | None = None
    while None in codes:
        time.sleep(0.1)
        codes = [process.poll() for process in ranks]
        killed = [(rank, code) for rank, code in enumerate(codes) if code is not None and code < 0]
        if killed and None in codes:
            rank, code = killed[0]
            name = signal.Signals(-code).name
            line = f"driftgate: rank {rank} was killed ({name}); the same command resumes from the last checkpoint"
            print(line, file=sys.stderr, flush=True)
            return 1
        if failed is None and any(codes):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > LET_END:
            break
    return max(1 if code is None or code < 0 else code for code in codes)
