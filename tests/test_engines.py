"""A real vLLM server on the CPU, by `make test-engines`: syncs, probes that catch the traps, runs, a server that dies.

About five minutes on an idle machine of two cores, most of it the server's start.
"""

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_resume import outcome, stop_after

from driftgate.config import ModelSettings
from driftgate.config.engine import VLLMSettings
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.models.sources import resolve
from driftgate.recipe import load_recipe
from driftgate.rollout.choose import served_engine
from driftgate.rollout.engine import Request, Sampling
from driftgate.serving import vllm_api
from driftgate.serving.client import Limits, RefusedError, ServerError
from driftgate.stop import Stopped
from driftgate.train.command import run
from driftgate.train.folder import final_model

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-engines"),
]
QUIET, CPU = Console(quiet=True), torch.device("cpu")
ON_CPU = {
    "arguments": (
        *("--enforce-eager", "--max-model-len", "1024"),
        # a seed and a prompt that is cut into chunks kill vLLM on a CPU
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"),
    ),
    "environment": {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    },
}
HOW = Sampling(64, 1.0, 0.9, (1,))
REQUESTS = [Request((5, 6, 7, place), tuple(("k", place, n) for n in range(4))) for place in range(8, 16)]


def policy_of(path):
    return Policy(load_model(ModelSettings(path=path), "student", CPU))


@torch.no_grad()
def move(policy, seed, size=0.005):
    torch.manual_seed(seed)
    for parameter in policy.parameters():
        parameter.add_(size * torch.randn(parameter.shape))


def started(path, folder):
    settings = VLLMSettings.model_validate({"kind": "vllm", "start": ON_CPU})
    policy = policy_of(path)
    return served_engine(settings, policy, path, folder), policy


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One server of the embedded student for all tests of this file."""
    made, _ = started("sandbox/student", tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture
def policy(engine):
    """With moved weights, which the server has."""
    made = policy_of("sandbox/student")
    move(made, 1)
    engine.load(made, 1)
    return made


@pytest.fixture
def server(engine):
    return engine.servers.servers[0]


@torch.no_grad()
def logp_of(policy, request, response):
    ids = torch.tensor([[*request.prompt, *response.ids]])
    rows = policy.model(ids, use_cache=False).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(response.ids)[:, None])[:, 0]


def test_answers_are_by_the_synced_weights_and_repeat_themselves(engine, policy):
    first = engine.generate(REQUESTS, HOW)
    assert engine.generate(REQUESTS[::-1], HOW)[::-1] == first
    pairs = [(request, response) for request, group in zip(REQUESTS, first) for response in group]
    gaps = torch.cat([logp_of(policy, *pair) - torch.tensor(pair[1].logprobs) for pair in pairs])
    print(f"\n{len(gaps)} tokens, engine against trainer: mean {gaps.abs().mean():.2g}, max {gaps.abs().max():.2g}")
    assert gaps.abs().max() < 1e-4


def test_every_sync_is_probed(engine, policy, server):
    seconds = []
    for version in range(2, 7):
        move(policy, version)
        began = time.perf_counter()
        engine.load(policy, version)
        seconds.append(time.perf_counter() - began)
        rows = vllm_api.prompt_logprobs(server, engine.probe.short)
        gap = max(abs(row[id] - own) for row, id, own in zip(rows, engine.probe.short[1:], engine.probe.logp.tolist()))
        assert gap < 1e-4
    print(f"\nsync and probes: {min(seconds):.2f} to {max(seconds):.2f} s; last probe off by {gap:.2g}")
    assert vllm_api.weight_version(server) == engine.label


def test_the_prefix_cache_trap_is_caught(engine, policy, monkeypatch):
    """An update without a pause: the prompt's log-probabilities are new, what is decoded behind it is old."""

    def without_pause(server, file, version, wait):
        server.post("/start_weight_update")
        server.post("/update_weights", {"update_info": {"path": file}})
        server.post("/finish_weight_update", {"weight_version": version})

    with monkeypatch.context() as patched:
        patched.setattr(vllm_api, "load_weights", without_pause)
        move(policy, 11, 0.1)
        with pytest.raises(ServerError, match="a token decoded behind a cached prompt") as error:
            engine.load(policy, 8)
    print(f"\n{error.value}")
    engine.load(policy, 9)


def test_another_run_on_the_same_server_is_noticed(engine, policy, server):
    vllm_api.load_weights(server, str(engine.file), "other-1", 60)
    answer = vllm_api.generate(server, (5, 6), 4, 1)
    assert answer.versions == ("other-1",)
    assert engine.generate(REQUESTS[:1], HOW)  # the server is lost, synced again and asked again
    assert vllm_api.weight_version(server) == engine.label


