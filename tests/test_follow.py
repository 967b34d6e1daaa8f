"""A teacher that is the student and follows it; runs with adapters and with such a teacher resume bit for bit."""

import os
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_lora import metrics_of

from driftgate.errors import InputError
from driftgate.method.scores import Needs
from driftgate.models import lora
from driftgate.recipe import check_config
from driftgate.stop import Stopped
from driftgate.train import loop
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.train.loop import train
from driftgate.train.source import source_of

QUIET = Console(quiet=True)
WAYS = {
    "adapter": (True, None),
    "adapter, ema": (True, {"ema": 0.5}),
    "adapter, every 2": (True, {"every": 2}),
    "full, ema": (False, {"ema": 0.5}),
    "full, every 2": (False, {"every": 2}),
}
UPDATES = 3 * 2 * 2  # steps x passes x minibatches of the fixture


def config_of(settings, way, **changes):
    adapters, follow = WAYS[way]
    student = settings["student"] | ({"lora": {"rank": 4}} if adapters else {})
    return check_config(settings | {"student": student, "teacher": {"path": "student", "follow": follow}} | changes)


def outcome(out):
    model = final_model(out)
    learner = torch.load(model.parent / "learner.pt", weights_only=True)
    tensors = [value for entry in learner["optimizer"]["state"].values() for value in entry.values()]
    weights = load_file(next(model.glob("*.safetensors")))
    return metrics_of(out), [weights[name] for name in sorted(weights)], tensors + learner.get("teacher", [])


def assert_same(one, other):
    assert one[0] == other[0]
    for ours, theirs in zip(one[1:], other[1:]):
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def stopped_and_resumed(config, out, monkeypatch, updates):
    done, original = 0, loop.timed_update

    def counted(*args):
        nonlocal done
        done += 1
        values = original(*args)
        if done == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(loop, "timed_update", counted)
        run(config, out, QUIET)
    run(config, out, QUIET)
    return outcome(out)


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_after_any_update_changes_nothing(settings, tmp_path, monkeypatch, way):
    config = config_of(settings, way)
    run(config, tmp_path / "whole", QUIET)
    whole = outcome(tmp_path / "whole")
    every = range(1, UPDATES) if way == "adapter, ema" else (3, 4, 9)  # inside a step, at the end of one, in the last
    for updates in every:
        assert_same(stopped_and_resumed(config, tmp_path / str(updates), monkeypatch, updates), whole)


def both(made):
    """The parameters of student and teacher, as they are now."""
    return [torch.cat([p.detach().double().flatten() for p in part]) for part in zip(*made.copies["teacher"].pairs)]


@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][1]])
def test_the_teacher_moves_between_steps_as_told(settings, tmp_path, monkeypatch, way):
    adapters, follow = WAYS[way]
    (tmp_path / "run").mkdir()
    made = build_run(config_of(settings, way), tmp_path / "run")
    student, teacher = both(made)
    assert torch.equal(student, teacher)
    assert len(student) == sum(p.numel() for p in made.learner.parameters)
    seen, original = [], type(made).end_step

    def noted(self, batch):
        assert torch.equal(both(made)[1], seen[-1] if seen else teacher)  # the same one for the whole step
        original(self, batch)
        after, expected = both(made)
        last = seen[-1] if seen else teacher
        if "ema" in follow:
            torch.testing.assert_close(expected, 0.5 * last + 0.5 * after, rtol=0, atol=1e-6)
        else:
            assert torch.equal(expected, after if self.position.step % 2 == 0 else last)
        seen.append(expected)

    monkeypatch.setattr(type(made), "end_step", noted)
    train(made)
    assert len(seen) == 3
    assert not torch.equal(seen[-1], teacher)
    if adapters:
        assert not any(p.requires_grad for p in made.policy.adapters.parameters(lora.FOLLOWER))


def test_a_teacher_that_was_just_copied_scores_as_the_student_does(settings, tmp_path):
    config = config_of(settings, "adapter, every 2", steps=2)
    (tmp_path / "run").mkdir()
    made = build_run(config, tmp_path / "run")
    train(made)
    made.config = made.config.model_copy(update={"steps": 3})
    batch = source_of(made).take(made.position).responses["student"]
    ours, theirs = (made.scorers[name].score(batch, Needs(logp=True)).logp for name in ("behaviour", "teacher"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("teacher", "cause"),
    [
        ({"path": "student", "follow": {}}, "give every or ema"),
        ({"path": "student", "follow": {"every": 2, "ema": 0.5}}, "give every or ema"),
        ({"path": "student", "follow": {"ema": 1.0}}, "teacher.follow.ema = 1.0"),
        ({"path": "student", "dtype": "bfloat16", "follow": {"ema": 0.9}}, "swallows small moves"),
        ({"follow": {"every": 2}}, "set teacher.path=student"),
    ],
)
def test_what_cannot_follow_is_refused(settings, teacher, cause):
    with pytest.raises(InputError) as caught:
        check_config(settings | {"teacher": settings["teacher"] | teacher})
    assert cause in str(caught.value)


def test_the_teacher_on_the_student_s_base_has_its_types(settings):
    student = settings["student"] | {"lora": {"rank": 4}, "dtype": "bfloat16"}
    config = check_config(settings | {"student": student, "teacher": {"path": "student"}})
    assert config.teacher.dtype == "bfloat16"
    assert check_config(config.model_dump()) == config


def test_a_teacher_that_moves_is_not_offloaded(settings):
    with pytest.raises(InputError, match="a teacher that moves does not wait"):
        config_of(settings, "full, ema", offload=["teacher"])
    config_of(settings, "adapter, ema", offload=["teacher"])
