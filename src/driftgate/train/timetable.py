"""Which rollout batch a step learns from, and which weights write it. All numbers count from 0.

In lockstep, the default, batch s is written by the weights after s steps, and step s alone learns from it.
"""

from .. import keyed
from ..config import TrainConfig


class Timetable:
    """The rollout batches of a whole run."""

    def __init__(self, config: TrainConfig, problems: int):
        """problems: how many there are. With `rollout.reuse: run`, as many batches as they fill are written."""
        self.config, self.settings = config, config.rollout
        self.batches = _batches(config, problems)
        """Number of the batch that each step learns from."""
        self.uses: dict[int, list[int]] = {}
        """The steps that learn from each batch."""
        for step, number in enumerate(self.batches):
            self.uses.setdefault(number, []).append(step)
        self.due: dict[int, list[int]] = {}
        """The batches that the weights after so many steps write, the first to be needed first."""
        for number in self.uses:
            self.due.setdefault(self._written_at(number), []).append(number)

    def done(self, number: int, step: int) -> bool:
        """Whether neither `step` nor a later one learns from a batch."""
        return self.uses[number][-1] < step

    def _written_at(self, number: int) -> int:
        return 0 if self.settings.reuse else max(self.uses[number][0] - self.settings.lag, 0)


def overlaps(config: TrainConfig) -> bool:
    """Whether rollouts are written while the student learns: by servers, ahead of the step that needs them, and by the
    student alone."""
    rollout = config.rollout
    return rollout.lag > 0 and rollout.engine.kind != "hf" and not rollout.teacher_prefix


def _batches(config: TrainConfig, problems: int) -> list[int]:
    if config.rollout.reuse is None:
        return [step // config.rollout.refresh for step in range(config.steps)]
    count = min(config.steps, -(-problems // config.prompts.per_step))
    epochs = -(-config.steps // count)
    later = (keyed.generator(config.seed, "reuse", epoch).permutation(count).tolist() for epoch in range(1, epochs))
    return [*range(count), *(number for order in later for number in order)][: config.steps]