def test_what_a_cpu_cannot_is_said(server):
    with pytest.raises(RefusedError, match="answers 400"):
        vllm_api.chosen_logprobs(server, (5, 6, 7), 0, [[3], [4]])
    assert vllm_api.knows_id(server, 47)
    assert not vllm_api.knows_id(server, 48)


def config_of(engine, *overrides):
    urls = [server.url for server in engine.servers.servers]
    served = f"rollout.engine={{kind: vllm, urls: {json.dumps(urls)}}}"
    sizes = ["steps=5", "prompts.per_step=8", "rollout.samples=4", "checkpoint.every=2", "threads=1"]
    return load_recipe("sandbox/lsm_block64", [served, *sizes, *overrides])


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    """A run of five steps that nothing happens to."""
    out = tmp_path_factory.mktemp("whole")
    run(config_of(engine), out, QUIET)
    return out


def assert_same(one, other):
    one, other = outcome(one), outcome(other)
    assert one[1] == other[1]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


def test_five_steps(whole):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = [row["mismatch_mean"] for row in rows if "mismatch_mean" in row]
    print(f"\nmismatch_mean {min(found):.2g} to {max(found):.2g}")
    assert len(found) >= 5
    assert max(found) < 1e-5


def test_a_resumed_run_ends_with_the_same_bits(engine, whole, tmp_path, monkeypatch):
    stop_after(monkeypatch, 5)
    with pytest.raises(Stopped):
        run(config_of(engine), tmp_path, QUIET)
    monkeypatch.undo()
    run(config_of(engine), tmp_path, QUIET)
    assert_same(whole, tmp_path)


def test_written_while_the_student_learns_or_in_turn_the_bits_are_the_same(engine, tmp_path, monkeypatch):
    run(config_of(engine, "rollout.lag=2"), tmp_path / "beside", QUIET)
    for place in ("source", "policies"):
        monkeypatch.setattr(f"driftgate.train.{place}.overlaps", lambda config: False)
    run(config_of(engine, "rollout.lag=2"), tmp_path / "turn", QUIET)
    assert_same(tmp_path / "beside", tmp_path / "turn")


def test_a_run_that_starts_its_server_survives_its_death(whole, tmp_path, monkeypatch):
    """kill -9 in the middle of a rollout: it is started again, synced, probed, and the bits are the same."""
    started = json.dumps(ON_CPU)
    config = config_of_started(started)
    killed = []

    def killing(api_server, *args, **kwargs):
        if not killed and len(asked) > 60:
            killed.append(worker_of(tmp_path))
            os.kill(killed[0], signal.SIGKILL)
        asked.append(1)
        return original(api_server, *args, **kwargs)

    asked, original = [], vllm_api.generate
    monkeypatch.setattr(vllm_api, "generate", killing)
    run(config, tmp_path, QUIET)
    assert killed
    assert "starts it again" in (tmp_path / "vllm.log").read_text()
    assert_same(whole, tmp_path)
    assert not list(processes_of(tmp_path))


def config_of_started(started):
    sizes = ["steps=5", "prompts.per_step=8", "rollout.samples=4", "checkpoint.every=2", "threads=1"]
    return load_recipe("sandbox/lsm_block64", [f"rollout.engine={{kind: vllm, start: {started}}}", *sizes])


def processes_of(out):
    """Processes whose output goes to the log of a run's server."""
    log = str(out / "vllm.log")
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.readlink(folder / "fd" / "1") == log:
                yield int(folder.name)
        except OSError:
            continue


def worker_of(out):
    """The process that holds the model."""
    names = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in processes_of(out)}
    return next(pid for pid, name in names.items() if b"Worker" in name or b"EngineCore" in name)


def test_the_tied_head_trap_is_caught(tmp_path, monkeypatch):
    """Without the repair a CPU's packed copy of a tied output embedding stays stale."""
    tied = tmp_path / "tied"
    shutil.copytree(resolve("sandbox/student", "student"), tied)
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    weights = load_file(tied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    engine, policy = started(str(tied), tmp_path)
    try:
        move(policy, 3, 0.1)
        engine.load(policy, 1)

        def without_repair(server):
            server.post("/init_weight_transfer_engine", {"init_info": {"repair": False}})

        monkeypatch.setattr(vllm_api, "begin_transfer", without_repair)
        move(policy, 4, 0.1)
        with pytest.raises(ServerError, match="prompt log-probabilities differ") as error:
            engine.load(policy, 2)
        print(f"\n{error.value}")
    finally:
        engine.close()


def test_limits_are_those_of_the_settings(engine):
    assert engine.servers.limits == Limits(answer=1800.0, lost=600.0)


def test_the_model_of_a_run_is_whole(whole):
    assert (final_model(whole) / "model.safetensors").is_file()
