"""One rollout batch: written by an engine, graded, and scored by the weights that wrote it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..data.experience import Experience
from ..data.prompts import Prompt
from ..data.response import Response
from ..data.rollout import Rollout
from ..rollout.shared import LedEngine
from .checkpoint import Position
from .records import make_experience, rollout_by_source, rollout_metrics
from .rollouts import Engines, controller_of, length_limit, other_responses, prompts_of_batch, sample_responses
from .routing import rollout_by_teacher
from .scoring import behaviour_scores, target_scores
from .teachers import cache_hits
from .trackers import write_rollouts

if TYPE_CHECKING:
    from .run import Run

Sampled = Sequence[Sequence[Response]]


class Writing:
    """A batch, and the weights that write it: those that the student has, or had, at the start of a step."""

    def __init__(self, run: Run, number: int, steps: Sequence[int], position: Position):
        """number, steps: of the batch, and of those that learn from it. position: of the run; `position.step` is the
        step."""
        self.run, self.steps = run, steps
        self.version = run.learner.version - position.update
        self.limit = length_limit(run.config, steps[0], controller_of(run.config, position.controller))
        self.prompts = prompts_of_batch(run.prompts, run.config, number)
        self.fresh = steps[0] == position.step
        """Whether the first step that learns from it begins with the same weights."""

    def write(self, waits: bool = True) -> Rollout:
        """By the student as it is. waits: its first update may find log-probabilities that are not scored yet."""
        run, seconds = self.run, {}
        run.learner.free_gradients()
        run.display.rollout(self.responses)

        def advance(responses: int) -> None:
            """Raises Stopped, which engines that several ranks share pass on to all of them."""
            run.display.advance(responses)
            run.stop.check()

        with timed(seconds, "seconds_rollout"):
            responses, rows = self._graded(self.sample(run.engines, advance))
        return self._scored(responses, rows, seconds, "behaviour", self.fresh and waits)

    @property
    def responses(self) -> int:
        """How many there are to write."""
        return len(self.prompts) * self.run.config.rollout.samples

    def sample(self, engines: Engines, advance: Callable[[int], None]) -> list[list[Response]]:
        """The responses alone; may run in a thread of its own. advance: told of those that have ended."""
        return sample_responses(engines, self.prompts, self.run.config, self.steps[0], self.limit, advance)

    def complete(self, sampled: Sampled, scorer: str, seconds: dict[str, float]) -> Rollout:
        """Grade what was sampled, and score it. scorer: the name of the one that has the weights which wrote it."""
        self.run.learner.free_gradients()
        return self._scored(*self._graded(sampled), seconds, scorer, False)

    def _graded(self, sampled: Sampled) -> tuple[dict[str, Experience], list[dict[str, Any]]]:
        """The responses by whose they are, and the rows of rollouts/."""
        run = self.run
        rows = graded(run, self.prompts, sampled)
        if run.world.rank == 0:
            write_rollouts(run.out / "rollouts" / f"step-{self.steps[0] + 1:06d}.jsonl", rows)
        verdicts = [row["correct"] for row in rows]
        student = make_experience(self.prompts, sampled, verdicts, run.config, self.limit, self.version)
        others = other_responses(run.engines, self.prompts, run.config, self.steps, run.stop.check)
        return {"student": student} | others, rows

    def _scored(
        self,
        responses: dict[str, Experience],
        rows: list[dict[str, Any]],
        seconds: dict[str, float],
        scorer: str,
        fresh: bool,
    ) -> Rollout:
        config, by = self.run.config, self.run.scorers[scorer]
        with timed(seconds, "seconds_behaviour"):
            scored = {
                name: behaviour_scores(config, by, name, part, *self.steps, fresh=fresh)
                for name, part in responses.items()
            }
        metrics = rollout_metrics(scored["student"], rows) | rollout_by_source(self.prompts, rows) | seconds
        if config.rollout.horizon is not None:
            metrics["limit"] = self.limit
        return Rollout(scored, metrics)


def score_by_targets(run: Run, rollout: Rollout, steps: Sequence[int]) -> None:
    """What the targets say of a batch, for the steps that learn from it."""
    with timed(rollout.metrics, "seconds_teacher"):
        for name, part in rollout.responses.items():
            rollout.responses[name] = target_scores(run.config, run.scorers, name, part, *steps)
    rollout.metrics |= cache_hits(run.scorers) | rollout_by_teacher(run.config, rollout.responses["student"])
    rollout.scored = True


def graded(run: Run, prompts: Sequence[Prompt], sampled: Sampled) -> list[dict[str, Any]]:
    """The rows of rollouts/; each rank grades the responses to its share of the prompts."""
    rank, size = run.world.rank, run.world.size
    own = run.grader.rows(prompts[rank::size], sampled[rank::size], run.decode)
    shares = [iter(part) for part in run.world.share(own)]
    return [next(shares[place % size]) for place, group in enumerate(sampled) for _ in group]


def alone(engines: Engines) -> Engines:
    """The engines, where rank 0 uses the student's for all ranks."""
    led = engines.student
    return replace(engines, student=led.engine) if isinstance(led, LedEngine) and led.made else engines


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the wall's seconds that the block takes."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
