"""Runs whose rollouts servers write: stopped, resumed, with a server that dies, and with one that they start."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from fake_vllm import FakeVLLM
from rich.console import Console
from test_resume import outcome, stop_after

from driftgate.errors import InputError, RunError
from driftgate.recipe import check_config
from driftgate.rollout import vllm_server
from driftgate.stop import Stopped
from driftgate.train.command import run

pytestmark = pytest.mark.usefixtures("quick")
QUIET = Console(quiet=True)


@pytest.fixture
def served(settings, fake):
    changed = copy.deepcopy(settings)
    changed["rollout"] |= {
        "engine": {"kind": "vllm", "urls": [fake.url]},
        "max_new_tokens": 16,
        "allow_truncated": True,
    }
    return changed


@pytest.fixture(scope="module")
def state():
    """Shared by the tests of this file: the run that nothing happened to."""
    return {}


@pytest.fixture
def whole(served, state, tmp_path_factory):
    if "whole" not in state:
        out = tmp_path_factory.mktemp("whole")
        run(check_config(served), out, QUIET)
        state["whole"] = out
    return state["whole"]


def assert_same(one, other):
    one, other = outcome(one), outcome(other)
    assert one[1] == other[1]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_a_server(whole):
    rows = metrics_of(whole)
    assert sum(row["kind"] == "rollout" for row in rows) == 3
    updates = [row for row in rows if "mismatch_mean" in row]
    assert updates
    assert max(row["mismatch_mean"] for row in updates) < 1e-5


@pytest.mark.parametrize("updates", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(served, whole, fake, tmp_path, updates, monkeypatch):
    config = check_config(served)
    stop_after(monkeypatch, updates)
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", QUIET)
    fake.die()
    fake.start()
    run(config, tmp_path / "cut", QUIET)
    assert_same(whole, tmp_path / "cut")


def test_a_server_that_dies_in_a_rollout_changes_nothing(served, whole, pair, tmp_path):
    with FakeVLLM(pair[0]) as other:
        served["rollout"]["engine"]["urls"].append(other.url)
        other.die_after = 6
        run(check_config(served), tmp_path / "two", QUIET)
        assert other.http is None
    assert_same(whole, tmp_path / "two")


def test_without_a_server_the_run_stops_with_a_checkpoint_and_goes_on(served, whole, fake, tmp_path):
    served["rollout"]["engine"]["patience"] = 0.2
    config = check_config(served)
    fake.die_after = 4 + 12 + 3 + 5  # probes, the answers of a step, probes, some answers
    with pytest.raises(RunError, match=r"no server is left of .* stopped; the last checkpoint is .*step-000001"):
        run(config, tmp_path / "cut", QUIET)
    fake.start()
    run(config, tmp_path / "cut", QUIET)
    assert_same(whole, tmp_path / "cut")


def test_servers_may_change_in_a_resumed_run_and_the_kind_may_not(served, settings, fake, pair, tmp_path):
    run(check_config(served | {"steps": 1}), tmp_path, QUIET)
    with FakeVLLM(pair[0]) as other:
        served["rollout"]["engine"]["urls"] = [other.url]
        run(check_config(served | {"steps": 2}), tmp_path, QUIET)
    with pytest.raises(InputError, match="holds a run with other settings: rollout"):
        run(check_config(settings), tmp_path, QUIET)


def test_a_context_that_is_too_short_is_refused_before_the_run(served, fake, tmp_path):
    fake.context = 24
    with pytest.raises(InputError, match="its context is 24 tokens, but a prompt of 10 and an answer of 16 need 26"):
        run(check_config(served), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists() or not fake.count("/update_weights")


# a server that the run starts


@pytest.fixture
def program(tmp_path):
    """What stands where vLLM's Python would: it starts the fake."""
    path = tmp_path / "python"
    fake = Path(__file__).with_name("fake_vllm.py")
    path.write_text(
        '#!/bin/sh\ncase "$*" in\n*--fail*) echo "ValueError: not supported"; echo "  at line 3"; exit 1;;\n'
        f'*--never-ready*) sleep 1000;;\nesac\nexec "{sys.executable}" "{fake}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def started(config, tmp_path, program, *arguments, **start):
    config["rollout"]["engine"] = {"kind": "vllm", "start": {"python": program, "arguments": arguments, **start}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def server_of(out):
    """The id of the server's process."""
    return int((out / "pid").read_text())


def is_there(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(what):
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "start", "said"),
    [
        (("--fail",), {}, r"the server has ended: ValueError: not supported; see .*vllm\.log"),
        (
            ("--never-ready",),
            {"ready": 0.5},
            r"start\.ready = 0\.5: the server is not ready after so many seconds",
        ),
    ],
)
def test_a_server_that_does_not_start_is_refused(served, tmp_path, program, arguments, start, said):
    started(served, tmp_path, program, *arguments, **start)
    with pytest.raises(InputError, match=said):
        run(check_config(served), tmp_path / "run", QUIET)


def test_the_server_ends_when_the_run_is_killed(tmp_path):
    pid = tmp_path / "pid"
    server = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    code = (
        "import sys; from pathlib import Path; from driftgate.serving.start import StartedServer; "
        f"made = StartedServer([sys.executable, '-c', {server!r}], {{}}, Path({str(tmp_path / 'log')!r}), 3); "
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        wait_until(lambda: pid.exists() and pid.read_text())
        process.kill()
    wait_until(lambda: not is_there(server_of(tmp_path)))


def test_a_run_starts_its_server_again_when_it_dies_and_ends_it(served, whole, tmp_path, program, monkeypatch):
    started(served, tmp_path, program, "--pid", str(tmp_path / "pid"))
    original, killed = vllm_server.VLLMEngine.generate, []

    def generate(engine, *args):
        if not killed:
            killed.append(server_of(tmp_path))
            os.kill(killed[0], signal.SIGKILL)
        return original(engine, *args)

    monkeypatch.setattr(vllm_server.VLLMEngine, "generate", generate)
    run(check_config(served), tmp_path / "run", QUIET)
    assert_same(whole, tmp_path / "run")
    assert "starts it again; 2 times are left" in (tmp_path / "run" / "vllm.log").read_text()
    assert not is_there(server_of(tmp_path))
