"""Rollouts by servers of vLLM: weights that arrive and are probed, what is refused, and runs that lose a server."""

import pytest
import torch
from conftest import make_model
from fake_vllm import FakeVLLM, logprobs_of
from rich.console import Console
from safetensors.torch import load_file
from test_lora import adapted

from driftgate.config.engine import VLLMSettings
from driftgate.errors import InputError, RunError
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.rollout import vllm_server
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.vllm_server import VLLMEngine
from driftgate.serving import vllm_api
from driftgate.serving.client import Limits, ServerError

pytestmark = pytest.mark.usefixtures("quick")
QUIET, CPU = Console(quiet=True), torch.device("cpu")
REQUESTS = [Request((5, 6, 7), (("a", 0), ("a", 1))), Request((8, 9), (("b", 0),))]
HOW = Sampling(12, 1.0, 0.9, (1,))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tied"), 5, tied=True)


def moved(path):
    """A policy whose weights are no longer those of its folder."""
    policy = Policy(load_model(type("S", (), {"path": path, "dtype": "float32", "quantise": None}), "student", CPU))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return policy


@pytest.fixture
def policy(pair):
    return moved(pair[0])


def engine_of(fake, policy, tmp_path, *others, **settings):
    urls = [server.url for server in (fake, *others)]
    return VLLMEngine(VLLMSettings(kind="vllm", urls=urls, **settings), urls, policy.model.config, tmp_path / "weights")


def test_responses_are_the_synced_weights_own_and_bear_their_version(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 7)
    told = []
    groups = engine.generate(REQUESTS, HOW, told.append)
    assert [len(group) for group in groups] == [2, 1]
    assert sum(told) == 3
    for request, group in zip(REQUESTS, groups):
        for response in group:
            logp = logprobs_of(policy.model, [*request.prompt, *response.ids])[len(request.prompt) - 1 :]
            own = logp.gather(1, torch.tensor(response.ids)[:, None])[:, 0]
            assert response.logprobs == pytest.approx(own.tolist(), abs=1e-5)
            assert response.version == 7
            assert response.finished == (response.ids[-1] == 1)
    assert engine.generate(REQUESTS[1:], HOW) == groups[1:]


def test_every_sampling_parameter_is_sent(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 0)
    engine.generate(REQUESTS, Sampling(12, 0.7, 0.8, (1, 3)))
    body = next(body for path, body in reversed(fake.asked) if path == vllm_api.GENERATE)
    sent = body["sampling_params"]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["min_p"]) == (0.7, 0.8, 0, 0.0)
    assert (sent["ignore_eos"], sent["stop_token_ids"], sent["max_tokens"]) == (True, [1, 3], 12)


@pytest.mark.parametrize("fixture", ["pair", "tied"])
def test_the_file_of_weights_has_the_names_of_a_saved_model(fixture, tmp_path, request):
    path = request.getfixturevalue(fixture)
    path = path if isinstance(path, str) else path[0]
    policy = moved(path)
    with FakeVLLM(path) as fake:
        engine_of(fake, policy, tmp_path).load(policy, 1)
    policy.model.save_pretrained(tmp_path / "saved")
    saved, sent = (
        load_file(tmp_path / "saved" / "model.safetensors"),
        load_file(tmp_path / "weights/weights.safetensors"),
    )
    assert sent.keys() == saved.keys()
    assert ("lm_head.weight" in sent) == (fixture == "pair")
    assert all(torch.equal(sent[name], saved[name]) for name in saved)


