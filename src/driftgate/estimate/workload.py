"""How many responses and tokens a run has, and the examination of its model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..config import TrainConfig
from ..config.models import TeacherSettings
from ..train.checks import needs_initial
from ..train.scoring import NeedsOf, needs_of
from .adapters import Adapters
from .assumptions import Assumptions
from .shapes import Shape


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a whole run. Prompts are not counted."""

    rollout: float
    trained: float
    """Rollout tokens times passes."""
    teacher: float
    """Scored by the teacher."""
    evaluation: float


@dataclass(frozen=True)
class Workload:
    """One run, its models and its examination. Memory and time are computed from it."""

    config: TrainConfig
    student: Shape
    teachers: Mapping[str, Shape]
    """By their names in the settings (`TrainConfig.teacher_roles`)."""
    exam_responses: int
    exam_limit: int
    """Most tokens of an examination's response."""
    exam_batch: int | None
    """Responses that an examination decodes at once; None for as many as fit."""
    assumed: Assumptions
    adapters: Adapters | None = None
    """What is trained instead of the student's weights."""
    ranks: int = 1
    """Processes, each on its GPU, that share the work and shard the models."""

    @property
    def largest_teacher(self) -> str:
        """Name in the settings of the largest teacher. Time is estimated as if it scored all responses."""
        here = self.config.local_teachers or self.teachers
        return max(here, key=lambda role: self.teachers[role].parameters)

    @property
    def teacher(self) -> Shape:
        return self.teachers[self.largest_teacher]

    @property
    def teacher_settings(self) -> TeacherSettings:
        return self.config.teacher_roles[self.largest_teacher]

    @property
    def responses(self) -> int:
        """Responses of a step."""
        return self.config.prompts.per_step * self.config.rollout.samples

    @property
    def share(self) -> int:
        """Responses of a step that one rank writes, scores and learns from."""
        return math.ceil(self.responses / self.ranks)

    @property
    def rows(self) -> int:
        """Responses that a rank decodes at once in a step."""
        return min(self.share, max(self.config.rollout.batch or self.share, self.config.rollout.samples))

    @property
    def limit(self) -> int:
        """Most tokens of a response."""
        return self.config.rollout.max_new_tokens

    @property
    def mean(self) -> float:
        """Mean tokens of a response."""
        return self.assumed.mean_length * self.limit

    @property
    def exam_mean(self) -> float:
        """Mean tokens of an examination's response."""
        return self.assumed.mean_length * self.exam_limit

    @property
    def length(self) -> float:
        """Mean positions of a sequence, prompt included."""
        return self.assumed.prompt_tokens + self.mean

    @cached_property
    def needs(self) -> NeedsOf:
        """Scores that the first step needs of the student's responses."""
        return needs_of(self.config, "student", 0)

    @property
    def held_to_initial(self) -> bool:
        """Whether a term keeps the student near its initial weights, which then stay in memory."""
        return needs_initial(self.config)

    @property
    def batches(self) -> int:
        """Rollout batches that are written and scored; with `rollout.reuse` at most so many."""
        return math.ceil(self.config.steps / self.config.rollout.refresh)

    @property
    def tokens(self) -> Tokens:
        """Response tokens by what they are used for."""
        batch = self.responses * self.mean
        rollout, trained = self.batches * batch, self.config.steps * batch * self.config.passes
        scored = rollout if "teacher" in self.needs else 0.0
        return Tokens(rollout, trained, scored, self.exam_responses * self.exam_mean)

    @property
    def notes(self) -> tuple[str, ...]:
        """Parts of the configuration that the estimate leaves out."""
        terms, rollout = self.config.all_terms, self.config.rollout
        found = [f"terms.{n} learns from {t.responses} responses" for n, t in terms.items() if t.responses != "student"]
        if rollout.horizon is not None:
            found.append("rollout.horizon keeps responses shorter than max_new_tokens for a while")
        if rollout.on_policy < 1:
            found.append("rollout.on_policy below 1 saves some rollouts")
        if rollout.engine.kind != "hf":
            found.append("servers write the rollouts on GPUs of their own; their time is that of one such GPU, in turn")
        if rollout.reuse is not None:
            found.append("rollout.reuse writes no more batches than the prompts fill")
        if rollout.teacher_prefix:
            found.append("rollout.teacher_prefix has the teacher write, too")
        if len(self.teachers) > 1:
            found.append("every response is taken to be scored by the largest teacher")
        found += [f"{role} is on servers, whose memory and time are their own" for role in self.config.served_teachers]
        if self.ranks > 1:
            found.append(f"what {self.ranks} processes send each other takes time")
        return tuple(found)
