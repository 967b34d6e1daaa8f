"""Rollouts that older weights have written: `rollout.lag`, `refresh` and `reuse`, in turn and while the student learns.

The twin keeps a copy of the student after every step and looks up which one writes.
"""

import copy
import json
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_resume import stop_after

from driftgate import keyed
from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.rollout.hf import HFEngine
from driftgate.scorers.local import LocalScorer
from driftgate.stop import Stopped
from driftgate.train import build, writing
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.train.portions import Batch, schedule
from driftgate.train.records import make_experience
from driftgate.train.rollouts import prompts_of_batch, sample_responses
from driftgate.train.scoring import behaviour_scores, target_scores
from driftgate.train.weighing import Moment

QUIET = Console(quiet=True)
SERVER = {"kind": "vllm", "urls": ["http://127.0.0.1:1"]}
WAYS = {
    "lag 1": {"lag": 1},
    "lag 2": {"lag": 2},
    "refresh 2": {"refresh": 2},
    "lag 1, refresh 2": {"lag": 1, "refresh": 2},
    "reuse": {"reuse": "run"},
}
STEPS, UPDATES = 5, 4
"""Updates: passes x minibatches of a step."""


def stale(settings, way, **changes):
    rollout = settings["rollout"] | {"allow_truncated": True} | WAYS.get(way, {}) | changes.pop("rollout", {})
    return settings | {"steps": STEPS, "rollout": rollout} | changes


def batch_and_writer(way, step, batches):
    """The rollout batch that a step learns from, the step that learns from it first, and the steps that its writer has
    seen."""
    how = WAYS[way]
    if "reuse" in how:
        order = keyed.generator(3, "reuse", step // batches).permutation(batches) if step >= batches else range(batches)
        number = int(order[step % batches])
        return number, number, 0
    number = step // how.get("refresh", 1)
    first = number * how.get("refresh", 1)
    return number, first, max(first - how.get("lag", 0), 0)


def weights_of_twin(config, way, out):
    """Trains with all copies at hand. Returns the weights, and the ages that the updates saw."""
    made = build_run(config, out)
    students, ages = [copy.deepcopy(made.policy)], []
    batches = -(-len(made.prompts) // config.prompts.per_step)
    every = [batch_and_writer(way, step, batches) for step in range(config.steps)]
    for step, (number, first, seen) in enumerate(every):
        prompts = prompts_of_batch(made.prompts, config, number)
        engines = replace(made.engines, student=HFEngine(students[seen]))
        sampled = sample_responses(engines, prompts, config, first, config.rollout.max_new_tokens, lambda n: None)
        pairs = [(p, response) for p, group in zip(prompts, sampled) for response in group]
        verdicts = [made.grader.of(p).grade(made.decode(r.ids), p.problem.answer) for p, r in pairs]
        written = make_experience(prompts, sampled, verdicts, config, config.rollout.max_new_tokens, seen * UPDATES)
        uses = [s for s, (other, _, _) in enumerate(every) if other == number]
        scorer = LocalScorer(students[seen], config.microbatch_tokens, config.rollout.temperature)
        written = behaviour_scores(config, scorer, "student", written, *uses, fresh=False)
        written = target_scores(config, made.scorers, "student", written, *uses)
        batch = Batch(config, {"student": written}, made.newline_ids)
        for update in schedule(config, step):
            ages.append(made.learner.version - seen * UPDATES)
            moment = Moment(config.seed, step, age=ages[-1])
            made.learner.update(batch.portion(update), moment)
        students.append(copy.deepcopy(made.policy))
    return made.policy.model.state_dict(), ages


def weights(out):
    return load_file(final_model(out) / "model.safetensors")


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]


def assert_same(one, other):
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics_of(one) == metrics_of(other)
    assert {p.name: p.read_text() for p in (one / "rollouts").iterdir()} == {
        p.name: p.read_text() for p in (other / "rollouts").iterdir()
    }


class Remote:
    """A server beside the trainer: it has the weights that it was given last, and writes in the caller's thread."""

    concurrent = True

    def __init__(self):
        self.engine, self.loads, self.threads = HFEngine(None), [], set()

    def load(self, policy, version):
        self.loads.append(version)
        self.engine.load(copy.deepcopy(policy), version)

    def generate(self, requests, sampling, advance=None):
        self.threads.add(threading.current_thread().name)
        return self.engine.generate(requests, sampling, advance)


@pytest.fixture
def remotes(monkeypatch):
    """All engines that are made for students from now on write as servers do."""
    made = []

    def make(*args):
        made.append(Remote())
        return made[-1]

    monkeypatch.setattr(build, "student_engine", make)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_that_the_timetable_names_write(settings, tmp_path, way):
    config = check_config(stale(settings, way))
    expected, ages = weights_of_twin(config, way, tmp_path / "twin")
    run(config, tmp_path / "run", QUIET)
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], expected[name]) for name in found)
    drift = [row["drift_abs"] for row in metrics_of(tmp_path / "run") if row["kind"] == "update"]
    assert [value == 0 for value in drift] == [age == 0 or drift[n] == 0 for n, age in enumerate(ages)]
    assert drift[0] == 0
    assert all(value > 0 for value, age in zip(drift, ages) if age)


