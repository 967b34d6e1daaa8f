"""Checkpoints of a run on several ranks: each writes its shards (torch.distributed.checkpoint) while training goes on.

`shards/` in a checkpoint's folder holds the weights and the optimiser's moments. From it rank 0 makes `model/`, the
Hugging Face folder, one layer in memory at a time; then the folder counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerBase

from ..data.rollout import Rollout
from ..errors import RunError
from ..models.policy import Policy
from ..models.save import save_layers
from ..world import World
from . import checkpoint
from .checkpoint import SHARDS, Position

if TYPE_CHECKING:
    from .follow import Follower
    from .learner import Learner


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, beside the number of steps."""


class ShardedCheckpoints:
    """Writes them one at a time, in the background; a second one waits for the first."""

    def __init__(
        self,
        world: World,
        folder: Path,
        keep: int,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        learner: Learner,
        copies: Callable[[], Mapping[str, Follower]],
    ):
        """copies: gives the models that have followed the student, by name."""
        self.world, self.folder, self.keep = world, folder, keep
        self.policy, self.tokenizer, self.learner, self.copies = policy, tokenizer, learner, copies
        self.group: Any = dist.new_group(backend="gloo")  # its own, as the training's collectives go on meanwhile
        self.written: Future | None = None
        self.finisher: Thread | None = None
        self.error: RunError | None = None

    def save(self, position: Position, pending: Mapping[int, Rollout]) -> None:
        """Every rank calls this; it returns once the weights are copied. Raises RunError where the disk refuses, this
        time or the last."""
        self.wait()
        target = self.folder / position.name
        if self.world.share(target.exists())[0]:
            return
        if self.world.rank == 0:
            with checkpoint.writing(target) as partial:
                checkpoint.begin(partial)
                checkpoint.write_state(partial, position, self.learner.state_dict(), pending)
        self.world.share(None)  # the folder is there
        self.policy.release()
        state = weights_of(self.policy) | moments_of(self.learner) | weights_of_copies(self.copies())
        shards = target.with_name(target.name + checkpoint.PARTIAL) / SHARDS
        # copied before the call returns: the next update changes them while they are written
        writer = FileSystemWriter(shards)
        self.written = cast(Future, async_save(state, storage_writer=writer, process_group=self.group))
        self.finisher = Thread(target=self._finish, args=(target,), name="driftgate checkpoint", daemon=True)
        self.finisher.start()

    def wait(self) -> None:
        """Until the last one is whole. Raises RunError where it could not be written."""
        if self.finisher is not None:
            self.finisher.join()
            self.finisher = self.written = None
        if self.error is not None:
            raise self.error

    def _finish(self, target: Path) -> None:
        assert self.written is not None
        try:
            with checkpoint.writing(target) as partial:
                _wait_for(self.written)  # on rank 0: for the shards of all ranks
                if self.world.rank == 0:
                    save_layers(self.policy, self.tokenizer, partial / "model", lambda like: read(partial, like))
                    checkpoint.complete(partial, target)
                    checkpoint.delete_old(self.folder, self.keep)
        except RunError as error:
            self.error = error


def _wait_for(written: Future) -> None:
    """Raises RuntimeError, with the ranks that failed."""
    try:
        written.result()
    except CheckpointException as error:
        why = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
        raise RuntimeError(why) from error


def read(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights from a checkpoint's shards; like: their names, shapes and types."""
    found = {f"model.{name}": torch.empty(v.shape, dtype=v.dtype) for name, v in like.items()}
    _read_into(found, folder, alone=True)
    return {name.removeprefix("model."): value for name, value in found.items()}


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """What is trained, each as a shard."""
    return {f"model.{name}": p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def moments_of(learner: Learner) -> dict[str, Tensor]:
    """The optimiser's state by parameter, each as a shard."""
    every = ((name, learner.optimizer.state.get(p, {})) for name, p in learner.named_parameters())
    return {f"{key}.{name}": value for name, state in every for key, value in state.items()}


def weights_of_copies(copies: Mapping[str, Follower]) -> dict[str, Tensor]:
    """The weights of models that have followed the student, each as a shard."""
    return {f"{name}.{n}": value for name, copy in copies.items() for n, value in enumerate(copy.weights())}


def restore(folder: Path, learner: Learner, copies: Mapping[str, Follower], state: Mapping[str, Any]) -> None:
    """The optimiser's moments and the models that have followed the student, as far as they are there, from a
    checkpoint of any number of ranks, for any number of ranks. state: what `checkpoint.load` gave. Raises ValueError
    for a model of another shape."""
    if (folder / SHARDS).is_dir():
        _load_moments(folder, learner)
        saved = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
        there = {name: copy for name, copy in copies.items() if f"{name}.0" in saved}
        _read_into(weights_of_copies(there), folder, alone=learner.world.size == 1)
        return
    _shard_moments(learner)
    for name, copy in copies.items():
        if name in state:
            copy.load([sharded_like(p, value) for p, value in zip(copy.weights(), state[name], strict=True)])


def _load_moments(folder: Path, learner: Learner) -> None:
    saved = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    sizes = {key.removeprefix("exp_avg."): cast(Any, saved[key]).size for key in saved if key.startswith("exp_avg.")}
    own = dict(learner.named_parameters())
    for name, size in sizes.items():
        if name not in own or own[name].shape != size:
            raise ValueError(f"{name} {list(size)} is not a weight of the student")
    found: dict[str, Tensor] = {}
    for name in sizes:
        found[f"step.{name}"] = torch.zeros((), device=own[name].device)
        found |= {f"{key}.{name}": torch.zeros_like(own[name].detach()) for key in MOMENTS}
    _read_into(found, folder, alone=learner.world.size == 1)
    for name in sizes:
        learner.optimizer.state[own[name]] = {key: found[f"{key}.{name}"] for key in ("step", *MOMENTS)}


def _read_into(found: dict[str, Tensor], folder: Path, alone: bool) -> None:
    """alone: read by one rank, without a word to the others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is meant
        load(found, storage_reader=FileSystemReader(folder / SHARDS), no_dist=alone)


def _shard_moments(learner: Learner) -> None:
    """Whole moments, as one process saves them, cut as the parameters are."""
    for parameter, state in learner.optimizer.state.items():
        for key, value in state.items():
            if value.dim():
                state[key] = sharded_like(parameter, value)


def sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, which every rank holds."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
