"""A teacher on servers says what the local one says; what servers cannot, or get wrong, is refused or survived."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import collected, learn, make_model
from fake_vllm import FakeVLLM
from rich.console import Console

from driftgate.errors import InputError, RunError
from driftgate.method.scores import Needs
from driftgate.recipe import check_config
from driftgate.scorers.served_teacher import About, TeacherServers
from driftgate.scorers.server import ServedScorer
from driftgate.stop import Stopped
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.weighing import Moment
from driftgate.world import Alone

QUIET = Console(quiet=True)
NOT_DIAGNOSED = {"diagnostics": {"every": 0}}
DOCS = Path(__file__).parent.parent / "docs" / "teachers.md"


@pytest.fixture(scope="module")
def server(pair):
    with FakeVLLM(pair[1]) as fake:
        yield fake


@pytest.fixture(scope="module")
def cpu_server(pair):
    """Without chosen ids, as vLLM on a CPU."""
    with FakeVLLM(pair[1], chosen=False) as fake:
        yield fake


def at(settings, *urls, **more):
    """The same run with its teacher on servers."""
    teacher = settings["teacher"] | {"kind": "server", "urls": list(urls)} | more
    rollout = settings["rollout"] | {"allow_truncated": True}
    return settings | {"teacher": teacher, "rollout": rollout, "device": "cpu", "steps": 1} | NOT_DIAGNOSED


def divergence(**how):
    return {"kind": "divergence", "k": 4, **how}


OBJECTIVES = {
    "sampled_token": ({"kind": "sampled_token"}, True),
    "lsm": ({"kind": "lsm", "k": 6}, True),
    "candidates": ({"kind": "candidates", "k": 6}, False),
    "divergence, support=teacher": (divergence(support="teacher", divergence="forward_kl", mass="tail"), True),
    "divergence, support=intersection": (divergence(support="intersection"), True),
    "divergence, support=student": (divergence(support="student", mass="tail"), False),
    "divergence, support=union": (divergence(support="union", divergence="jsd"), False),
}
"""Name -> settings, and whether a server on a CPU can serve it."""


def trained(config, out):
    """The teacher's scores of a rollout, and the metrics of two updates."""
    made, responses = collected(check_config(config), out)
    metrics = [learn(made.config, made, responses, range(12), Moment(3, 0, age)) for age in range(2)]
    return dict(responses["student"].scores.teacher.items()), metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_served_teacher_says_what_the_local_one_says(settings, server, cpu_server, tmp_path, name):
    objective, on_cpu = OBJECTIVES[name]
    local = at(settings) | {"objective": objective} | {"teacher": settings["teacher"]}
    theirs, their_metrics = trained(local, tmp_path / "local")
    for number, fake in enumerate([server, cpu_server] if on_cpu else [server]):
        ours, our_metrics = trained(at(settings, fake.url) | {"objective": objective}, tmp_path / str(number))
        assert ours.keys() >= {"logp"}
        for key in ours.keys() & theirs.keys():
            if key == "top_ids":
                assert ours[key].dtype == torch.int32
                assert float((ours[key] == theirs[key]).float().mean()) > 0.99  # two that are equal but for rounding
            else:
                assert ours[key].dtype == torch.float32
                assert torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-4)
        assert our_metrics == [pytest.approx(expected, rel=1e-2, abs=1e-4) for expected in their_metrics]
    if not on_cpu:
        with pytest.raises(InputError, match=r"teacher: cannot score at_ids"):
            build_run(check_config(at(settings, cpu_server.url) | {"objective": objective}), tmp_path / "refused")


def test_the_page_lists_what_servers_can_serve():
    rows = re.findall(r"^\| `(.*?)` \| (yes|no) \| (yes|no) \|$", DOCS.read_text(), re.MULTILINE)
    listed = {name.replace("`", ""): cpu == "yes" for name, gpu, cpu in rows if gpu == "yes"}
    assert listed == {name: on_cpu for name, (_, on_cpu) in OBJECTIVES.items()}
    assert {name for name, gpu, _ in rows if gpu == "no"} == {"divergence, support=vocabulary", "teacher_entropy"}


def test_the_teacher_sees_its_own_prompt_and_dropped_tokens_stay_out(settings, server, tmp_path):
    context = {"context": "{problem} = 7, so {problem}"}
    found = []
    for teacher in (settings["teacher"], at(settings, server.url)["teacher"]):
        changed = at(settings) | {"objective": OBJECTIVES["divergence, support=union"][0], "drop_tokens": [5, 9, 11]}
        found.append(trained(changed | {"teacher": teacher | context}, tmp_path / str(len(found)))[0])
    for key in ("logp", "at_ids", "top_logp"):
        assert torch.allclose(found[0][key], found[1][key], rtol=0, atol=1e-4)


def test_only_the_rows_of_the_response_are_asked_for_by_chosen_ids(settings, server, tmp_path):
    server.asked.clear()
    made, responses = collected(
        check_config(at(settings, server.url) | {"objective": OBJECTIVES["candidates"][0]}), tmp_path
    )
    batch = responses["student"]
    asked = [body["sampling_params"] for path, body in server.asked if path.startswith("/inference")]
    chosen = [params for params in asked if len(params.get("prompt_logprob_token_ids", [[0]])[0]) > 1]
    assert sorted(len(params["prompt_logprob_token_ids"]) for params in chosen) == sorted(map(len, batch.responses))
    assert {params["prompt_logprob_start"] for params in chosen} == {len(prompt) - 1 for prompt in batch.prompts}


