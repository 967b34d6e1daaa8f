"""A training run: all its pieces, where it stands, and what it writes down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.prompts import Prompt
from ..data.rollout import Rollout
from ..data.templates import View
from ..models.policy import Policy
from ..models.save import save_model
from ..models.vocabularies import SharedVocabulary
from ..scorers.scorer import Scorer
from ..scorers.server import ServedScorer
from ..stop import Stopped, StopSignal
from ..world import Alone, World
from . import checkpoint
from .checkpoint import Position
from .display import Display
from .follow import Follower
from .graders import Graders
from .learner import Learner
from .portions import Batch, ScheduledUpdate
from .problems import RunPrompts
from .records import distances
from .rollouts import Engines, controller_after, controller_of
from .routing import gaps_by_teacher
from .source import Source, source_of
from .trackers import Metrics


@dataclass
class Run:
    """Made by `build.build_run`; `loop.train` drives it."""

    config: TrainConfig
    out: Path
    """The run folder."""
    policy: Policy
    """The student."""
    targets: dict[str, Policy]
    """The models of local teachers under "teacher" or "teachers.NAME"; "initial" where a term is held to it; "writer"
    where rollouts are written while the student learns."""
    tokenizer: PreTrainedTokenizerBase
    scorers: Mapping[str, Scorer]
    """"behaviour" (the student), "teacher" and, where a term is held to it, "initial"."""
    engines: Engines
    learner: Learner
    problems: RunPrompts
    views: Mapping[str, View]
    """What each role is shown: "student", and the teachers by their names in the settings."""
    newline_ids: Tensor
    """bool [V], True where a token's text contains a newline."""
    grader: Graders
    position: Position
    pending: dict[int, Rollout] = field(default_factory=dict)
    """The rollout batches that a resumed run has already, by number."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the student and its teachers as the session found them; on rank 0 alone."""
    copies: Mapping[str, Follower] = field(default_factory=dict)
    """What moves the weights of other models after the student's: "teacher" for one that follows it, "writer" for those
    that write rollouts."""
    served: dict[str, ServedScorer] = field(default_factory=dict)
    """The teachers on servers, by their names in the settings."""
    shared: SharedVocabulary | None = None
    """What student and teachers share, where their tokens differ."""
    world: World = field(default_factory=Alone)
    stop: StopSignal = field(default_factory=StopSignal)

    def __post_init__(self) -> None:
        self.display = Display(Console(quiet=True), self.config.steps, self.position.step)
        self.source: Source = source_of(self)
        self.sharded: Any = None
        """Writes the checkpoints of several ranks."""
        if self.world.size > 1:
            from .sharded import ShardedCheckpoints  # a process alone needs none of it

            folder, keep = self.out / "checkpoints", self.config.checkpoint.keep
            student = self.policy, self.tokenizer, self.learner
            self.sharded = ShardedCheckpoints(self.world, folder, keep, *student, self._moved)
        for scorer in self.served.values():
            scorer.check = lambda: self.stop.check()  # the signal's handler comes later
        self.latest: dict[str, float] = {}
        """Metrics of the last update."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Those that are trained on."""
        return self.problems.training

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.out / "metrics.jsonl", self.position, self.world.rank == 0)

    def decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def track(self, update: ScheduledUpdate, metrics: dict[str, float], batch: Batch) -> None:
        """Write an update's metrics down and move on behind it."""
        if update.number == 0:
            student = batch.student
            metrics = metrics | distances(student, self.policy.stop_group) | gaps_by_teacher(self.config, student)
        self.metrics.log("update", **update.place, **metrics)
        self.latest = metrics
        self.position.update = update.number + 1

    def check_stop(self) -> None:
        """Raises Stopped on all ranks where any of them was asked to stop."""
        if self.world.agree(self.stop.requested):
            raise Stopped

    def end_step(self, batch: Batch) -> None:
        """All updates of the batch are done: sync the engine and move on to the next step."""
        writes = self.source.end_step(self.position.step)
        controller = controller_of(self.config, self.position.controller)
        controller = controller_after(self.config, controller, batch)
        self.position = Position(self.position.step + 1, controller=controller)
        if "teacher" in self.copies:
            self.targets["teacher"].release()
            self.copies["teacher"].after_step(self.position.step)
        if writes:
            self.engines.student.load(self.policy, self.learner.version)
        self.display.step(self.position.step, batch.metrics | self.latest)

    def save_if_due(self) -> None:
        """A checkpoint every `checkpoint.every` steps, and one at the end."""
        if self.position.step % self.config.checkpoint.every == 0 or self.position.step == self.config.steps:
            self.save()

    def save(self) -> None:
        """A checkpoint of where the run stands."""
        pending = self.source.pending()
        if self.sharded is not None:
            self.sharded.save(self.position, pending)
            return
        folder, keep, state = self.out / "checkpoints", self.config.checkpoint.keep, self.learner.state_dict()
        state |= {name: copy.weights() for name, copy in self._moved().items()}
        checkpoint.save(folder, self.position, self.write_model, state, pending, keep)

    def _moved(self) -> dict[str, Follower]:
        """The copies whose weights a checkpoint has to keep."""
        kept = ["teacher", *(["writer"] if self.source.writing else [])]
        return {name: copy for name, copy in self.copies.items() if name in kept}

    def write_model(self, folder: Path) -> None:
        save_model(self.policy, self.tokenizer, folder)

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises RunError where it could not be written."""
        if self.sharded is not None:
            self.sharded.wait()
