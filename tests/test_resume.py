"""A run that was stopped anywhere and resumed ends bit for bit like one that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.stop import Stopped
from driftgate.train import loop, writing
from driftgate.train.command import run
from driftgate.train.folder import final_model

QUIET = Console(quiet=True)
UPDATES = 3 * 2 * 2  # steps x passes x minibatches of the fixture


@pytest.fixture(scope="module")
def state():
    """Shared by the tests of this file: the run that was never stopped."""
    return {}


def outcome(out):
    """Everything that must not depend on having been stopped."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]
    rollouts = {path.name: path.read_text() for path in (out / "rollouts").iterdir()}
    weights = load_file(final_model(out) / "model.safetensors")
    learner = torch.load(final_model(out).parent / "learner.pt", weights_only=True)
    return metrics, rollouts, weights, learner


def assert_same(one, other):
    for a, b in zip(one[:2], other[:2]):
        assert a == b
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])
    moments = [[*entry.values()] for entry in one[3]["optimizer"]["state"].values()]
    others = [[*entry.values()] for entry in other[3]["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for left, right in zip(moments, others) for a, b in zip(left, right))
    assert one[3]["schedule"] == other[3]["schedule"]


@pytest.fixture
def never_stopped(config, state, tmp_path_factory):
    if "whole" not in state:
        out = tmp_path_factory.mktemp("whole")
        run(config, out, QUIET)
        state["whole"] = outcome(out)
    return state["whole"]


def stop_after(monkeypatch, updates):
    """Ask the run to stop once so many optimiser updates are done, as a signal would."""
    done = 0
    original = loop.timed_update

    def counted(*args):
        nonlocal done
        values = original(*args)
        done += 1
        if done == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(loop, "timed_update", counted)


@pytest.mark.parametrize("updates", range(1, UPDATES))
def test_a_stop_after_any_update_changes_nothing(config, tmp_path, monkeypatch, never_stopped, updates):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, updates)
        run(config, tmp_path, QUIET)
    run(config, tmp_path, QUIET)
    assert_same(outcome(tmp_path), never_stopped)


def test_a_stop_during_a_rollout_changes_nothing(config, tmp_path, monkeypatch, never_stopped):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    original = writing.sample_responses
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(writing, "sample_responses", interrupted)
        run(config, tmp_path, QUIET)
    run(config, tmp_path, QUIET)
    assert_same(outcome(tmp_path), never_stopped)


def test_a_run_stopped_again_and_again_changes_nothing(config, tmp_path, monkeypatch, never_stopped):
    for _ in range(UPDATES - 1):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, 1)
            run(config, tmp_path, QUIET)
    run(config, tmp_path, QUIET)
    assert_same(outcome(tmp_path), never_stopped)


@pytest.mark.parametrize("kill_at", [3, 6, 9])
def test_sigkill_in_the_middle_of_a_pass_changes_nothing(config, tmp_path, never_stopped, kill_at):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    out = tmp_path / "run"
    code = KILLER.format(kill_at=kill_at)
    done = subprocess.run([sys.executable, "-c", code, "train", str(recipe), "--out", str(out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    resumed = subprocess.run([sys.executable, "-m", "driftgate", "train", str(recipe), "--out", str(out)])
    assert resumed.returncode == 0
    assert_same(outcome(out), never_stopped)


KILLER = """
import os, signal
from driftgate import cli
from driftgate.train.learner import Learner
update, seen = Learner._step, 0
def step(self, *args):
    global seen
    seen += 1
    if seen == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)   # after the backward pass, before the optimiser step
    return update(self, *args)
Learner._step = step
cli.main()
"""


def test_ctrl_c_saves_and_says_so(config, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"steps": 10_000}))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "driftgate", "train", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (out / "checkpoints" / "step-000002").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped and saved" in text


def test_a_finished_run_stays_as_it_is(config, tmp_path, never_stopped):
    run(config, tmp_path, QUIET)
    run(config, tmp_path, QUIET)
    assert_same(outcome(tmp_path), never_stopped)


def test_more_steps_go_on_where_the_run_ended(settings, config, tmp_path):
    run(config, tmp_path / "short", QUIET)
    longer = check_config(settings | {"steps": 5})
    run(longer, tmp_path / "short", QUIET)
    run(longer, tmp_path / "long", QUIET)
    assert_same(outcome(tmp_path / "short"), outcome(tmp_path / "long"))


def test_another_recipe_does_not_resume_a_run(settings, config, tmp_path):
    run(config, tmp_path, QUIET)
    with pytest.raises(InputError, match="other settings: passes, gate"):
        run(check_config(settings | {"passes": 3, "gate": {"spans": "none"}}), tmp_path, QUIET)


def test_a_run_goes_on_with_fewer_responses_at_once(settings, config, tmp_path):
    """For the one that filled the memory; any other setting of the rollout stays as it was."""
    run(config, tmp_path, QUIET)
    fewer, hotter = ({"rollout": settings["rollout"] | change} for change in ({"batch": 3}, {"temperature": 0.5}))
    run(check_config(settings | {"steps": 4} | fewer), tmp_path, QUIET)
    with pytest.raises(InputError, match="other settings: rollout;"):
        run(check_config(settings | {"steps": 5} | hotter), tmp_path, QUIET)


def test_only_the_newest_checkpoints_are_kept(settings, tmp_path):
    run(check_config(settings | {"steps": 4, "checkpoint": {"every": 1, "keep": 2}}), tmp_path, QUIET)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
