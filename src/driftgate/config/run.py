"""Every setting of a training run: its name, type, default and meaning; recipes, overrides and docs follow it."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from ..settings import Settings
from .factor import Factor
from .gate import GateSettings
from .models import STUDENT, StudentSettings, TeacherSettings
from .prompts import PromptSettings
from .rollout import RolloutSettings
from .teachers import (
    check_caches,
    check_needed,
    check_one_way,
    check_served,
    check_several,
    check_sources,
    check_views,
    settled,
)
from .terms import ObjectiveSettings, TermSettings
from .training import CheckpointSettings, DiagnosticSettings, OptimizerSettings


class TrainConfig(Settings):
    code: str | None = None
    """A Python file with signals of your own. The recipe loader runs it once, before it reads the other settings."""
    seed: int = 0
    """Keys every random draw: prompt order and sampling."""
    steps: PositiveInt = 200
    """Rollout batches."""
    passes: PositiveInt = 2
    """Optimiser passes over each rollout batch."""
    minibatch: PositiveInt | None = None
    """Responses of one optimiser update; null takes the whole rollout batch."""
    microbatch_tokens: PositiveInt = 16384
    """Tokens, prompt and padding included, of one forward; changes memory and time, not results."""
    student: StudentSettings
    teacher: TeacherSettings | None = None
    """Null where nothing reads a teacher: a policy gradient on the verdicts alone (objective.teacher_coef=0), or one
    with a shape that needs none."""
    teachers: dict[str, TeacherSettings] = Field(default={})
    """Several teachers in place of `teacher`, by a name of your choice. Every problem names its own in the column
    `teacher` of the prompt file; another column with prompts.columns={teacher: COLUMN}. See docs/teachers.md."""
    prompts: PromptSettings
    rollout: RolloutSettings = RolloutSettings()
    objective: ObjectiveSettings
    """What the main term, on the student's rollouts, asks of each token."""
    gate: GateSettings = GateSettings()
    """The main term's drift gate."""
    weights: dict[str, Factor] = Field(default={})
    """More factors of the main term's weight, by a name of your choice."""
    denominator: Literal["tokens", "kept"] = "tokens"
    """Of the main term: all tokens of the optimiser batch, or those with a weight above 0."""
    terms: dict[str, TermSettings] = Field(default={})
    """More terms of the loss, by a name of your choice."""
    drop_tokens: tuple[int, ...] = ()
    """Sampled token ids whose positions leave the loss (the special-token mask)."""
    log_drift: bool = True
    """Measure the drift also where no weight needs it (an ungated LSM run then spends a pass over the head on it)."""
    diagnostics: DiagnosticSettings = DiagnosticSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    offload: tuple[Literal["teacher", "optimizer"], ...] = ()
    """What waits in the computer's memory while the GPU does not need it, such as [teacher, optimizer]. `teacher`: its
    weights, and those of the initial student, come to the GPU to score or write. `optimizer`: AdamW's two means come
    for each optimiser step. The results are the same bits; each move costs time. On a CPU it does nothing."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: PositiveInt | None = None
    """CPU threads; null takes torch's choice. A resumed run uses what it began with, as sums depend on it."""

    @field_validator("prompts")
    @classmethod
    def _chat_needed(cls, prompts: PromptSettings) -> PromptSettings:
        if prompts.system is not None and not prompts.chat:
            raise ValueError("prompts.system is set but prompts.chat is false; set prompts.chat=true")
        for name in ("chat_template", "template_args"):
            if not prompts.chat and (value := getattr(prompts, name)):
                raise ValueError(f"prompts.{name} = {value!r} but prompts.chat is false; set prompts.chat=true")
        return prompts

    @model_validator(mode="after")
    def _teachers(self) -> "TrainConfig":
        check_one_way(self.teacher, self.teachers)
        check_sources(self)
        check_needed(self)
        check_views(self)
        check_served(self)
        check_caches(self)
        if self.teacher is not None:
            return self.model_copy(update={"teacher": settled("teacher", self.teacher, self.student)})
        check_several(self)
        several = {name: settled(f"teachers.{name}", each, self.student) for name, each in self.teachers.items()}
        return self.model_copy(update={"teachers": several})

    @model_validator(mode="after")
    def _a_teacher_that_moves_stays(self) -> "TrainConfig":
        follows = self.teacher is not None and self.teacher.follow is not None
        if "teacher" in self.offload and follows and self.student.lora is None:
            raise ValueError(
                "offload = [teacher] with teacher.follow: a teacher that moves does not wait in the computer's memory; "
                "take one of the two out, or set student.lora, where the teacher needs no second copy"
            )
        return self

    @model_validator(mode="after")
    def _names(self) -> "TrainConfig":
        if "main" in self.terms:
            raise ValueError("terms.main: `main` is the term of `objective`; give the other term another name")
        if "gate" in self.weights and self.gate.spans != "none":
            raise ValueError("weights.gate: `gate` is the factor of the group `gate`; give the other another name")
        return self

    @model_validator(mode="after")
    def _reuse(self) -> "TrainConfig":
        """A weight by drift is 1 throughout where the student never drifts."""
        one_update = self.passes == 1 and self.updates_per_step == 1 and not self.rollout.stale
        if one_update and self.gate.spans != "none":
            raise ValueError(
                f"gate.spans = {self.gate.spans} with passes = 1 and one minibatch per rollout: the student never "
                f"drifts, so every gate is 1; set passes=2, a smaller minibatch, rollout.lag=1, or gate.spans=none"
            )
        for place, factor in self.factors():
            if one_update and (factor.of_drift or {"age", "freshness"} & set(factor.signals)):
                raise ValueError(
                    f"{place} with passes = 1 and one minibatch per rollout: every rollout is learned from once, by "
                    f"the student that wrote it; set passes=2 or a smaller minibatch, or take the weight out"
                )
        return self

    @model_validator(mode="after")
    def _rollout_fits(self) -> "TrainConfig":
        if self.rollout.teacher_prefix and self.rollout.kl_budget:
            raise ValueError("rollout.teacher_prefix and rollout.kl_budget both hand the teacher the pen; set one to 0")
        least = self.rollout.least_limit
        if self.rollout.teacher_prefix >= least:
            raise ValueError(
                f"rollout.teacher_prefix = {self.rollout.teacher_prefix} leaves the student nothing of a response of "
                f"{least} tokens (max_new_tokens, or where the horizon begins); lower it"
            )
        for name, term in self.all_terms.items():
            if self.rollout.on_policy < 1 and term.responses == "student" and not term.off_policy:
                setting = "objective" if name == "main" else f"terms.{name}.objective"
                raise ValueError(
                    f"rollout.on_policy = {self.rollout.on_policy} with {setting}.kind = {term.objective.kind}: a "
                    f"policy gradient, or mass = residual, needs the student's own samples; set on_policy=1, or use "
                    f"divergence, lsm or nll"
                )
        return self

    @model_validator(mode="after")
    def _verdicts_are_compared(self) -> "TrainConfig":
        for name, term in self.all_terms.items():
            if "group_mean" in term.objective.reads_batch and self.rollout.samples == 1:
                setting = "objective" if name == "main" else f"terms.{name}.objective"
                raise ValueError(
                    f"{setting}.reward with rollout.samples = 1: a verdict counts against the mean of its prompt's "
                    f"responses, so one alone counts 0; set rollout.samples=8, or {setting}.reward=null"
                )
        return self

    @model_validator(mode="after")
    def _servers_get_plain_weights(self) -> "TrainConfig":
        if self.rollout.engine.kind == "vllm" and self.student.quantise:
            raise ValueError(
                f"student.quantise = {self.student.quantise} with rollout.engine.kind = vllm: an adapter is not merged "
                f"into a 4-bit base, so it cannot be sent; set student.quantise=null, or rollout.engine=hf"
            )
        return self

    @model_validator(mode="after")
    def _pruned_lengths(self) -> "TrainConfig":
        name = self.rollout.horizon.unpruned_by if self.rollout.horizon else None
        if name is None:
            return self
        factor = self.weights.get(name)
        if factor is None:
            raise ValueError(f"rollout.horizon.unpruned_by = {name}: there is no weights.{name}; name one of `weights`")
        if factor.map.kind != "affine" or factor.map.low is None or "logp" in factor.reads:
            raise ValueError(
                f"rollout.horizon.unpruned_by = {name}: needs a weight with map.kind=affine, a lower bound map.low and "
                f"a signal that does not move with the student; choose another weight"
            )
        return self

    @property
    def teacher_roles(self) -> dict[str, TeacherSettings]:
        """Every teacher by its name in the settings: "teacher"; or "teachers.NAME", in order of the names."""
        if self.teacher is not None:
            return {"teacher": self.teacher}
        return {f"teachers.{name}": self.teachers[name] for name in sorted(self.teachers)}

    @property
    def local_teachers(self) -> dict[str, TeacherSettings]:
        """Those of `teacher_roles` whose models the run loads."""
        return {role: teacher for role, teacher in self.teacher_roles.items() if not teacher.served}

    @property
    def served_teachers(self) -> dict[str, TeacherSettings]:
        """Those of `teacher_roles` whose models run on servers."""
        return {role: teacher for role, teacher in self.teacher_roles.items() if teacher.served}

    def teacher_model(self, role: str = "teacher") -> TeacherSettings:
        """A teacher's settings, with the student's path where the teacher is the student."""
        settings = self.teacher_roles[role]
        path = self.student.path if settings.path == STUDENT else settings.path
        return settings.model_copy(update={"path": path})

    @property
    def updates_per_step(self) -> int:
        """Optimiser updates of one pass over a rollout batch."""
        responses = self.prompts.per_step * self.rollout.samples
        return -(-responses // (self.minibatch or responses))

    @property
    def all_terms(self) -> dict[str, TermSettings]:
        """The loss, whole: the main term, then the others."""
        gate = {"gate": self.gate.factor} if self.gate.spans != "none" else {}
        main = TermSettings(objective=self.objective, weights=gate | self.weights, denominator=self.denominator)
        return {"main": main, **self.terms}

    def terms_at(self, step: int) -> dict[str, TermSettings]:
        """The terms of the loss at a step, counted from 0; a term whose coefficient is 0 then is left out."""
        return {name: term for name, term in self.all_terms.items() if name == "main" or term.coef_at(step) > 0}

    def factors(self) -> list[tuple[str, Factor]]:
        """(setting, factor) of every configured weight but the gate."""
        main = [(f"weights.{name}", factor) for name, factor in self.weights.items()]
        others = [(f"terms.{t}.weights.{n}", f) for t, term in self.terms.items() for n, f in term.weights.items()]
        return main + others

    @property
    def reads(self) -> set[str]:
        """Names of what any term or metric reads of the student's rollouts (`method.signals.READABLE`)."""
        wanted = {name for term in self.all_terms.values() if term.responses == "student" for name in term.reads}
        return wanted | ({"logp", "behaviour_logp"} if self.log_drift else set())
