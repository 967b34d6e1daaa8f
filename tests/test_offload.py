"""Offloading changes no bit: what a phase needs is in place, and what it does not need waits elsewhere."""

import gc

import pytest
import torch
from rich.console import Console
from test_resume import assert_same, outcome, stop_after

from driftgate.errors import InputError
from driftgate.recipe import check_config
from driftgate.scorers.local import LocalScorer
from driftgate.stop import Stopped
from driftgate.train import offload, writing
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.learner import Learner
from driftgate.train.loop import train

QUIET = Console(quiet=True)
BOTH = {"offload": ["teacher", "optimizer"]}
VOCABULARY = {"kind": "divergence", "divergence": "forward_kl"}
INITIAL = {"terms": {"held": {"coef": 0.5, "objective": VOCABULARY | {"target": "initial"}}}}
RUNS = {
    "a support": {},
    "sampled tokens": {"objective": {"kind": "sampled_token"}},
    "the teacher's head": {"objective": VOCABULARY},
    "the initial student": INITIAL,
    "the teacher guides": {"rollout": {"samples": 3, "max_new_tokens": 40, "kl_budget": 0.1}},
    "the teacher begins": {"rollout": {"samples": 3, "max_new_tokens": 40, "teacher_prefix": 4}},
    "the teacher writes": {"terms": {"imitated": {"responses": "teacher", "objective": {"kind": "nll"}}}},
}


class Elsewhere:
    """A stand-in for a computer's memory beside a GPU's: what waits there reads as NaN until it is brought back."""

    def __init__(self):
        self.kept = {}

    def to_memory(self, tensor):
        unreadable = torch.full_like(tensor, float("nan"))
        self.kept[unreadable.data_ptr()] = unreadable, tensor.clone()
        return unreadable

    def to_gpu(self, tensor, device):
        truth = self.kept[tensor.data_ptr()][1][: len(tensor)]
        return truth.to(device, copy=True)


def pretend(monkeypatch, to_memory, to_gpu):
    monkeypatch.setattr(offload, "moves", lambda device: True)
    monkeypatch.setattr(offload, "to_memory", to_memory)
    monkeypatch.setattr(offload, "to_gpu", to_gpu)


@pytest.fixture
def elsewhere(monkeypatch):
    memory = Elsewhere()
    pretend(monkeypatch, memory.to_memory, memory.to_gpu)
    return memory


@pytest.fixture
def copies(monkeypatch):
    """The same with plain copies, so that a checkpoint can be written from what waits."""
    pretend(monkeypatch, lambda tensor: tensor.clone(), lambda tensor, device: tensor.to(device, copy=True))


def waits(tensors):
    """Whether all of them are elsewhere."""
    found = {bool(tensor.isnan().all()) for tensor in tensors}
    assert len(found) == 1
    return found.pop()


def means_of(optimizer):
    return [value for state in optimizer.state.values() for value in state.values() if value.dim()]


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_an_offloaded_run_gives_the_same_bits(settings, tmp_path, elsewhere, changes):
    settings = settings | {"steps": 2, "diagnostics": {"every": 2, "k": 4}} | changes
    settings["rollout"] = settings["rollout"] | {"allow_truncated": True}
    run(check_config(settings), tmp_path / "plain", QUIET)
    assert not elsewhere.kept
    run(check_config(settings | BOTH), tmp_path / "offloaded", QUIET)
    assert elsewhere.kept
    plain, offloaded = outcome(tmp_path / "plain"), outcome(tmp_path / "offloaded")
    assert plain[:2] == offloaded[:2]
    assert all(torch.equal(plain[2][name], offloaded[2][name]) for name in plain[2])


def test_every_phase_leaves_behind_what_it_brought(settings, tmp_path, monkeypatch, elsewhere):
    made = build_run(check_config(settings | INITIAL | BOTH | {"steps": 2}), tmp_path / "run")
    models = {name: [*policy.parameters()] for name, policy in made.targets.items()}
    assert set(models) == {"teacher", "initial"}
    seen = []

    def noted(phase, original):
        def call(*args, **kwargs):
            state = means_of(made.learner.optimizer)
            away = all(waits(tensors) for tensors in models.values())
            seen.append((phase, away, waits(state) if state else True))
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(writing, "sample_responses", noted("rollout", writing.sample_responses))
    monkeypatch.setattr(Learner, "_accumulate", noted("update", Learner._accumulate))
    monkeypatch.setattr(LocalScorer, "score", noted("scores", LocalScorer.score))
    (tmp_path / "run").mkdir()
    train(made)
    assert {phase for phase, *_ in seen} == {"rollout", "update", "scores"}
    assert all(optimizer for *_, optimizer in seen)
    assert all(away for phase, away, _ in seen if phase != "scores")
    assert all(waits(tensors) for tensors in models.values())
    assert waits(means_of(made.learner.optimizer))


