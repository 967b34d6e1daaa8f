"""The teachers of a run, against its other settings. Every function raises ValueError for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .models import STUDENT, StudentSettings, TeacherSettings

if TYPE_CHECKING:
    from .run import TrainConfig


def check_one_way(teacher: TeacherSettings | None, teachers: Mapping[str, TeacherSettings]) -> None:
    """Not both of `teacher` and `teachers` are set."""
    if teacher is not None and teachers:
        raise ValueError(
            f"teachers = {', '.join(teachers)} beside teacher.path = {teacher.path}: one of the two is meant; set "
            f"teacher=null, or take teachers out"
        )
    for name in teachers:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"teachers.{name}: a name is made of letters, digits, - and _; choose another")


def check_needed(config: TrainConfig) -> None:
    """A teacher is set where anything reads one."""
    if not config.teacher_roles and (readers := readers_of_teacher(config)):
        raise ValueError(
            f"teacher: missing; {readers[0]} reads it; set teacher.path=..., or several by name: "
            f"teachers={{math: {{path: ...}}}}"
        )


def readers_of_teacher(config: TrainConfig) -> list[str]:
    """Settings of what a teacher scores, writes or guides."""
    found = []
    for name, term in config.all_terms.items():
        setting = "objective" if name == "main" else f"terms.{name}.objective"
        if "teacher" in term.objective.needs:
            found.append(f"{setting}.kind = {term.objective.kind}")
        if term.responses == "teacher":
            found.append(f"terms.{name}.responses = teacher")
    found += [setting for setting, factor in config.factors() if any("teacher" in read for read in factor.reads)]
    rollout = config.rollout
    asked = {name: value for name in ("kl_budget", "teacher_prefix") if (value := getattr(rollout, name))}
    return found + [f"rollout.{name} = {value}" for name, value in asked.items()]


def settled(role: str, teacher: TeacherSettings, student: StudentSettings) -> TeacherSettings:
    """A teacher's settings. With LoRA, a teacher that is the student shares its weights, and so their types. role: the
    teacher's name in the settings."""
    if teacher.path != STUDENT:
        if teacher.follow is not None:
            raise ValueError(
                f"{role}.follow with {role}.path = {teacher.path!r}: only a teacher that is the student can "
                f"follow it; set {role}.path=student, or take {role}.follow out"
            )
        return teacher
    if student.lora is None:
        if teacher.follow is not None and teacher.follow.ema and teacher.dtype == "bfloat16":
            raise ValueError(
                f"{role}.follow.ema with {role}.dtype = bfloat16, which swallows small moves of the average; set "
                f"{role}.dtype=float32"
            )
        return teacher
    if student.quantise and teacher.follow is not None:
        raise ValueError(
            f"{role}.follow with student.quantise = {student.quantise}: a following adapter on a 4-bit base "
            f"is not supported; set one of them to null"
        )
    shared = {name: getattr(student, name) for name in ("dtype", "compute", "quantise")}
    return teacher.model_copy(update=shared)


def check_several(config: TrainConfig) -> None:
    """With `teachers` nothing is set that needs one teacher for all problems."""
    for name, teacher in config.teachers.items():
        if teacher.follow is not None:
            raise ValueError(f"teachers.{name}.follow: only a single `teacher` can follow the student; take it out")
    for setting, does in one_teacher_needed(config).items():
        raise ValueError(f"{setting} with teachers: {does}, and each problem has its own; give one `teacher` instead")


def check_sources(config: TrainConfig) -> None:
    """The sources of a mixture name teachers that there are."""
    for name, source in config.prompts.mix.items():
        if source.teacher is not None and source.teacher not in config.teachers:
            raise ValueError(
                f"prompts.mix.{name}.teacher = {source.teacher}: there is no teachers.{source.teacher}; name one of "
                f"`teachers`, or take it out"
            )


def check_served(config: TrainConfig) -> None:
    """With a teacher on servers nothing is set that needs its weights, or another temperature than 1."""
    for role, teacher in config.served_teachers.items():
        if config.rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature = {config.rollout.temperature} with {role}.kind = server: a server's "
                f"log-probabilities are at temperature 1; set it to 1, or {role}.kind=local"
            )
        for setting, does in one_teacher_needed(config).items():
            raise ValueError(
                f"{setting} with {role}.kind = server: {does}, which needs its weights; set {role}.kind=local"
            )
        engine = config.rollout.engine
        if engine.kind == "vllm" and (both := {*engine.urls} & {*teacher.urls}):
            raise ValueError(
                f"{role}.urls: {min(both)} is among rollout.engine.urls too, so it gets the student's weights; give "
                f"the teacher servers of its own"
            )


def check_views(config: TrainConfig) -> None:
    """Only a chat template has a system message, and takes arguments."""
    if config.prompts.chat:
        return
    for role, teacher in config.teacher_roles.items():
        for name in ("chat_template", "template_args", "system"):
            if (value := getattr(teacher, name)) is not None:
                raise ValueError(f"{role}.{name} = {value!r} but prompts.chat is false; set prompts.chat=true")


def check_caches(config: TrainConfig) -> None:
    """A teacher with a cache stays as it is, and is not asked for hidden states."""
    for role, teacher in config.teacher_roles.items():
        if teacher.cache is None:
            continue
        if teacher.follow is not None:
            raise ValueError(
                f"{role}.cache with {role}.follow: scores of a teacher that moves are not met again; take "
                "one of the two out"
            )
        for setting in over_vocabulary(config):
            raise ValueError(
                f"{role}.cache with {setting}.support = vocabulary: it needs hidden states, which are not "
                "kept; set cache=null, or a support of k tokens"
            )


def over_vocabulary(config: TrainConfig) -> list[str]:
    """Settings of the objectives that are compared with a teacher over the whole vocabulary."""
    found = {name: term.objective.needs.get("teacher") for name, term in config.all_terms.items()}
    named = [name for name, needs in found.items() if needs is not None and needs.hidden]
    return ["objective" if name == "main" else f"terms.{name}.objective" for name in named]


def one_teacher_needed(config: TrainConfig) -> dict[str, str]:
    """Setting -> what it does with a teacher's own model, beyond scores of the tokens."""
    found = {}
    if config.rollout.kl_budget:
        found[f"rollout.kl_budget = {config.rollout.kl_budget}"] = "one teacher guides the student's draws"
    if config.rollout.teacher_prefix:
        found[f"rollout.teacher_prefix = {config.rollout.teacher_prefix}"] = "one teacher begins the responses"
    for name, term in config.all_terms.items():
        if term.responses == "teacher":
            found[f"terms.{name}.responses = teacher"] = "one teacher writes these responses"
    for setting in over_vocabulary(config):
        found[f"{setting}.support = vocabulary"] = "one teacher's output embedding is compared with the student's"
    return found
