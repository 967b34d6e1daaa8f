"""Servers: what the client says of those that fail, work shared by several, and vLLM's calls."""

import pickle
import threading
from dataclasses import replace

import pytest
from fake_vllm import FakeVLLM, logprobs_of

from driftgate.errors import InputError, RunError
from driftgate.serving import vllm_api
from driftgate.serving.client import Limits, LostError, RefusedError, RubbishError, Server
from driftgate.serving.pool import Servers
from driftgate.stop import Stopped

QUICK = Limits(connect=5.0, answer=60.0, retries=2, pause=0.01, lost=60.0, health=0.05)
PROMPT = (5, 6, 7, 8)


@pytest.fixture
def other(pair):
    with FakeVLLM(pair[0]) as server:
        yield server


@pytest.fixture
def server(fake):
    return Server(fake.url, QUICK)


def answer(server, seed):
    return vllm_api.generate(server, PROMPT, 12, seed)


@pytest.mark.parametrize("error", [LostError("http://a", "is gone"), RefusedError("http://a", "no", 400)])
def test_errors_travel_to_other_ranks(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_what_is_no_address_is_refused():
    with pytest.raises(InputError, match=r"urls = '127\.0\.0\.1:8000': is no address; give one such as http://"):
        Server("127.0.0.1:8000")


def test_an_answer_depends_on_its_seed(server):
    assert answer(server, 1) == answer(server, 1)
    assert answer(server, 1) != answer(server, 2)


def test_log_probabilities_of_a_prompt_and_of_chosen_ids(fake, server):
    expected = logprobs_of(fake.model, PROMPT)
    rows = vllm_api.prompt_logprobs(server, PROMPT, 3)
    assert [len(row) in (3, 4) for row in rows] == [True] * 3
    for id, row, whole in zip(PROMPT[1:], rows, expected):
        assert row[id] == pytest.approx(float(whole[id]), abs=1e-6)
    chosen = vllm_api.chosen_logprobs(server, PROMPT, 1, [[3, 4], [5, -1]])
    assert chosen[0].tolist() == pytest.approx(expected[1, [3, 4]].tolist())
    assert chosen[1, 0] == pytest.approx(float(expected[2, 5]))
    assert chosen[1, 1] == -float("inf")


def test_a_server_that_cannot_score_chosen_ids_says_so(fake, server):
    fake.chosen = False
    with pytest.raises(RefusedError, match="answers 400: prompt_logprob_token_ids requires the V2"):
        vllm_api.chosen_logprobs(server, PROMPT, 1, [[3], [5]])


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.32.0", True), ("0.33.0rc1+cpu", True), ("0.31.9", False), ("0.34.0", False), ("1.0.0", False), ("x", False)],
)
def test_versions(version, known):
    assert vllm_api.supported(version) == known


def test_what_a_server_is(fake, server):
    found = vllm_api.served(server)
    assert (found.version, found.model, found.context) == ("0.32.0", "policy", 256)
    assert vllm_api.has_dev_mode(server)
    fake.dev_mode = False
    assert not vllm_api.has_dev_mode(server)
    fake.version = "0.29.1"
    with pytest.raises(RefusedError, match=r"is vLLM 0\.29\.1; driftgate speaks to vLLM from 0\.32 up to, not"):
        vllm_api.served(server)


def test_the_vocabulary_can_be_asked_for(fake, server):
    size = fake.model.config.vocab_size
    assert vllm_api.knows_id(server, size - 1)
    assert not vllm_api.knows_id(server, size)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("500", LostError, "answers 500: EngineCore encountered an issue"),
        ("rubbish", RubbishError, "answers what is no JSON: <html>hello</html>"),
        ("fields", RubbishError, "answers other fields than expected"),
    ],
)
def test_faults_name_the_server_and_what_it_said(fake, server, fault, error, said):
    fake.fault = fault
    with pytest.raises(error, match=f"{fake.url}: {vllm_api.GENERATE} {said}"):
        answer(server, 1)


def test_a_server_that_hangs_is_not_waited_for_longer_than_said(fake):
    fake.fault = "hang"
    with pytest.raises(LostError, match=r"has no answer after 0\.1 s"):
        Server(fake.url, Limits(answer=0.1)).get("/version")