@pytest.mark.parametrize("way", ["lag 2", "lag 1, refresh 2", "reuse"])
def test_stops_change_nothing(settings, tmp_path, monkeypatch, way):
    config = check_config(stale(settings, way))
    run(config, tmp_path / "whole", QUIET)
    for updates in (1, 6, 8):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, updates)
            run(config, tmp_path / "run", QUIET)
    run(config, tmp_path / "run", QUIET)
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("way", ["lag 2", "reuse"])
def test_a_stop_in_the_first_rollouts_changes_nothing(settings, tmp_path, monkeypatch, way):
    config = check_config(stale(settings, way))
    run(config, tmp_path / "whole", QUIET)
    begun, original = 0, writing.sample_responses

    def interrupted(*args):
        nonlocal begun
        begun += 1
        if begun == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(writing, "sample_responses", interrupted)
        run(config, tmp_path / "run", QUIET)
    run(config, tmp_path / "run", QUIET)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_refresh_rolls_out_every_n_steps(settings, tmp_path):
    run(check_config(stale(settings, "refresh 2")), tmp_path, QUIET)
    rollouts = [row["step"] for row in metrics_of(tmp_path) if row["kind"] == "rollout"]
    assert rollouts == [1, 3, 5]
    assert sorted(path.stem for path in (tmp_path / "rollouts").iterdir()) == [f"step-00000{n}" for n in (1, 3, 5)]


def test_reuse_writes_every_prompt_once(settings, tmp_path):
    run(check_config(stale(settings, "reuse")), tmp_path, QUIET)
    assert len(list((tmp_path / "rollouts").iterdir())) == len(list((tmp_path / "frozen").iterdir())) == 2
    assert [row["step"] for row in metrics_of(tmp_path) if row["kind"] == "rollout"] == [1, 2]


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "lora"])
@pytest.mark.parametrize("way", ["lag 2", "lag 1, refresh 2"])
def test_written_while_the_student_learns(settings, tmp_path, remotes, way, adapters):
    """A server gives the weights that one process in turn gives."""
    settings = settings | {"teacher": settings["teacher"] | {"context": "{problem}{problem}"}}
    if adapters:
        settings = settings | {"student": settings["student"] | {"lora": {"rank": 4}}}
    config = check_config(stale(settings, way, rollout={"engine": SERVER}))
    run(config, tmp_path / "beside", QUIET)
    [server] = remotes
    assert all(name.startswith("driftgate rollouts") for name in server.threads)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("driftgate.train.source.overlaps", lambda config: False)
        patched.setattr("driftgate.train.policies.overlaps", lambda config: False)
        run(config, tmp_path / "in turn", QUIET)
    model = "adapter_model.safetensors" if adapters else "model.safetensors"
    ours, theirs = (load_file(final_model(tmp_path / name) / model) for name in ("beside", "in turn"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics_of(tmp_path / "beside") == metrics_of(tmp_path / "in turn")


def test_stops_while_a_server_writes_change_nothing(settings, tmp_path, monkeypatch, remotes):
    """The checkpoint keeps the weights that were writing."""
    config = check_config(stale(settings, "lag 2", rollout={"engine": SERVER}))
    run(config, tmp_path / "whole", QUIET)
    kept = 0
    for updates in (1, 2, 4, 2, 3):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, updates)
            run(config, tmp_path / "run", QUIET)
        kept += "writer" in torch.load(final_model(tmp_path / "run").parent / "learner.pt", weights_only=True)
    run(config, tmp_path / "run", QUIET)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert kept


def test_engines_get_only_weights_that_write(settings, tmp_path, remotes):
    run(check_config(stale(settings, "lag 1, refresh 2", rollout={"engine": SERVER})), tmp_path, QUIET)
    assert remotes[0].loads == [0, UPDATES, 3 * UPDATES]


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"reuse": "run", "lag": 1}, "reuse = run with lag = 1"),
        ({"reuse": "run", "refresh": 2}, "reuse = run with refresh = 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, rollout, message):
    with pytest.raises(InputError, match=message):
        check_config(settings | {"rollout": settings["rollout"] | rollout})


def test_a_gate_makes_sense_where_rollouts_are_stale(settings):
    """One update of each rollout batch: in lockstep every gate would be 1."""
    once = settings | {"passes": 1, "minibatch": None}
    with pytest.raises(InputError, match=r"rollout\.lag=1"):
        check_config(once)
    check_config(stale(once, "lag 1"))


def test_more_steps_would_want_rollouts_that_were_not_written(settings, tmp_path):
    run(check_config(stale(settings, "lag 1")), tmp_path, QUIET)
    with pytest.raises(InputError, match=r"steps \(rollout.lag, refresh and reuse write batches for them ahead\)"):
        run(check_config(stale(settings, "lag 1") | {"steps": 9}), tmp_path, QUIET)
