"""Several ranks on servers: rank 0 alone talks to them, all get the same answers, and all end together."""

import subprocess
import sys
from threading import Barrier, Thread

import pytest
import torch
import yaml
from fake_vllm import FakeVLLM
from rich.console import Console
from safetensors.torch import load_file

from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.rollout.shared import of_first
from driftgate.serving.client import ServerError, ServingError
from driftgate.stop import Stopped
from driftgate.train.command import run
from driftgate.train.folder import final_model


class Together:
    """Two ranks as threads of this process."""

    size, asked_to_stop = 2, False

    def __init__(self, rank, values, barrier):
        self.rank, self.values, self.barrier = rank, values, barrier

    def share(self, value):
        self.values[self.rank] = value
        self.barrier.wait(10)
        found = [self.values[0], self.values[1]]
        self.barrier.wait(10)
        return found


def both(work):
    """What `of_first` returns or raises on each of two ranks."""
    values, barrier, found = {}, Barrier(2), [None, None]

    def of(rank):
        try:
            found[rank] = of_first(Together(rank, values, barrier), work)
        except Exception as error:
            found[rank] = type(error), str(error)

    threads = [Thread(target=of, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def raising(error):
    def work():
        raise error

    return work


def test_all_ranks_get_what_rank_0_got():
    asked = []
    assert both(lambda: asked.append(1) or "answers") == ["answers", "answers"]
    assert asked == [1]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("no server"), InputError, "no server"),
        (ServerError("http://a", "is gone"), ServingError, "http://a: is gone"),
        (Stopped(), Stopped, ""),
    ],
)
def test_all_ranks_raise_what_rank_0_raised(error, kind, said):
    assert both(raising(error)) == [(kind, said)] * 2


def weights(out):
    found = {}
    for path in final_model(out).glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_two_ranks_and_one_process_train_the_same(settings, pair, tmp_path):
    with FakeVLLM(pair[0]) as fake:
        engine = {"kind": "vllm", "urls": [fake.url]}
        settings["rollout"] |= {"engine": engine, "max_new_tokens": 16, "allow_truncated": True}
        settings["steps"] = 2
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings))
        run(check_config(settings), tmp_path / "1", Console(quiet=True))
        words = [sys.executable, "-m", "driftgate", "train", str(recipe), "--out", str(tmp_path / "2")]
        done = subprocess.run([*words, "--processes", "2"], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    texts = [(tmp_path / ranks / "rollouts" / "step-000002.jsonl").read_text() for ranks in "12"]
    assert texts[0] == texts[1]
