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

    Raises InputError for a template field that a problem lacks, a prompt above `prompts.max_tokens`, or a prompt that
    leaves no room for its response.
    """
    prompts = []
    for problem in problems:
        ids = student.encode(problem)
        teacher_ids = ids if teacher is None or teacher == student else teacher.encode(problem)
        if len(ids) > settings.max_tokens:
            raise InputError(
                f"prompts.max_tokens = {settings.max_tokens}: problem {problem.id!r} has {len(ids)} tokens; "
                f"raise it or remove the problem"
            )
        _check_room(problem, ids, max_new_tokens, context, "student")
        _check_room(problem, teacher_ids, max_new_tokens, teacher_context, role)
        prompts.append(Prompt(problem, ids, teacher_ids))
    return prompts


def _check_room(problem: Problem, ids: tuple[int, ...], new: int, context: int | None, role: str) -> None:
    if context is not None and len(ids) + new > context:
        raise InputError(
            f"rollout.max_new_tokens = {new}: problem {problem.id!r} has {len(ids)} tokens; together they exceed the "
            f"{role}'s context of {context}; set rollout.max_new_tokens={max(context - len(ids), 1)} or shorten the "
            f"prompt"
        )
