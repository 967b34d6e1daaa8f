"""The prompts that are made of problems, as token ids: what student and teacher see."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import PromptSettings
from ..errors import InputError
from .problems import Problem
from .templates import View


@dataclass(frozen=True)
class Prompt:
    """A problem as token ids. The teacher's differ where it has a view of its own: `data/templates.py`."""

    problem: Problem
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    teacher: int | None = None
    """Number of its teacher, where a run has several: in order of their names."""


def encode_prompts(
    problems: Sequence[Problem],
    student: View,
    settings: PromptSettings,
    max_new_tokens: int,
    context: int | None,
    teacher: View | None = None,
    teacher_context: int | None = None,
    role: str = "teacher",
) -> list[Prompt]:
    """Token ids of every problem. `context` and `teacher_context` are the models' context lengths, None for no limit.
    teacher: None for the student's view. role: the teacher's name in the settings.

    A prompt above `prompts.max_tokens`, or one that leaves no room for its response, is left out with
    `prompts.too_long: leave_out`. Raises InputError for it otherwise, and for a template field that a problem lacks.
    """
    prompts = []
    for problem in problems:
        ids = student.encode(problem)
        teacher_ids = ids if teacher is None or teacher == student else teacher.encode(problem)
        excess = (
            _above(problem, ids, settings.max_tokens)
            or _no_room(problem, ids, max_new_tokens, context, "student")
            or _no_room(problem, teacher_ids, max_new_tokens, teacher_context, role)
        )
        if excess is None:
            prompts.append(Prompt(problem, ids, teacher_ids))
        elif settings.too_long == "refuse":
            raise InputError(f"{excess}, or leave such problems out with prompts.too_long=leave_out")
    return prompts


def _above(problem: Problem, ids: tuple[int, ...], most: int) -> str | None:
    """What is wrong with a prompt that is longer than allowed."""
    if len(ids) <= most:
        return None
    return f"prompts.max_tokens = {most}: problem {problem.id!r} has {len(ids)} tokens; raise it, remove the problem"


def _no_room(problem: Problem, ids: tuple[int, ...], new: int, context: int | None, role: str) -> str | None:
    """What is wrong with a prompt that leaves its response no room."""
    if context is None or len(ids) + new <= context:
        return None
    return (
        f"rollout.max_new_tokens = {new}: problem {problem.id!r} has {len(ids)} tokens; together they exceed the "
        f"{role}'s context of {context}; set rollout.max_new_tokens={max(context - len(ids), 1)}, shorten the prompt"
    )
