"""Gated on-policy distillation, the whole of it (arXiv 2606.24084).

for each step:
    sample responses to the step's prompts from the student                       source: rollout
    score them: the student's own log-probabilities, the teacher's                source: scores
    repeat `passes` times, for each minibatch of the responses:                   learner
        shift  d_t = log p(y_t) - log o(y_t)
        gates  g = exp(-tau |mean of d over the token's span|), scaled to mean 1
        one optimiser step on the mean of g_t l_t
    save every `checkpoint.every` steps
"""

import time
from pathlib import Path

from ..errors import RunError
from ..serving.client import ServingError
from ..stop import Stopped
from . import checkpoint
from .learner import Updated
from .portions import Batch, ScheduledUpdate, schedule
from .run import Run
from .scoring import diagnosed
from .weighing import Moment


def train(run: Run) -> None:
    """Run or resume until `config.steps`. Raises RunError for a failure on the way, Stopped when asked to stop."""
    try:
        while run.position.step < run.config.steps:
            batch = run.source.take(run.position)
            for update in schedule(run.config, run.position.step, run.position.update):
                updated = timed_update(run, batch, update)
                batch.add_behaviour(updated.old_logp)
                run.track(update, updated.metrics, batch)
                run.check_stop()
            run.end_step(batch)
            run.save_if_due()
    except Stopped:
        run.save()
        raise
    except ServingError as error:
        run.save()
        raise RunError(f"{error}; stopped; the last checkpoint is {last_checkpoint(run)}") from None
    finally:
        run.source.leave()


def last_checkpoint(run: Run) -> Path:
    """On several ranks, once it is on the disk."""
    run.finish()
    return checkpoint.all_checkpoints(run.out / "checkpoints")[-1]


def timed_update(run: Run, batch: Batch, update: ScheduledUpdate) -> Updated:
    """One optimiser update; an error names its place and what is left to resume from."""
    began = time.perf_counter()
    moment = Moment(run.config.seed, update.step, age=run.learner.version - batch.version)
    try:
        updated = run.learner.update(batch.portion(update), moment, diagnosed(run.config, update.step))
    except RunError as error:
        place = ", ".join(f"{name} {number}" for name, number in update.place.items())
        last = checkpoint.all_checkpoints(run.out / "checkpoints")[-1:]
        kept = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        raise RunError(f"{error} at {place}; stopped before the optimiser step; {kept}") from None
    return Updated(updated.metrics | {"seconds": time.perf_counter() - began}, updated.old_logp)
