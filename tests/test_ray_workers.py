"""The executor on Ray without Ray: what becomes of jobs whose processes are killed, and what is refused."""

import dataclasses
import os
import signal
import subprocess
from importlib import util

import pytest
from fake_ray import FakeRay
from rich.console import Console

from driftgate.errors import InputError
from driftgate.study import cluster, ray_workers
from driftgate.study.ray_workers import RayWorkers
from driftgate.study.runner import run_study
from driftgate.workers import Killed


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """RayWorkers on a fake cluster: `workers(fake, count)`."""
    monkeypatch.chdir(tmp_path)

    def make(fake, count=2, console=None, **needs):
        monkeypatch.setattr(ray_workers, "connect", lambda: fake)
        return RayWorkers(console or Console(quiet=True), count, tmp_path / "runs", **needs)

    return make


def double(number, advance):
    advance(number)
    return 2 * number


def test_jobs_are_done_so_many_at_a_time_and_their_progress_is_told(workers, tmp_path):
    fake, moved, before = FakeRay(), [], signal.getsignal(signal.SIGTERM)
    with workers(fake, 2) as pool:
        assert (tmp_path / "runs" / ".seen-by-all-nodes").is_file()
        jobs = [pool.start(str(number), number, double, number) for number in range(1, 5)]
        pool.wait(moved.append)
    assert [job.result() for job in jobs] == [2, 4, 6, 8]
    assert sum(moved) == 10
    assert fake.most == 2
    assert fake.down
    assert not list((tmp_path / "runs").iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def dying(deaths):
    """A fake cluster that kills so many of the processes in which jobs begin."""
    left = [None] * deaths
    return FakeRay(lambda name: name == "_begin" and bool(left) and left.pop() is None)


def test_a_job_whose_process_is_killed_is_begun_again(workers):
    console = Console(record=True, width=200)
    with workers(dying(2), 1, console) as pool:
        job = pool.start("one", 1, double, 1)
        pool.wait()
    assert job.result() == 2
    assert "one: its process was killed; it is begun again (2 of 2)" in console.export_text()


def test_a_job_that_is_killed_each_time_is_named_and_the_others_go_on(workers):
    with pytest.raises(Killed, match="killed 3 times"), workers(dying(3), 1) as pool:
        bad, good = (pool.start(str(number), 1, double, number) for number in (1, 2))
        pool.wait()
    assert isinstance(bad.exception(), Killed)
    assert good.result() == 4


def fail(advance):
    raise ValueError("so it goes")


def test_what_a_job_raises_reaches_the_one_who_waits(workers):
    with pytest.raises(ValueError, match="so it goes"), workers(FakeRay()) as pool:
        pool.start("fails", 1, fail)
        pool.wait()


def test_sigterm_cancels_what_runs_and_begins_no_other(workers):
    fake = FakeRay()
    with pytest.raises(KeyboardInterrupt), workers(fake, 1) as pool:
        jobs = [pool.start(str(number), 1, double, number) for number in range(2)]
        pool._send(pool.waiting.popleft())
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(fake.cancelled) == 1
    assert jobs[0].exception() is not None
    assert jobs[1].cancelled()


def test_a_gpu_is_asked_for_where_the_cluster_has_one(workers):
    for resources, wanted, gpus in (({}, True, 0), ({"GPU": 1.0}, True, 1), ({"GPU": 1.0}, False, 0)):
        fake = FakeRay(**resources)
        with workers(fake, gpu=wanted, cpus=2):
            assert {"num_cpus": 2, "num_gpus": gpus}.items() <= fake.needs[-2].items()


def test_a_cluster_without_a_node_large_enough_is_refused(workers):
    fake = FakeRay()
    with pytest.raises(InputError, match=r"no node of the cluster has 4 CPUs \(the setting threads\)"):
        workers(fake, cpus=4)
    assert fake.down


@pytest.fixture
def place(tmp_path):
    with cluster.shared_place(tmp_path / "runs") as place:
        yield place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": "/nowhere"}, "does not see /nowhere, where the command runs; use a file system that all nodes"),
        ({"secret": "another"}, "does not see .*runs; choose an --out on a file system that all nodes share"),
        ({"versions": cluster.versions() | {"torch": "1.0"}}, "has torch .*, but here are .*torch 1.0.* install the"),
    ],
)
def test_a_node_that_differs_says_how(place, change, said):
    assert place.problem() == ""
    other = dataclasses.replace(place, **change)
    with pytest.raises(InputError, match=rf"--on ray: node \S+ {said}"):
        other.enter()
    with pytest.raises(InputError, match=f"node one {said}"):
        cluster.check_nodes(FakeRay(), other, 1, 0)


def test_a_node_that_cannot_answer_is_named():
    ray = FakeRay(lambda name: True)
    with pytest.raises(InputError, match=r"node one cannot run driftgate \(LostError\); install it there"):
        cluster.check_nodes(ray, None, 1, 0)


def test_another_executor_is_refused(tmp_path):
    with pytest.raises(InputError, match="--on slurm: unknown; give ray, or leave it out"):
        run_study(tmp_path / "study.yaml", tmp_path, Console(quiet=True), 1, on="slurm")


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--on ray: needs the extra `ray`: pip install 'driftgate\[ray\]'"):
        cluster.connect()


@pytest.mark.parametrize(
    ("address", "stderr", "said"),
    [
        ("ray://head:10001", "", "RAY_ADDRESS = ray://head:10001: Ray's client is not supported; run the command on"),
        (
            "",
            "ConnectionError: Could not find any running Ray instance.",
            "not set: no cluster runs here; start one",
        ),
        (
            "h:1",
            "Traceback\n  x\nRuntimeError: Version mismatch:\n  Ray: 2.1",
            "RuntimeError: Version mismatch: Ray: 2.1",
        ),
        ("h:1", None, "RAY_ADDRESS = h:1: no cluster answers there; check host and port"),
    ],
)
def test_an_address_without_a_cluster_is_refused_in_one_line(monkeypatch, address, stderr, said):
    def tried(command, timeout, **_):
        if stderr is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(util, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", tried)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for name in cluster.QUIET:
        monkeypatch.setenv(name, "as before")  # so that the test leaves none
    with pytest.raises(InputError, match=said) as refused:
        cluster.connect()
    assert "\n" not in str(refused.value)
