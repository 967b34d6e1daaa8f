"""Studies on a real Ray cluster: two simulated nodes of one processor each. `make test-ray` runs them."""

import json
import os
import signal
import time
from importlib import util

import pytest
from rich.console import Console
from study_case import write_study

from driftgate.errors import InputError
from driftgate.stop import Stopped, StopSignal
from driftgate.study import cluster as cluster_module
from driftgate.study.config import arm_configs, load_study
from driftgate.study.ray_workers import RayWorkers
from driftgate.study.runner import is_done, jobs_of, run_job, run_study
from driftgate.workers import Killed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(util.find_spec("ray") is None, reason="needs the extra ray: `make test-ray` installs it"),
]
QUIET = Console(quiet=True)
TESTS = os.path.dirname(__file__)


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster_module.QUIET.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:{TESTS}")  # nodes import this file's functions
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        made.add_node(**node)
        yield made.address
        made.shutdown()


@pytest.fixture
def on_ray(two_nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)


def left_by(run):
    """What a run and its examination leave behind, without seconds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]
    weights = max((run / "checkpoints").glob("step-*")) / "model" / "model.safetensors"
    files = [run / "config.yaml", run / "eval" / "samples.jsonl", run / "eval" / "result.json", weights]
    return metrics, [path.read_bytes() for path in files]


def end_first_time(job, advance):
    """Training that is killed after its first step, the first time."""
    first = not job.folder.is_dir()

    def advance_or_end(count):
        advance(count)
        if first and count and job.trained:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_job(job, advance_or_end)


def test_a_study_ends_as_on_the_pool_though_each_run_is_killed_once(settings, prompt_file, tmp_path, on_ray):
    file = write_study(tmp_path, settings, prompt_file, claims=[])
    run_study(file, tmp_path / "pool", QUIET, 2)
    study = load_study(file)
    jobs = list(jobs_of(study, arm_configs(study), tmp_path / "killed"))
    console = Console(record=True, width=200)
    with RayWorkers(console, len(jobs), tmp_path / "killed", gpu=False) as workers:
        for job in jobs:
            workers.start(job.name, job.work, end_first_time, job)
        workers.wait()
    assert console.export_text().count("its process was killed; it is begun again (1 of 2)") == 4
    assert all(is_done(job) for job in jobs)
    run_study(file, tmp_path / "ray", QUIET, None, on="ray")
    for arm in ("none", "gated"):
        for seed in (0, 1):
            run = f"{arm}/seed-{seed}"
            expected = left_by(tmp_path / "pool" / "runs" / run)
            assert left_by(tmp_path / "ray" / "runs" / run) == expected
            assert left_by(tmp_path / "killed" / run) == expected
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("pool", "ray"))
    for key in ("scores", "comparisons", "locked", "curves", "gates", "drift"):
        assert one[key] == other[key]


def test_a_study_that_is_stopped_saves_and_the_same_command_goes_on(settings, prompt_file, tmp_path, on_ray):
    file = write_study(tmp_path, settings, prompt_file, claims=[], seeds=[0], references=False)
    study = load_study(file)
    jobs = list(jobs_of(study, arm_configs(study), tmp_path / "out" / "runs"))
    with pytest.raises(KeyboardInterrupt), RayWorkers(QUIET, 1, tmp_path / "out", gpu=False) as workers:
        ends = [workers.start(job.name, job.work, stop_after_a_step, job) for job in jobs]
        workers.wait(lambda count: count and os.kill(os.getpid(), signal.SIGTERM))
    assert isinstance(ends[0].exception(), Stopped)
    assert ends[1].cancelled()
    assert list((jobs[0].folder / "checkpoints").glob("step-*"))
    assert not any(is_done(job) for job in jobs)
    run_study(file, tmp_path / "out", QUIET, None, on="ray")
    assert all(is_done(job) for job in jobs)
    run_study(file, tmp_path / "whole", QUIET, 1)
    for job in jobs:
        assert left_by(job.folder) == left_by(
            tmp_path / "whole" / "runs" / job.folder.relative_to(job.folder.parents[1])
        )


def stop_after_a_step(job, advance):
    """Training that waits after its first step until it is stopped."""

    def advance_and_wait(count):
        advance(count)
        until = time.monotonic() + 60
        while count and time.monotonic() < until and signal_is_pending():
            time.sleep(0.05)

    return run_job(job, advance_and_wait)


def signal_is_pending():
    """Whether the stop has not arrived yet: `StopSignal` gives the old handler back once it has."""
    owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return isinstance(owner, StopSignal) and not owner.requested


def end(advance):
    os.kill(os.getpid(), signal.SIGKILL)


def where(advance):
    advance(1)
    return os.getcwd()


def test_a_job_that_is_killed_each_time_is_named_and_the_others_go_on(tmp_path, on_ray):
    with pytest.raises(Killed, match="killed 3 times"), RayWorkers(QUIET, 2, tmp_path, gpu=False) as workers:
        bad, good = workers.start("bad", 1, end), workers.start("good", 1, where)
        workers.wait()
    assert isinstance(bad.exception(), Killed)
    assert good.result() == os.getcwd()


def fail(advance):
    raise ValueError("so it goes")


def test_what_a_job_raises_and_what_a_node_lacks_is_said(tmp_path, on_ray, monkeypatch):
    with pytest.raises(ValueError, match="so it goes"), RayWorkers(QUIET, 2, tmp_path, gpu=False) as workers:
        workers.start("fails", 1, fail)
        workers.wait()
    with pytest.raises(InputError, match="no node of the cluster has 2 CPUs"):
        RayWorkers(QUIET, 2, tmp_path, cpus=2)
    mine = cluster_module.versions()
    monkeypatch.setattr(cluster_module, "versions", lambda: mine | {"torch": "1.0"})
    with pytest.raises(InputError, match=rf"--on ray: node \S+ has torch {mine['torch']}, but here are .*torch 1.0"):
        RayWorkers(QUIET, 2, tmp_path)


def test_an_address_without_a_cluster_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "REACH", 6.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS = 127\.0\.0\.1:1: no cluster answers there"):
        RayWorkers(QUIET, 1, tmp_path)
