"""The state of a run, on disk: whole or not there at all.

A checkpoint is a folder `step-000012` or, in the middle of a step, `step-000012-update-000003`, written beside its
place under another name and renamed into it. `model/` inside is an ordinary Hugging Face folder.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..data.rollout import Rollout
from ..errors import RunError
from ..horizon import LengthController

PARTIAL = ".partial"
PENDING = "pending"
"""The rollout batches that are still needed, each by its number."""
SHARDS = "shards"
"""What several ranks wrote, each its share."""


@dataclass
class Position:
    """How far a run has come: `step` whole steps, and `update` optimiser updates of the step after them.

    The prompts of a step are a function of its number, so this is the data position too.
    """

    step: int = 0
    update: int = 0
    controller: LengthController | None = None
    """The length controller after the steps done, where the horizon is one."""

    @property
    def name(self) -> str:
        middle = f"-update-{self.update:06d}" if self.update else ""
        return f"step-{self.step:06d}{middle}"


def save(
    folder: Path,
    position: Position,
    write_model: Callable[[Path], None],
    learner_state: dict[str, Any],
    pending: Mapping[int, Rollout],
    keep: int,
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`. Raises RunError where the disk refuses.

    write_model: writes the student into a folder that it makes.
    """
    target = folder / position.name
    if target.exists():
        return target
    with writing(target) as partial:
        begin(partial)
        write_model(partial / "model")
        write_state(partial, position, learner_state, pending)
        complete(partial, target)
    delete_old(folder, keep)
    return target


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """The folder to write a checkpoint into before it is renamed to `target`. Raises RunError where the disk
    refuses."""
    partial = target.with_name(target.name + PARTIAL)
    try:
        yield partial
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors wrap "no space left" in their own
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"checkpoint {target}: could not be written ({error}); the one before is kept. "
            f"Free disk space and run the same command again to go on"
        ) from error


def begin(partial: Path) -> None:
    """An empty folder, and none that an earlier attempt left."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for stale in partial.parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(stale)
    partial.mkdir()


def write_state(
    partial: Path, position: Position, learner_state: dict[str, Any], pending: Mapping[int, Rollout]
) -> None:
    """Everything but the models."""
    torch.save(learner_state | {"random": torch.get_rng_state()}, partial / "learner.pt")
    for number, rollout in pending.items():
        rollout.save(partial / PENDING / f"{number:06d}")
    (partial / "position.json").write_text(json.dumps(asdict(position)))


def complete(partial: Path, target: Path) -> None:
    """Push the checkpoint to the disk and make it count."""
    _flush(partial)
    partial.rename(target)
    _sync(target.parent)


def delete_old(folder: Path, keep: int) -> None:
    """All but the newest `keep`."""
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def all_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.startswith("step-") and not path.name.endswith(PARTIAL)
    )


def load(path: Path) -> tuple[Position, dict[str, Any], dict[int, Rollout]]:
    """Position, learner state and the pending rollout batches, by number. Restores torch's random state. The model is
    loaded apart."""
    values = json.loads((path / "position.json").read_text())
    if values.get("controller") is not None:
        values["controller"] = LengthController(**values["controller"])
    position = Position(**values)
    state = torch.load(path / "learner.pt", weights_only=True, map_location="cpu")
    torch.set_rng_state(state.pop("random"))
    folders = sorted((path / PENDING).glob("*"))
    return position, state, {int(folder.name): Rollout.load(folder) for folder in folders}


def _flush(folder: Path) -> None:
    """Push every file to the disk before the rename makes the checkpoint count."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
