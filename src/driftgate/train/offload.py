"""Offloading: models and optimiser state wait in the computer's memory and are on the GPU only while it needs them.

The numbers are copied, never changed, so a run ends with the same bits. Copies go through pinned memory, which a GPU
reads without help of the processor. Where the models run on the CPU there is nothing to move.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.response import Response
from ..method.logits import Head
from ..method.scores import Needs, TokenScores
from ..models.policy import Policy
from ..rollout.engine import Engine, Request, Sampling
from ..scorers.scorer import Scorer


class Parked:
    """A frozen model that waits in the computer's memory. Its weights must not change while it is at work."""

    def __init__(self, policy: Policy):
        """policy: on the GPU, where it also will work; its tensors leave it now."""
        self.policy, self.device = policy, policy.device
        self.waiting = [(tensor, to_memory(tensor.data)) for tensor in _tensors_of(policy)]
        wait_for_copies(self.device)
        self._leave()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The model is on the GPU inside the block."""
        try:
            for tensor, kept in self.waiting:
                tensor.data = to_gpu(kept, self.device)
            yield
        finally:
            self._leave()

    def head(self) -> Head:
        """Its output head alone, as a copy on the GPU."""
        return self.policy.head.map(lambda tensor: to_gpu(tensor, self.device))

    def _leave(self) -> None:
        for tensor, kept in self.waiting:
            tensor.data = kept


class ParkedScorer:
    """A scorer whose model comes to the GPU to score."""

    def __init__(self, scorer: Scorer, model: Parked):
        self.scorer, self.model, self.can = scorer, model, scorer.can

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """See `Scorer.score`."""
        with self.model.at_work():
            return self.scorer.score(batch, needs, groups)


class ParkedEngine:
    """An engine that writes with, or under the guidance of, a model that comes to the GPU for it."""

    concurrent = False

    def __init__(self, engine: Engine, model: Parked):
        self.engine, self.model, self.load = engine, model, engine.load

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`."""
        with self.model.at_work():
            return self.engine.generate(requests, sampling, advance)


def park(config: TrainConfig, student: Policy, targets: Mapping[str, Policy]) -> dict[str, Parked]:
    """The models that wait, by name: those of "teacher" and "initial" that have weights of their own, where `offload`
    says so and they are not on the CPU."""
    if "teacher" not in config.offload or not moves(student.device):
        return {}
    own = {id(parameter) for parameter in student.parameters()}
    still = {name: target for name, target in targets.items() if name != "writer"}
    return {name: Parked(t) for name, t in still.items() if own.isdisjoint(map(id, t.parameters()))}


def park_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep an optimiser's state in the computer's memory from now on; it comes to `device` for each step. Nothing
    happens where that is the CPU. To be called once the state of a resumed run is loaded."""
    if not moves(device):
        return

    def bring(*_: object) -> None:
        _replace_state(optimizer, lambda value: to_gpu(value, device))

    def leave(*_: object) -> None:
        _replace_state(optimizer, to_memory)
        wait_for_copies(device)

    optimizer.register_step_pre_hook(bring)
    optimizer.register_step_post_hook(leave)
    leave()


def moves(device: torch.device) -> bool:
    """Whether a device has a memory of its own."""
    return device.type != "cpu"


def to_memory(tensor: Tensor) -> Tensor:
    """A copy in pinned memory. It is whole only after `wait_for_copies`."""
    return tensor.to("cpu", non_blocking=True)  # torch pins the memory of such a copy


def to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. What is computed there afterwards waits for it by itself."""
    return tensor.to(device, non_blocking=True)


def wait_for_copies(device: torch.device) -> None:
    """Return once all copies to the computer's memory are whole."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors_of(policy: Policy) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*policy.parameters(), *policy.buffers()]


def _replace_state(optimizer: torch.optim.Optimizer, moved: Callable[[Tensor], Tensor]) -> None:
    """All of a state but the numbers of steps, which are small."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[name] = moved(value)
