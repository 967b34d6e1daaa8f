"""Which teacher scores which problem: checks before any compute, prompts, and metrics by teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.problems import Problem
from ..data.prompts import Prompt, encode_prompts
from ..data.templates import View, student_view, teacher_view
from ..errors import InputError


def check_routes(problems: Sequence[Problem], config: TrainConfig) -> None:
    """With several teachers every problem names one of them, and every teacher has a problem. Raises InputError."""
    if not config.teachers:
        return
    names, prompts = sorted(config.teachers), config.prompts
    for problem in problems:
        if problem.teacher not in config.teachers:
            shown = "names no teacher" if problem.teacher is None else f"names the teacher {problem.teacher!r}"
            column = prompts.sources[problem.source or ""].columns.get("teacher", "teacher")
            setting = prompts.setting_of(problem.source)
            mend = f", or set {setting}.teacher" if prompts.mix else ""
            raise InputError(
                f"{prompts.place}: problem {problem.id!r} {shown} in column {column!r}; the teachers are "
                f"{', '.join(names)}; mend the column, or name another with {setting}.columns.teacher=...{mend}"
            )
    used = {problem.teacher for problem in problems}
    if unused := [name for name in names if name not in used]:
        where = "" if prompts.mix else f" in column {prompts.columns.get('teacher', 'teacher')!r}"
        raise InputError(
            f"teachers.{unused[0]}: no problem of {prompts.place} names it{where}; take the teacher out, or mend the "
            f"column"
        )


def views_of(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, theirs: Mapping[str, PreTrainedTokenizerBase]
) -> dict[str, View]:
    """What each role is shown: "student", and the teachers by role. theirs: the teachers' tokenizers. Raises InputError
    for a chat template that cannot be used."""
    student = student_view(tokenizer, config.prompts)
    teachers = config.teacher_roles.items()
    return {"student": student} | {role: teacher_view(student, each, role, theirs[role]) for role, each in teachers}


def encoded(
    problems: Sequence[Problem],
    config: TrainConfig,
    views: Mapping[str, View],
    context: int | None,
    teacher_contexts: Mapping[str, int | None],
) -> list[Prompt]:
    """The problems as token ids, each as its teacher is to see it. views: by role. context, teacher_contexts: positions
    that the student and each teacher were made for. Without a teacher, its prompts are the student's. Raises InputError
    for a prompt that leaves its response no room, unless such are left out."""
    if not config.teacher_roles:
        return encode_prompts(problems, views["student"], config.prompts, config.rollout.max_new_tokens, context)
    prompts: dict[str, Prompt] = {}
    for number, role in enumerate(config.teacher_roles):
        own = [p for p in problems if not config.teachers or f"teachers.{p.teacher}" == role]
        how = config.prompts, config.rollout.max_new_tokens, context, views[role], teacher_contexts[role], role
        for prompt in encode_prompts(own, views["student"], *how):
            prompts[prompt.problem.id] = replace(prompt, teacher=number) if config.teachers else prompt
    return [prompts[problem.id] for problem in problems if problem.id in prompts]


def rollout_by_teacher(config: TrainConfig, batch: Experience) -> dict[str, float]:
    """Of each of several teachers: its share of the tokens that are learned from, and the share of right responses
    among its problems' (by tokens' responses; without verdicts none). Empty with one teacher."""
    found = {}
    for name, sequences in _sequences(config, batch).items():
        tokens = batch.tokens_of(sequences)
        found[f"teacher.{name}.share"] = len(tokens) / len(batch.ids)
        written = [i for i in sequences if batch.written[i] and batch.keep[i].any()]
        if batch.correct is not None and written:
            right = batch.correct[torch.tensor([batch.starts[i] for i in written])]
            found[f"teacher.{name}.correct"] = float(right.mean())
    return found


def gaps_by_teacher(config: TrainConfig, batch: Experience) -> dict[str, float]:
    """`teacher_gap` of each of several teachers: the mean of log q - log o in nats over the tokens that the student
    wrote for it. Empty with one teacher, and where either has not been scored."""
    ours, theirs, found = batch.scores.behaviour.logp, batch.scores.teacher.logp, {}
    if ours is None or theirs is None:
        return {}
    for name, sequences in _sequences(config, batch).items():
        tokens = batch.tokens_of([i for i in sequences if batch.written[i]])
        if len(tokens):
            found[f"teacher.{name}.gap"] = float((theirs - ours)[tokens].mean())
    return found


def _sequences(config: TrainConfig, batch: Experience) -> dict[str, list[int]]:
    """The sequences of each of several teachers, by its name."""
    if batch.teacher is None:
        return {}
    return {name: (batch.teacher == n).nonzero().flatten().tolist() for n, name in enumerate(sorted(config.teachers))}
