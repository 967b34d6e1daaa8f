"""Where rollout batches come from: the responses of a step, scored by the student and the teacher."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..data.experience import Experience
from ..data.prompts import Prompt
from ..data.response import Response
from .checkpoint import Position
from .portions import Batch
from .records import make_experience, rollout_metrics, rollout_rows
from .rollouts import controller_of, length_limit, other_responses, prompts_of_step, sample_responses
from .routing import rollout_by_teacher
from .scoring import behaviour_scores, target_scores
from .teachers import cache_hits
from .trackers import write_rollouts

if TYPE_CHECKING:
    from .run import Run


class Source(Protocol):
    """Gives the batch of each step, with the version of the weights that wrote it."""

    def take(self, position: Position) -> Batch:
        """The scored batch of a step: the same one until `done`."""
        ...

    def done(self) -> None:
        """The batch has been learned from."""
        ...

    def pending(self) -> dict[str, Experience]:
        """What a checkpoint in the middle of a step has to keep, by whose responses they are."""
        ...


class Lockstep:
    """Rollout, scores, updates, in turn: the weights that write a batch are the ones that learn from it first."""

    def __init__(self, run: Run, pending: Mapping[str, Experience]):
        """pending: the batch that a resumed run was in the middle of."""
        self.run = run
        self.batch = Batch(run.config, dict(pending), run.newline_ids) if pending else None

    def take(self, position: Position) -> Batch:
        if self.batch is None:
            self.batch = collect(self.run, position)
        return self.batch

    def done(self) -> None:
        self.batch = None

    def pending(self) -> dict[str, Experience]:
        return {} if self.batch is None else self.batch.responses


def collect(run: Run, position: Position) -> Batch:
    """Rollout and scores of a step: the student's responses and, where a term is on them, those of others."""
    config, step, seconds = run.config, position.step, {}
    limit = length_limit(config, step, controller_of(config, position.controller))
    run.learner.free_gradients()
    with timed(seconds, "seconds_rollout"):
        responses, rows = roll_out(run, step, limit)
    with timed(seconds, "seconds_behaviour"):
        scorer = run.scorers["behaviour"]
        responses = {name: behaviour_scores(config, scorer, name, part, step) for name, part in responses.items()}
    with timed(seconds, "seconds_teacher"):
        responses = {name: target_scores(config, run.scorers, name, part, step) for name, part in responses.items()}
    metrics = rollout_metrics(responses["student"], rows) | seconds | cache_hits(run.scorers)
    metrics |= rollout_by_teacher(config, responses["student"])
    if config.rollout.horizon is not None:
        metrics["limit"] = limit
    run.metrics.log("rollout", step=step + 1, **metrics)
    return Batch(config, responses, run.newline_ids, metrics)


def roll_out(run: Run, step: int, limit: int) -> tuple[dict[str, Experience], list[dict[str, Any]]]:
    """The responses of a step, of at most `limit` tokens, by whose they are; and the rows of rollouts/."""
    prompts = prompts_of_step(run.prompts, run.config, step)
    run.display.rollout(len(prompts) * run.config.rollout.samples)

    def advance(responses: int) -> None:
        """Raises Stopped, which engines that several ranks share pass on to all of them."""
        run.display.advance(responses)
        run.stop.check()

    sampled = sample_responses(run.engines, prompts, run.config, step, limit, advance)
    rows = graded(run, prompts, sampled)
    if run.world.rank == 0:
        write_rollouts(run.out / "rollouts" / f"step-{step + 1:06d}.jsonl", rows)
    verdicts = [row["correct"] for row in rows]
    student = make_experience(prompts, sampled, verdicts, run.config, limit, run.learner.version)
    return {"student": student} | other_responses(run.engines, prompts, run.config, step, run.stop.check), rows


def graded(run: Run, prompts: Sequence[Prompt], sampled: Sequence[Sequence[Response]]) -> list[dict[str, Any]]:
    """The rows of rollouts/; each rank grades the responses to its share of the prompts."""
    rank, size = run.world.rank, run.world.size
    own = rollout_rows(prompts[rank::size], sampled[rank::size], run.decode, run.grader)
    shares = [iter(part) for part in run.world.share(own)]
    return [next(shares[place % size]) for place, group in enumerate(sampled) for _ in group]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the wall's seconds that the block takes."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