def test_weights_arrive_inside_a_pause(fake, policy, tmp_path):
    engine_of(fake, policy, tmp_path).load(policy, 1)
    paths = [path.partition("?")[0] for path, _ in fake.asked]
    first = paths.index("/pause")
    update = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume", "/weight_info"]
    assert paths[first : first + 6] == update
    assert not fake.paused


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "stale",
            r"prompt log-probabilities differ by .* nats .* allowed are 0\.001 .* has other weights, or computes",
        ),
        ("head", r"prompt log-probabilities differ"),
        ("cache", r"a token decoded behind a cached prompt differs by .* a cache of prompts by older weights has surv"),
        ("version", r"it says that its weights are 'default', not '\w+-1'; start it again, and let no other run use"),
    ],
)
def test_a_sync_that_went_wrong_is_noticed(fake, policy, tmp_path, fault, said):
    engine = engine_of(fake, policy, tmp_path)
    fake.fault = fault
    with pytest.raises(ServerError, match=f"{fake.url}: after the sync .*{said}"):
        engine.load(policy, 1)


def test_weights_that_stay_behind_are_named_so(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 1)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    fake.fault = "stale"
    with pytest.raises(ServerError, match="it still answers by the weights before the update"):
        engine.load(policy, 2)


def test_a_stale_tied_head_is_named(tied, tmp_path):
    policy = moved(tied)
    with FakeVLLM(tied) as fake:
        fake.fault = "head"
        with pytest.raises(ServerError, match="its tied output embedding may be stale: start it with driftgate's ext"):
            engine_of(fake, policy, tmp_path).load(policy, 1)


def test_the_tolerance_can_be_set(fake, policy, tmp_path):
    fake.fault = "stale"
    engine_of(fake, policy, tmp_path, tolerance=100.0).load(policy, 1)


def test_an_update_without_a_pause_leaves_the_cache(fake, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_api, "load_weights", without_pause)
    with pytest.raises(ServerError, match="a cache of prompts by older weights"):
        engine_of(fake, policy, tmp_path).load(policy, 1)


def without_pause(server, file, version, wait):
    server.post("/start_weight_update")
    server.post("/update_weights", {"update_info": {"path": file}})
    server.post("/finish_weight_update", {"weight_version": version})


def refused(fake, policy, tmp_path):
    with pytest.raises(InputError) as error:
        engine_of(fake, policy, tmp_path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.29.0"}, "is vLLM 0.29.0; driftgate speaks to vLLM from 0.32 up to, not including, 0.34"),
        ({"dev_mode": False}, "takes no weights, as its dev mode is off; start it with VLLM_SERVER_DEV_MODE=1"),
        ({"extension": False}, "does not know driftgate's extension; start it with --worker-extension-cls driftgate."),
        (
            {"fault": "rubbish"},
            "answers what is no JSON: <html>hello</html>; start vLLM at this address, see docs/serv",
        ),
        ({"fault": "fields"}, "/version has no version; start vLLM at this address"),
        ({"fault": "500"}, "/version answers 500: EngineCore encountered an issue; start vLLM at this address"),
        ({"fault": "rubbish", "fault_path": vllm_api.GENERATE}, "/inference/v1/generate answers what is no JSON"),
        ({"fault": "fields", "fault_path": vllm_api.GENERATE}, "answers other fields than expected"),
    ],
)
def test_a_server_that_cannot_serve_is_refused(fake, policy, tmp_path, change, said):
    for name, value in change.items():
        setattr(fake, name, value)
    assert said in refused(fake, policy, tmp_path)


def test_nobody_at_the_address_is_refused(fake, policy, tmp_path):
    fake.die()
    said = refused(fake, policy, tmp_path)
    assert "/version cannot be reached (Connection refused); start vLLM at this address" in said


def test_a_server_that_hangs_is_refused(fake, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "Limits", lambda **_: Limits(connect=0.1))
    fake.fault = "hang"
    assert "/version has no answer after 0.1 s; start vLLM" in refused(fake, policy, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 64}, "serves another model: its vocab_size is 64, the student's is 48; start it with the stud"),
        ({"layers": 3}, "its num_hidden_layers is 3, the student's is 2"),
        ({"tied": True}, "its tie_word_embeddings is True, the student's is False"),
    ],
)
def test_another_model_is_refused(policy, tmp_path, change, said):
    with FakeVLLM(make_model(tmp_path / "other", 1, **change)) as fake:
        assert said in refused(fake, policy, tmp_path)