def test_a_run_with_a_served_teacher_is_recorded_and_resumes(settings, server, tmp_path, pair):
    config = check_config(at(settings, server.url) | {"steps": 1})
    run(config, tmp_path / "run", QUIET)
    [session] = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert session["served_teachers"]["teacher"]["model"] == "policy"
    assert len(session["teacher_sha256"]) == 64
    with FakeVLLM(pair[1]) as elsewhere:
        run(check_config(at(settings, elsewhere.url) | {"steps": 2}), tmp_path / "run", QUIET)
    said = r"teacher.urls: the model is not the one that .* it says other log-prob"
    with FakeVLLM(make_model(tmp_path / "other", 9, hidden=48)) as other, pytest.raises(InputError, match=said):
        run(check_config(at(settings, other.url) | {"steps": 3}), tmp_path / "run", QUIET)


def test_scores_of_a_served_teacher_can_be_kept(settings, server, tmp_path):
    config = check_config(at(settings, server.url, cache=str(tmp_path / "scores")))
    first = collected(config, tmp_path / "1")[1]["student"]
    server.asked.clear()
    again = collected(config, tmp_path / "2")[1]["student"]
    assert torch.equal(first.scores.teacher.top_logp, again.scores.teacher.top_logp)
    assert all(len(body["token_ids"]) in (1, 37) for path, body in server.asked if path.startswith("/inference"))


def test_one_of_several_teachers_may_be_served(settings, server, pair, tmp_path):
    rows = [{"id": f"p{i}", "problem": f"{i}+1=", "teacher": "ab"[i % 2]} for i in range(4)]
    (tmp_path / "routed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for teacher in ({"path": pair[1]}, at(settings, server.url)["teacher"]):
        teachers = {"a": teacher, "b": {"path": "student"}}
        prompts = {"path": str(tmp_path / "routed.jsonl"), "per_step": 4}
        changed = at(settings) | {"teacher": None, "teachers": teachers, "prompts": prompts}
        found.append(collected(check_config(changed), tmp_path / str(len(found)))[1]["student"].scores.teacher)
    assert torch.allclose(found[0].top_logp, found[1].top_logp, rtol=0, atol=1e-4)


def test_a_dead_server_s_work_moves_on(settings, pair, tmp_path):
    with FakeVLLM(pair[1]) as one, FakeVLLM(pair[1]) as other:
        made = build_run(check_config(at(settings, one.url, other.url)), tmp_path)
        one.die_after = 2
        tmp_path.mkdir(exist_ok=True)
        batch = made.source.take(made.position).responses["student"]
        assert one.http is None
    local = collected(check_config(at(settings) | {"teacher": settings["teacher"]}), tmp_path / "local")[1]["student"]
    ours, theirs = batch.scores.teacher.top_logp, local.scores.teacher.top_logp
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)


def test_without_a_server_the_run_waits_then_stops_with_a_checkpoint(settings, pair, tmp_path):
    with FakeVLLM(pair[1]) as fake:
        config = check_config(at(settings, fake.url, patience=0.5))
        fake.die_after = 12  # those of the beginning, and a few of the batch
        with pytest.raises(
            RunError, match=r"no server is left .* for 0.5 s.*the last checkpoint is .*step-000000"
        ) as error:
            run(config, tmp_path / "run", QUIET)
        assert len(str(error.value).splitlines()) == 1
        fake.start()
        run(config, tmp_path / "run", QUIET)


def test_a_run_that_is_asked_to_stop_does_not_wait_for_servers(settings, pair, tmp_path):
    with FakeVLLM(pair[1]) as fake:
        made = build_run(check_config(at(settings, fake.url)), tmp_path / "run")
        fake.fault, fake.fault_path = "hang", "/inference"
        (tmp_path / "run").mkdir()

        class Asked:
            def check(self):
                if fake.count("/inference") > 8:
                    raise Stopped

        made.stop = Asked()
        with pytest.raises(Stopped):
            made.source.take(made.position)


class Rank(Alone):
    """One of two ranks that run one after the other."""

    size = 2

    def __init__(self, rank, shared):
        self.rank, self.shared = rank, shared

    def share(self, value):
        if self.rank == 0:
            self.shared.append(value)
            return [value, None]
        return [self.shared.pop(0), value]


def test_rank_0_alone_asks_and_all_get_the_scores_or_the_error(settings, pair, tmp_path):
    with FakeVLLM(pair[1]) as fake:
        config = check_config(at(settings, fake.url, patience=0.3))
        made, responses = collected(config, tmp_path)
        batch, found = responses["student"], []
        shared = []
        vocabulary = made.policy.vocabulary_size

        def connect():
            return TeacherServers(config.teacher, "teacher", vocabulary, 6)

        ranks = [ServedScorer(connect, Rank(rank, shared), 6) for rank in (0, 1)]
        found = [rank.score(batch, Needs(top=6)) for rank in ranks]
        assert torch.equal(found[0].top_logp, found[1].top_logp)
        assert torch.equal(found[0].top_logp, batch.scores.teacher.top_logp)
        assert not ranks[1].made
        fake.die()
        said = []
        for rank in ranks:
            with pytest.raises(RunError, match="no server is left") as error:
                rank.score(batch, Needs(top=6))
            said.append(str(error.value))
        assert said[0] == said[1]


def test_a_model_is_known_again_within_rounding():
    about = About("m", 100, True, (-1.0, -2.0))
    assert about.is_another(About("m", 50, False, (-1.004, -2.003))) is None
    assert "serves 'n'" in about.is_another(About("n", 100, True, (-1.0, -2.0)))
    assert "by 0.5 nats" in about.is_another(About("m", 100, True, (-1.5, -2.5)))
    assert about.is_another(About("m", 100, True, (-1.0,)))
    assert about.is_another(About("m", 100, True, (math.nan, -2.0)))
