"""Jobs in processes, and being stopped among them."""

import os
import signal
import time

import pytest
from rich.console import Console

from driftgate.stop import Stopped, StopSignal
from driftgate.workers import Workers


def work(path, advance):
    """Advances once, so that the test knows it runs, then runs until it is stopped."""
    with StopSignal() as stop:
        path.touch()
        advance(1)
        for _ in range(600):
            stop.check()
            time.sleep(0.05)


def test_sigterm_stops_the_jobs_that_run_and_begins_no_other(tmp_path):
    paths = [tmp_path / str(number) for number in range(3)]
    with pytest.raises(KeyboardInterrupt), Workers(Console(quiet=True), 1) as workers:
        jobs = [workers.start(path.name, 1, work, path) for path in paths]
        workers.wait(lambda count: os.kill(os.getpid(), signal.SIGTERM))
    assert [path.exists() for path in paths] == [True, False, False]
    assert isinstance(jobs[0].exception(), Stopped)


def fail(advance):
    raise ValueError("so it goes")


def test_what_a_job_raises_reaches_the_one_who_waits():
    with pytest.raises(ValueError, match="so it goes"), Workers(Console(quiet=True), 1) as workers:
        workers.start("fails", 1, fail)
        workers.wait()