def test_too_short_a_context_is_refused(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.check_room(16, 240)
    with pytest.raises(InputError, match=r"its context is 256 tokens, but a prompt of 17 and an answer of 240 need 25"):
        engine.check_room(17, 240)


def test_an_answer_that_was_cut_silently_is_noticed(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 0)
    with pytest.raises(ServerError, match="an answer was cut after 253 of 300 tokens; start it with a larger --max-m"):
        engine.generate(REQUESTS[:1], Sampling(300, 1.0, 0.9, ()))


def test_a_token_that_the_teacher_lacks_is_refused(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    policy.vocabulary = 20
    engine.settings = engine.settings.model_copy(update={"tolerance": 100.0})
    engine.load(policy, 0)
    with pytest.raises(ServerError, match=r"has drawn the token \d+, but student and teacher share 20 only; take a st"):
        engine.generate(REQUESTS, HOW)


def test_a_budget_is_refused(fake, policy, tmp_path):
    with pytest.raises(ValueError, match=r"budget = 0\.1 nats: a server draws from the student alone"):
        engine_of(fake, policy, tmp_path).generate(REQUESTS, Sampling(5, 1.0, 0.9, (1,), 0.1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout": {"engine": "vllm"}}, "kind = vllm needs urls or start, one of the two"),
        ({"rollout": {"engine": {"kind": "vllm", "urls": ["http://a"], "start": {}}}}, "needs urls or start"),
        ({"rollout": {"engine": {"kind": "hf", "urls": ["http://a"]}}}, "urls"),
        ({"rollout": {"engine": {"kind": "vllm", "start": {}}, "kl_budget": 0.1}}, "a server draws from the student a"),
        (
            {
                "student": {"quantise": "4bit", "lora": {"rank": 4}},
                "rollout": {"engine": {"kind": "vllm", "start": {}}},
            },
            "an adapter is not merged into a 4-bit base",
        ),
    ],
)
def test_bad_settings(settings, changes, said):
    with pytest.raises(InputError, match=said):
        check_config(
            {name: settings[name] | changes.get(name, {}) for name in ("rollout", "student")}
            | {name: value for name, value in settings.items() if name not in ("rollout", "student")}
        )


def test_a_server_that_was_restarted_is_synced_and_probed_before_use(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 3)
    expected = engine.generate(REQUESTS, HOW)
    fake.die()
    fake.start()  # it has the weights of its folder now
    syncs = fake.count("/update_weights")
    assert engine.generate(REQUESTS, HOW) == expected
    assert fake.count("/update_weights") == syncs + 1


def test_a_restarted_server_that_comes_back_wrong_ends_the_rollout(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 3)
    fake.die()
    fake.start()
    fake.fault = "stale"
    with pytest.raises(ServerError, match="after the sync prompt log-probabilities differ"):
        engine.generate(REQUESTS, HOW)


def test_adapters_are_merged_before_they_are_sent(fake, pair, tmp_path):
    policy = adapted(pair[0])
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 1)  # probed against the forward through the adapters
    assert load_file(engine.file).keys() == fake.model.state_dict().keys()


def test_a_student_in_bfloat16_is_sent_so_and_may_differ_more(fake, policy, tmp_path):
    policy.compute = "bfloat16"
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 1)
    assert {value.dtype for value in load_file(engine.file).values()} == {torch.bfloat16}
    assert engine.probe.tolerance == 0.1


def test_the_file_of_weights_goes_when_the_engine_is_closed(fake, policy, tmp_path):
    engine = engine_of(fake, policy, tmp_path)
    engine.load(policy, 1)
    assert engine.file.is_file()
    engine.close()
    assert not engine.folder.exists()


def test_a_folder_that_cannot_be_written_to_is_named(fake, policy, tmp_path):
    (tmp_path / "file").write_text("")
    engine = engine_of(fake, policy, tmp_path, weights=str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"rollout\.engine\.weights = .*file: cannot be written to"):
        engine.load(policy, 1)
