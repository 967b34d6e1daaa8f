"""Runs on several ranks: stopped, killed, resumed by other numbers of ranks, and started wrongly."""

import json
import os
import shutil
import signal
import socket
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
from driftgate.train.checks import check_ranks
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.world import Alone

QUIET = Console(quiet=True)
TRAIN = [sys.executable, "-m", "driftgate", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def recipe(settings, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | {"passes": 4, "checkpoint": {"every": 1}}))
    return str(path)


def started(recipe, out, *words, ranks=2, command=TRAIN, environment=None):
    words = [*command, recipe, "--out", str(out), *words, *(["--processes", str(ranks)] if ranks else [])]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(words, env=os.environ | (environment or {}), **how)


def trained(recipe, out, *words, ranks=2):
    process = started(recipe, out, *words, ranks=ranks)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said


def wait_for_checkpoint(out, process, than=None):
    """than: the model of the last one before."""
    while not list(out.glob("checkpoints/step-*[0-9]")) or final_model(out) == than:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def weights(out):
    found = {}
    for path in final_model(out).glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same(one, other, tolerance=0.0):
    assert weights(one).keys() == weights(other).keys()
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], rtol=0, atol=tolerance)
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (one, other)]
    rows = [[json.loads(line) for line in part] for part in lines]
    places = [[(row["kind"], row["step"], row.get("update")) for row in part] for part in rows]
    assert places[0] == places[1]
    if not tolerance:
        kept = [[{k: v for k, v in row.items() if not k.startswith("seconds")} for row in part] for part in rows]
        assert kept[0] == kept[1]


def position_of(out):
    return json.loads((final_model(out).parent / "position.json").read_text())


def ranks_of(process):
    """Process ids of the ranks that a launcher started."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(pid) for pid, words in lines if "driftgate" in words]


def test_stopped_and_killed_the_same_ranks_go_on_to_the_bit(recipe, tmp_path):
    out, whole = tmp_path / "broken", tmp_path / "whole"
    process = started(recipe, out, "steps=400")
    wait_for_checkpoint(out, process)
    process.terminate()  # the launcher alone
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("stopped and saved") == 1
    process = started(recipe, out, "steps=400")
    wait_for_checkpoint(out, process, than=final_model(out))
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert said == "driftgate: rank 1 was killed (SIGKILL); the same command resumes from the last checkpoint\n"
    steps = f"steps={position_of(out)['step'] + 1}"
    trained(recipe, out, steps)
    trained(recipe, whole, steps)
    assert_same(out, whole)


@pytest.mark.parametrize("by_torchrun", [True, False], ids=["killed under torchrun", "stuck"])
def test_no_rank_waits_for_a_dead_one(recipe, tmp_path, by_torchrun):
    out = tmp_path / "run"
    how = {"ranks": 0, "command": [*TORCHRUN, "-m", "driftgate", "train"]} if by_torchrun else {}
    process = started(recipe, out, "steps=4000", **how)
    wait_for_checkpoint(out, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL if by_torchrun else signal.SIGSTOP)
    said = process.communicate(timeout=45)[1]
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("driftgate: ")]
    if by_torchrun and not lines:  # torchrun was quicker, and names the rank too
        assert "rank      : 1" in said
    else:
        assert len(lines) == 1
        assert "rank 1 (" in lines[0]


WITH = {
    "full": {},
    "lora": {"student": {"lora": {"rank": 4}}},
    "follower": {"teacher": {"path": "student", "context": "{problem}{problem}", "follow": {"ema": 0.5}}},
}


@pytest.mark.parametrize("kind", WITH)
def test_other_numbers_of_ranks_go_on(settings, tmp_path, kind):
    """Two ranks make the first step, one process the second, three ranks the third."""
    settings = settings | {"optimizer": {"lr": 0.001, "eps": 1e-6}, "checkpoint": {"every": 1}}
    for name, value in WITH[kind].items():
        settings[name] = settings[name] | value
    recipe, moved, whole = tmp_path / "recipe.yaml", tmp_path / "moved", tmp_path / "whole"
    recipe.write_text(yaml.safe_dump(settings))
    trained(str(recipe), moved, "steps=1", ranks=2)
    run(check_config(settings | {"steps": 2}), moved, QUIET)
    trained(str(recipe), moved, "steps=3", ranks=3)
    run(check_config(settings | {"steps": 3}), whole, QUIET)
    assert_same(moved, whole, tolerance=1e-5)


def test_rollouts_that_were_written_ahead_go_on_with_other_numbers_of_ranks(settings, tmp_path):
    """Two ranks make the first step, and write the batches of the next two; one process goes on."""
    rollout = settings["rollout"] | {"lag": 2, "allow_truncated": True}
    settings = settings | {"optimizer": {"lr": 0.001, "eps": 1e-6}, "steps": 4, "rollout": rollout}
    settings["checkpoint"] = {"every": 1, "keep": 9}
    recipe, moved, whole = tmp_path / "recipe.yaml", tmp_path / "moved", tmp_path / "whole"
    recipe.write_text(yaml.safe_dump(settings))
    trained(str(recipe), moved)
    for later in sorted((moved / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    run(check_config(settings), moved, QUIET)
    run(check_config(settings), whole, QUIET)
    assert_same(moved, whole, tolerance=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minibatch=1"], "2 processes: an optimiser update learns from 1 responses"),
        (["student.path=/nowhere"], "student.path = '/nowhere'"),
    ],
)
def test_bad_input_is_said_once(recipe, tmp_path, words, message):
    process = started(recipe, tmp_path / "run", *words)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert said.count("driftgate: ") == len(said.splitlines()) == 1
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_said(recipe, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        place |= {"RANK": "0", "WORLD_SIZE": "2"}
        process = started(recipe, tmp_path / "run", ranks=0, environment=place)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "is in use; choose another port" in said.splitlines()[-1]


@pytest.mark.parametrize("written_by", [1, 2])
def test_a_checkpoint_of_another_shape_is_refused(settings, pair, tmp_path, written_by):
    """Its model was replaced by another; the optimiser is still the old one's."""
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings | {"steps": 1}))
    if written_by == 1:
        run(check_config(settings | {"steps": 1}), out, QUIET)
    else:
        trained(str(recipe), out)
    shutil.rmtree(final_model(out))
    shutil.copytree(pair[1], final_model(out))
    with pytest.raises(InputError, match=r"step-000001: its optimiser belongs to a model of another shape"):
        run(check_config(settings | {"steps": 2}), out, QUIET)
    process = started(str(recipe), out, "steps=2")
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, len(said.splitlines())) == (2, 1)
    assert "another shape" in said


class Differing(Alone):
    """A world whose other rank has an older torch, or other settings."""

    size = 2

    def __init__(self, versions, settings):
        self.versions, self.settings = versions, settings

    def share(self, value):
        versions, settings = value
        return [value, (versions | self.versions, settings | self.settings)]


@pytest.mark.parametrize(
    ("versions", "changed", "message"),
    [
        ({"torch": "2.11.0"}, {}, "rank 1 has torch 2.11.0, rank 0 has"),
        ({}, {"seed": 5}, "rank 1 was started with other settings than rank 0: seed"),
    ],
)
def test_ranks_that_differ_are_refused(config, versions, changed, message):
    with pytest.raises(InputError, match=message):
        check_ranks(config, Differing(versions, changed))
    check_ranks(config, Differing({}, {}))