def test_a_model_leaves_also_after_an_error(config, tmp_path, elsewhere):
    made = build_run(config, tmp_path)
    model = offload.Parked(made.targets["teacher"])
    with pytest.raises(RuntimeError), model.at_work():
        assert not waits(made.targets["teacher"].parameters())
        raise RuntimeError
    assert waits(made.targets["teacher"].parameters())


@pytest.mark.parametrize("updates", [1, 3, 5, 10])
def test_an_offloaded_run_resumes_bit_for_bit(settings, tmp_path, monkeypatch, copies, updates):
    config = check_config(settings | BOTH)
    run(check_config(settings), tmp_path / "plain", QUIET)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, updates)
        run(config, tmp_path / "offloaded", QUIET)
    run(config, tmp_path / "offloaded", QUIET)
    assert_same(outcome(tmp_path / "offloaded"), outcome(tmp_path / "plain"))


def test_a_resumed_run_waits_from_its_first_phase_on(settings, tmp_path, monkeypatch):
    """A loaded state is moved before anything else is computed."""
    config = check_config(settings | BOTH)
    run(check_config(settings | {"steps": 2}), tmp_path, QUIET)
    memory = Elsewhere()
    pretend(monkeypatch, memory.to_memory, memory.to_gpu)
    made = build_run(config, tmp_path)
    assert waits(means_of(made.learner.optimizer))


def test_offloading_may_change_in_a_run_folder(settings, tmp_path, copies):
    run(check_config(settings), tmp_path / "plain", QUIET)
    run(check_config(settings | {"steps": 2}), tmp_path / "later", QUIET)
    run(check_config(settings | BOTH), tmp_path / "later", QUIET)
    assert_same(outcome(tmp_path / "later"), outcome(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("teacher", r"offload = 'teacher': must be a list; set offload=\[teacher\]"),
        (["student"], "offload.0 = 'student': input should be 'teacher' or 'optimizer'"),
    ],
)
def test_what_cannot_be_offloaded_is_refused(settings, parts, told):
    with pytest.raises(InputError, match=told):
        check_config(settings | {"offload": parts})


def test_on_a_cpu_nothing_moves(settings, tmp_path):
    made = build_run(check_config(settings | BOTH), tmp_path)
    assert isinstance(made.scorers["teacher"], LocalScorer)
    assert not made.learner.optimizer._optimizer_step_pre_hooks


def test_a_target_that_shares_the_student_s_weights_stays(settings, tmp_path, elsewhere):
    made = build_run(check_config(settings), tmp_path)
    config = check_config(settings | BOTH)
    found = offload.park(config, made.policy, {"teacher": made.targets["teacher"], "initial": made.policy})
    assert list(found) == ["teacher"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu_what_waits_takes_no_memory_there(settings, tmp_path):
    settings = settings | {"device": "cuda", "objective": VOCABULARY}
    held, weights = [], []
    for name, changes in {"plain": {}, "offloaded": BOTH}.items():
        gc.collect()  # a learner refers to itself
        before = torch.cuda.memory_allocated()
        made = build_run(check_config(settings | changes), tmp_path / name)
        (tmp_path / name).mkdir()
        train(made)
        made.learner.free_gradients()
        held.append(torch.cuda.memory_allocated() - before)
        waiting = [*made.targets["teacher"].parameters(), *means_of(made.learner.optimizer)]
        size = sum(tensor.nbytes for tensor in waiting)
        assert all(tensor.is_pinned() if changes else tensor.is_cuda for tensor in waiting)
        weights.append([parameter.detach().cpu() for parameter in made.policy.parameters()])
        del made, waiting
    assert held[0] - held[1] >= 0.9 * size
    assert all(torch.equal(one, other) for one, other in zip(*weights))
