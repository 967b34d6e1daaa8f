"""The prompts that are made of problems, as token ids: what student and teacher see."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..config import PromptSettings
from ..errors import InputError
from .problems import Problem


@dataclass(frozen=True)
class Prompt:
    """A problem as token ids. The teacher's differ where `teacher.context` is set."""

    problem: Problem
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    teacher: int | None = None
    """Number of its teacher, where a run has several: in order of their names."""


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptSettings,
    max_new_tokens: int,
    context: int | None,
    teacher_template: str | None = None,
    teacher_context: int | None = None,
    role: str = "teacher",
) -> list[Prompt]:
    """Token ids of every problem. `context` and `teacher_context` are the models' context lengths, None for no limit.
    role: the teacher's name in the settings.

    Raises InputError for a template field that a problem lacks, a prompt above `prompts.max_tokens`, or a prompt that
    leaves no room for its response.
    """
    prompts = []
    for problem in problems:
        ids = _encode(tokenizer, settings, _fill(settings.template, problem, "prompts.template"))
        teacher_ids = ids
        if teacher_template is not None:
            teacher_ids = _encode(tokenizer, settings, _fill(teacher_template, problem, f"{role}.context"))
        if len(ids) > settings.max_tokens:
            raise InputError(
                f"prompts.max_tokens = {settings.max_tokens}: problem {problem.id!r} has {len(ids)} tokens; "
                f"raise it or remove the problem"
            )
        _check_room(problem, ids, max_new_tokens, context, "student")
        _check_room(problem, teacher_ids, max_new_tokens, teacher_context, role)
        prompts.append(Prompt(problem, ids, teacher_ids))
    return prompts


def _fill(template: str, problem: Problem, setting: str) -> str:
    values = {"problem": problem.problem, "solution": problem.solution, "answer": problem.answer}
    try:
        text = template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"{setting} = {template!r}: cannot be filled in ({error!r}); fields are {{problem}}, {{solution}} and "
            f"{{answer}}, write other braces twice"
        ) from None
    for name, value in values.items():
        if value is None and f"{{{name}}}" in template:
            raise InputError(f"{setting} uses {{{name}}}, but problem {problem.id!r} has no {name}; add it")
    return text


def _encode(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, text: str) -> tuple[int, ...]:
    if settings.chat:
        if not tokenizer.chat_template:
            raise InputError(
                "prompts.chat = true: the student's tokenizer has no chat template; set prompts.chat=false"
            )
        system = [{"role": "system", "content": settings.system}] if settings.system is not None else []
        messages = [*system, {"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(text, add_special_tokens=not settings.chat)["input_ids"]
    # some tokenizers add EOS to every text, which would end the response before it begins
    while ids and not settings.chat and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not ids:
        raise InputError(f"prompts.template: the text {text!r} has no tokens; add text to the template or the problem")
    return tuple(ids)


def _check_room(problem: Problem, ids: tuple[int, ...], new: int, context: int | None, role: str) -> None:
    if context is not None and len(ids) + new > context:
        raise InputError(
            f"rollout.max_new_tokens = {new}: problem {problem.id!r} has {len(ids)} tokens; together they exceed the "
            f"{role}'s context of {context}; set rollout.max_new_tokens={max(context - len(ids), 1)} or shorten the "
            f"prompt"
        )
