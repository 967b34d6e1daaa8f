"""Rollouts that servers write while the student learns: over HTTP, lost on the way, killed, on two ranks."""

import copy
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from test_resume import KILLER
from test_stale import assert_same, metrics_of

from driftgate.errors import RunError
from driftgate.recipe import check_config
from driftgate.train.command import run
from driftgate.train.folder import final_model

QUIET = Console(quiet=True)


@pytest.fixture
def ahead(settings, fake):
    changed = copy.deepcopy(settings)
    engine = {"kind": "vllm", "urls": [fake.url], "patience": 0.2}
    changed["rollout"] |= {"engine": engine, "max_new_tokens": 12, "allow_truncated": True, "lag": 1}
    return changed


@pytest.fixture
def in_turn(ahead, tmp_path, monkeypatch):
    """The run whose rollouts the server writes while the student waits."""
    with monkeypatch.context() as patched:
        for place in ("source", "policies"):
            patched.setattr(f"driftgate.train.{place}.overlaps", lambda config: False)
        run(check_config(ahead), tmp_path / "in turn", QUIET)
    return tmp_path / "in turn"


def recipe_of(settings, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_the_weights_are_those_of_rollouts_in_turn(ahead, in_turn, tmp_path):
    run(check_config(ahead), tmp_path / "beside", QUIET)
    assert_same(tmp_path / "beside", in_turn)


def test_a_server_lost_on_the_way_stops_the_run_with_a_checkpoint(ahead, in_turn, fake, tmp_path):
    fake.die_after = 4 + 24 + 3 + 4  # probes, two batches, probes, some answers of the third
    with pytest.raises(RunError, match=r"no server is left of .* the last checkpoint is"):
        run(check_config(ahead), tmp_path / "lost", QUIET)
    fake.die_after = None
    fake.start()
    run(check_config(ahead), tmp_path / "lost", QUIET)
    assert_same(tmp_path / "lost", in_turn)


def test_killed_while_a_server_writes_a_run_goes_on_to_the_same_bits(ahead, in_turn, tmp_path):
    words = ["train", recipe_of(ahead, tmp_path), "--out", str(tmp_path / "killed")]
    done = subprocess.run([sys.executable, "-c", KILLER.format(kill_at=6), *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    run(check_config(ahead), tmp_path / "killed", QUIET)
    assert_same(tmp_path / "killed", in_turn)


def test_two_ranks_learn_while_a_server_writes(ahead, in_turn, tmp_path):
    words = [sys.executable, "-m", "driftgate", "train", recipe_of(ahead, tmp_path), "--out", str(tmp_path / "two")]
    done = subprocess.run([*words, "--processes", "2"], capture_output=True, text=True, timeout=240, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = {}
    for path in final_model(tmp_path / "two").glob("*.safetensors"):
        found |= load_file(path)
    expected = load_file(final_model(in_turn) / "model.safetensors")
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    drift = [[row["drift_abs"] for row in metrics_of(out) if "drift_abs" in row] for out in (tmp_path / "two", in_turn)]
    assert drift[0] == pytest.approx(drift[1], abs=1e-5)
