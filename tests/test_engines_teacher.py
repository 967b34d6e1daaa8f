"""A real vLLM server on the CPU as teacher, by `make test-engines`: it says what the local teacher says."""

import importlib.util
import os

import pytest
import torch
from conftest import collected
from test_engines import ON_CPU

from driftgate.errors import InputError
from driftgate.models.sources import resolve
from driftgate.recipe import load_recipe
from driftgate.serving.start import StartedServer, free_port
from driftgate.serving.vllm_api import start_command, start_environment
from driftgate.train.build import build_run

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-engines"),
]
SMALL = ["steps=1", "prompts.per_step=4", "rollout.samples=3", "rollout.max_new_tokens=64", "diagnostics.every=0"]
SMALL += ["rollout.allow_truncated=true", "device=cpu", "threads=1"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server of the embedded teacher that is no one's student: without dev mode."""
    port = free_port()
    command = start_command(None, resolve("sandbox/teacher", "teacher"), port, "float32", 8)
    log = tmp_path_factory.mktemp("teacher") / "vllm.log"
    environment = start_environment() | ON_CPU["environment"] | {"VLLM_SERVER_DEV_MODE": "0"}
    server = StartedServer([*command, *ON_CPU["arguments"], "--max-model-len", "512"], environment, log, 0)
    try:
        server.wait_ready(f"http://127.0.0.1:{port}", float(os.environ.get("DRIFTGATE_READY", "600")))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def config_of(name, url=None, *more):
    served = [f"teacher={{kind: server, path: sandbox/teacher, urls: ['{url}']}}"] if url else []
    return load_recipe(name, [*SMALL, *served, *more])


@pytest.mark.parametrize("name", ["sandbox/lsm_none", "sandbox/sampled_token_none"])
def test_a_real_server_says_what_the_local_teacher_says(url, tmp_path, name):
    found = [
        collected(config_of(name, where), tmp_path / str(number))[1]["student"].scores.teacher
        for number, where in enumerate((None, url))
    ]
    for key, theirs in found[0].items():
        ours = getattr(found[1], key)
        if key == "top_ids":
            assert float((ours == theirs).float().mean()) > 0.99
        else:
            print(f"{name}: {key} of {len(theirs)} tokens differ by {float((ours - theirs).abs().max()):.1e} at most")
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)


def test_what_a_server_on_a_cpu_cannot_is_refused(url, tmp_path):
    union = ["objective={kind: divergence, support: union, k: 4}"]
    with pytest.raises(InputError, match="teacher: cannot score at_ids"):
        build_run(config_of("sandbox/lsm_none", url, *union), tmp_path)
    with pytest.raises(InputError, match=r"exceed the teacher's context of 511"):
        build_run(config_of("sandbox/lsm_none", url, "rollout.max_new_tokens=500"), tmp_path)
