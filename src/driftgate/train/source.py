"""Where rollout batches come from: the responses of a step, scored by the student and the teacher."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..data.rollout import Rollout
from ..errors import RunError
from . import checkpoint
from .background import Background
from .checkpoint import Position
from .portions import Batch
from .timetable import Timetable, overlaps
from .writing import Writing, alone, score_by_targets, timed

if TYPE_CHECKING:
    from .run import Run


class Source(Protocol):
    """Gives the batch of each step, with the version of the weights that wrote it."""

    writing: bool
    """Whether batches are being written by weights that the student has left behind."""

    def take(self, position: Position) -> Batch:
        """The scored batch of a step: the same one until `end_step`."""
        ...

    def end_step(self, step: int) -> bool:
        """A step, counted from 0, has been learned from. Returns once nothing writes with the weights before it any
        more. True where the weights after it write a batch, so that engines have to load them."""
        ...

    def pending(self) -> dict[int, Rollout]:
        """The batches that a checkpoint has to keep, by number."""
        ...

    def leave(self) -> None:
        """The session ends: give up what is being written."""
        ...


class InTurn:
    """Rollout, scores, updates, in turn. Batches are written when the timetable says so: in lockstep, or ahead of the
    step that needs them.

    They are scored at once by the weights that wrote them, so that no copy of these is needed later.
    """

    writing = False

    def __init__(self, run: Run):
        self.run, self.waiting = run, dict(run.pending)
        self.timetable = Timetable(run.config, len(run.prompts))
        self.batch: Batch | None = None

    def take(self, position: Position) -> Batch:
        if self.batch is None:
            self.begin(position)
            number = self.timetable.batches[position.step]
            rollout = self.written(number)
            if position.update == 0:
                self.score(number, rollout, position.step)
            self.batch = Batch(self.run.config, rollout.responses, self.run.newline_ids, rollout.metrics)
        return self.batch

    def begin(self, position: Position) -> None:
        """Write what the weights at a position have to write."""
        if position.update == 0:
            for number in self.missing(position.step):
                self.waiting[number] = Writing(self.run, number, self.timetable.uses[number], position).write()

    def missing(self, step: int) -> list[int]:
        """The batches that the weights after `step` steps have to write, without those that are there."""
        return [number for number in self.timetable.due.get(step, []) if number not in self.waiting]

    def written(self, number: int) -> Rollout:
        """A batch that has been begun. Raises RunError where the checkpoint of a resumed run lacks it."""
        if number not in self.waiting:
            raise RunError(
                f"{self.run.out}: its newest checkpoint lacks rollout batch {number + 1}, which the student cannot "
                f"write any more; delete that checkpoint to go on from the one before"
            )
        return self.waiting[number]

    def score(self, number: int, rollout: Rollout, step: int) -> None:
        """Have the targets score a batch before the first step that learns from it, and where the teacher moves before
        each; log it."""
        run, steps = self.run, self.timetable.uses[number]
        if not rollout.scored or "teacher" in run.copies:
            score_by_targets(run, rollout, steps)
        if step == steps[0]:
            run.metrics.log("rollout", step=step + 1, **rollout.metrics)

    def end_step(self, step: int) -> bool:
        self.batch = None
        self.waiting = {n: rollout for n, rollout in self.waiting.items() if not self.timetable.done(n, step + 1)}
        return step + 1 in self.timetable.due

    def pending(self) -> dict[int, Rollout]:
        return self.waiting

    def leave(self) -> None:
        pass


class Overlapped(InTurn):
    """Servers write while the student learns. A frozen copy of the weights that write scores what comes back."""

    def __init__(self, run: Run):
        super().__init__(run)
        self.writings: dict[int, Writing] = {}
        self.engines = alone(run.engines)
        self.background = Background(run.world, lambda responses: run.display.advance(responses))

    @property
    def writing(self) -> bool:
        return bool(self.writings)

    def begin(self, position: Position) -> None:
        """In the middle of a step a resumed run has the writer's weights, from the checkpoint."""
        missing = self.missing(position.step)
        if position.update == 0:
            self.run.copies["writer"].after_step(position.step)
        elif missing:
            version = self.run.learner.version - position.update
            self.run.engines.student.load(self.run.targets["writer"], version)
        for number in missing:
            writing = self.writings[number] = Writing(self.run, number, self.timetable.uses[number], position)
            self.background.start(number, partial(writing.sample, self.engines))
        self.run.display.rollout(sum(writing.responses for writing in self.writings.values()))

    def written(self, number: int) -> Rollout:
        for begun in list(self.writings):
            if number not in self.waiting:
                self._receive(begun)
        return super().written(number)

    def end_step(self, step: int) -> bool:
        for number in list(self.writings):
            self._receive(number)
        return super().end_step(step)

    def leave(self) -> None:
        self.background.leave()

    def _receive(self, number: int) -> None:
        """Wait for a batch, and have the writer score it."""
        waited: dict[str, float] = {}
        with timed(waited, "seconds_waited"):
            written = self.background.take(number, self.run.stop)
        writing = self.writings[number]
        rollout = writing.complete(written.sampled, "writer", {"seconds_rollout": written.seconds} | waited)
        self.waiting[number] = rollout
        del self.writings[number]


class Frozen(InTurn):
    """All batches are written before the first step, and kept in the run folder."""

    def begin(self, position: Position) -> None:
        if position.step or position.update:
            return
        run = self.run
        stored = run.world.share([n for n in self.timetable.uses if self._folder(n).exists()])[0]
        for number, steps in self.timetable.uses.items():
            if number not in stored:
                rollout = Writing(run, number, steps, position).write(False)
                if "teacher" not in run.copies:
                    score_by_targets(run, rollout, steps)
                if run.world.rank == 0:
                    self._keep(number, rollout)
        run.world.share(None)

    def written(self, number: int) -> Rollout:
        if number not in self.waiting:
            self.waiting = {number: Rollout.load(self._folder(number))}
        return self.waiting[number]

    def end_step(self, step: int) -> bool:
        self.batch, self.waiting = None, {}
        return False

    def pending(self) -> dict[int, Rollout]:
        """Only what a teacher that moves has scored for the step."""
        return self.waiting if "teacher" in self.run.copies else {}

    def _keep(self, number: int, rollout: Rollout) -> None:
        folder = self._folder(number)
        with checkpoint.writing(folder) as unfinished:
            checkpoint.begin(unfinished)
            rollout.save(unfinished)
            checkpoint.complete(unfinished, folder)

    def _folder(self, number: int) -> Path:
        return self.run.out / "frozen" / f"batch-{number + 1:06d}"


def source_of(run: Run) -> Source:
    """As `rollout.reuse` and `rollout.lag` say."""
    if run.config.rollout.reuse is not None:
        return Frozen(run)
    return Overlapped(run) if overlaps(run.config) else InTurn(run)
