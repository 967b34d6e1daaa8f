"""Tokens, memory and time of one run, before anything is started.

It is arithmetic from the models' sizes and the makers' data sheets. Nothing of it is measured, and every assumption is
named. Memory is in bytes of one GPU, time in seconds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config import TrainConfig
from ..errors import InputError
from ..evaluate.evaluate import LONGEST
from .adapters import adapters_of
from .assumptions import Assumptions
from .gpus import GPUS, Gpu
from .memory import Memory, memory_of
from .shapes import Shape, shape_of
from .time import Seconds, seconds_of
from .workload import Tokens, Workload


@dataclass(frozen=True)
class Estimate:
    """One run and its examination."""

    student: Shape
    teacher: Shape | None
    """The largest; None for a run without one."""
    tokens: Tokens
    memory: Memory
    seconds: Mapping[str, Seconds]
    """By kind of GPU."""
    assumptions: Assumptions
    rows: int
    """Responses decoded at once."""
    samples: int
    """Responses of a prompt."""
    notes: tuple[str, ...] = field(default=())
    """Parts of the configuration that are not counted."""

    def fits(self, gpu: Gpu) -> str:
        """Whether the run fits: "yes", "at the mean length" (not if all responses reach their limit), or "no"."""
        usable = gpu.memory * self.assumptions.usable
        if self.memory.peak <= usable:
            return "yes"
        return "at the mean length" if self.memory.peak_mean <= usable else "no"

    def fitting_batch(self, gpu: Gpu) -> int:
        """The largest `rollout.batch` with which the run fits, whatever the responses' lengths. 0 if there is none, or
        if servers write."""
        memory = self.memory
        if not memory.a_response:
            return 0
        free = gpu.memory * self.assumptions.usable - sum(memory.resident.values())
        if free < memory.beside_rollout:
            return 0
        fixed = sum(memory.rollout.values()) - memory.a_response * self.rows
        rows = max(0, math.floor((free - fixed) / memory.a_response))
        return rows // self.samples * self.samples  # a prompt's responses are decoded together


def estimate(
    config: TrainConfig,
    exam_problems: int,
    exam_samples: int,
    exam_max_new_tokens: int | None,
    mean_length: float,
    assumed: Assumptions | None = None,
    exam_batch: int | None = None,
) -> Estimate:
    """Tokens, memory and time of one run and of the examination of its model.

    exam_max_new_tokens: most tokens of an examination's response; None for LONGEST, or less if the student's context
    is shorter. exam_batch: responses that an examination decodes at once; None for as many as fit. For the other
    arguments and errors see `workload_of`.
    """
    work = workload_of(config, mean_length, assumed)
    room = (work.student.context or 2 * LONGEST) - work.assumed.prompt_tokens
    exam_limit = exam_max_new_tokens or min(LONGEST, max(1, room))
    exam = {"exam_responses": exam_problems * exam_samples, "exam_limit": exam_limit, "exam_batch": exam_batch}
    return estimate_of(replace(work, **exam))


def workload_of(
    config: TrainConfig, mean_length: float, assumed: Assumptions | None = None, processes: int = 1
) -> Workload:
    """A run without an examination.

    mean_length: expected length of a response as a fraction of max_new_tokens, above 0 and at most 1. assumed: other
    assumptions; its own mean_length does not count. processes: that train together, each on its GPU.

    Raises InputError for a length out of range, and for a model whose sizes are not known.
    """
    if not 0 < mean_length <= 1:
        raise InputError(f"mean_length = {mean_length}: give a fraction of max_new_tokens, above 0 and at most 1")
    assumptions = replace(assumed or Assumptions(mean_length), mean_length=mean_length)
    student = shape_of(config.student.path, "student")
    teachers = {role: shape_of(config.teacher_model(role).path, role) for role in config.teacher_roles}
    return Workload(config, student, teachers, 0, 1, 1, assumptions, adapters_of(config.student), processes)


def estimate_of(work: Workload) -> Estimate:
    """Tokens, memory and time of a run."""
    return Estimate(
        student=work.student,
        teacher=work.teacher if work.teachers else None,
        tokens=work.tokens,
        memory=memory_of(work),
        seconds={gpu.name: seconds_of(work, gpu) for gpu in GPUS},
        assumptions=work.assumed,
        rows=work.rows,
        samples=work.config.rollout.samples,
        notes=work.notes,
    )