def test_nobody_at_the_address(fake, server):
    fake.die()
    with pytest.raises(LostError, match=r"/version cannot be reached \(Connection refused\)"):
        server.get("/version")
    assert not server.healthy()


def test_a_failure_that_may_pass_is_asked_again_and_a_refusal_is_not(fake, server):
    fake.fault = "500"
    with pytest.raises(LostError):
        server.patient("GET", "/version")
    assert fake.count("/version") == 1 + QUICK.retries
    fake.fault, fake.dev_mode = None, False
    with pytest.raises(RefusedError):
        server.patient("GET", "/weight_info")
    assert fake.count("/weight_info") == 1


def run(pool, count=12, advance=lambda n: None):
    return pool.run(range(count), answer, advance)


def test_servers_share_the_work_and_the_answers_keep_their_order(fake, other):
    alone = run(Servers([fake.url], QUICK, 4))
    told = []
    shared = run(Servers([fake.url, other.url], QUICK, 2), advance=told.append)
    assert shared == alone
    assert sum(told) == 12
    assert other.count(vllm_api.GENERATE)


def test_the_answers_of_a_server_that_dies_are_asked_for_again_from_the_others(fake, other):
    expected = run(Servers([other.url], QUICK))
    fake.die_after = 3
    pool = Servers([fake.url, other.url], QUICK, 2)
    assert run(pool) == expected
    assert pool.alive == {other.url}


def test_a_server_that_comes_back_is_revived_before_it_is_used(fake):
    expected = run(Servers([fake.url], QUICK))
    revived = []
    pool = Servers([fake.url], QUICK, 2, revive=lambda server: revived.append(len(fake.asked)))
    fake.die_after = 3
    back = []

    def restart(count):
        if fake.http is None and not back:
            back.append(fake.start())

    assert run(pool, advance=restart) == expected
    assert len(revived) == 1
    assert pool.alive == {fake.url}


def test_a_server_that_comes_back_wrong_ends_the_work(fake, other):
    def revive(server):
        raise RunError("its weights are other ones")

    pool = Servers([fake.url, other.url], QUICK, 2, revive)
    pool.lose(pool.servers[0])
    other.fault = "hang"
    with pytest.raises(RunError, match="its weights are other ones"):
        run(pool)


def test_without_any_server_the_work_ends_after_the_limit(fake):
    fake.die()
    with pytest.raises(RunError, match=rf"no server is left of {fake.url} for 0\.3 s; the last error was: .* refused"):
        run(Servers([fake.url], replace(QUICK, lost=0.3)))


def test_a_request_that_no_server_survives_is_given_up(fake):
    def poison(server, job):
        raise LostError(server.url, "died of it")

    with pytest.raises(RunError, match="died of it; the same request has failed 5 times, so it is given up"):
        Servers([fake.url], Limits(health=0.01)).run([1], poison)


def test_a_refusal_ends_the_work(fake):
    fake.fault, fake.fault_path = "rubbish", vllm_api.GENERATE
    with pytest.raises(RubbishError):
        run(Servers([fake.url], QUICK))


def test_a_stop_ends_what_is_in_flight(fake):
    fake.fault, fake.fault_path = "hang", vllm_api.GENERATE
    cancelled = []

    def advance(count):
        fake.wait_for(vllm_api.GENERATE, 3)
        raise Stopped

    before = threading.active_count()
    with pytest.raises(Stopped):
        run(Servers([fake.url], QUICK, 3, cancel=cancelled.append), advance=advance)
    assert [server.url for server in cancelled] == [fake.url]
    assert threading.active_count() <= before + 4  # the fake's own threads, which hang
    assert not any(thread.name.endswith("(_serve)") for thread in threading.enumerate())


def test_a_server_that_no_longer_answers_its_health_check_is_left(fake, other):
    """Its connections stand, as where a machine has lost its network."""
    expected = run(Servers([other.url], QUICK))
    fake.fault = "hang"
    limits = Limits(connect=0.1, answer=60.0, health=0.05)
    assert run(Servers([fake.url, other.url], limits, 2)) == expected
