"""Problems from a file, the hub or the embedded tasks, and the prompts made of them for student and teacher."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import PromptSettings
from ..errors import InputError

SANDBOX_PROBLEMS = 4_096
"""Number of embedded training problems: more than any shipped recipe uses."""


@dataclass(frozen=True)
class Problem:
    """One problem. Training needs no answer; evaluation does."""

    id: str
    problem: str
    answer: str | None = None
    solution: str | None = None
    teacher: str | None = None
    """Name of its teacher, where a run has several."""


@dataclass(frozen=True)
class Prompt:
    """A problem as token ids. The teacher's differ where `teacher.context` is set."""

    problem: Problem
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    teacher: int | None = None
    """Number of its teacher, where a run has several: in order of their names."""


def load_problems(settings: PromptSettings, routed: bool = False) -> list[Problem]:
    """The problems that `prompts.path` names. routed: read which teacher each has. Raises InputError naming the file
    and the line."""
    if settings.path == "sandbox":
        from .tasks import training_problems

        return [Problem(p.id, p.problem, p.answer, p.solution) for p in training_problems(SANDBOX_PROBLEMS)]
    if settings.path.startswith("hub:"):
        rows: Iterable[tuple[str, Any]] = enumerate_rows(settings.path, hub_rows(settings.path))
    else:
        rows = jsonl_rows(Path(settings.path).expanduser(), "prompts.path")
    return parse_problems(rows, settings.columns, routed)


def parse_problems(
    rows: Iterable[tuple[str, Any]], columns: dict[str, str] | None = None, routed: bool = False
) -> list[Problem]:
    """(where, row) pairs to problems. columns: our name -> name in the rows. routed: read the teacher's name too.
    Raises InputError that says where."""
    ours = ("id", "problem", "answer", "solution", *(["teacher"] if routed else []))
    names = {name: (columns or {}).get(name, name) for name in ours}
    problems: dict[str, Problem] = {}
    for where, row in rows:
        problem = _parse_problem(where, row, names, default_id=str(len(problems)))
        if problem.id in problems:
            raise InputError(f"{where}: id {problem.id!r} is used twice; make ids unique, sampling is keyed by them")
        problems[problem.id] = problem
    return list(problems.values())


def _parse_problem(where: str, row: Any, names: dict[str, str], default_id: str) -> Problem:
    if not isinstance(row, dict):
        raise InputError(f'{where}: must be an object such as {{"problem": "..."}}, is {type(row).__name__}')
    text = row.get(names["problem"])
    if not isinstance(text, str) or not text.strip():
        hint = f"; the columns are {sorted(row)}; rename with prompts.columns" if text is None else ""
        raise InputError(f"{where}: {names['problem']!r} must be a text that is not empty{hint}")
    answer, solution = row.get(names["answer"]), row.get(names["solution"])
    teacher = row.get(names["teacher"]) if "teacher" in names else None
    return Problem(
        id=default_id if row.get(names["id"]) is None else str(row[names["id"]]),
        problem=text,
        answer=None if answer is None else str(answer),
        solution=None if solution is None else str(solution),
        teacher=None if teacher is None else str(teacher),
    )


def jsonl_rows(path: Path, setting: str) -> list[tuple[str, Any]]:
    """(file:line, object) of every line that is not blank. Raises InputError for a missing, empty or invalid file."""
    if not path.is_file():
        raise InputError(f"{setting} = {path}: there is no such file; give a JSONL file with a `problem` on each line")
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{setting} = {path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    # not splitlines(): it also splits at characters such as U+2028, which JSON strings may hold unescaped
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not rows:
        raise InputError(f"{setting} = {path}: the file has no lines that are not blank; give at least one problem")
    return rows


def enumerate_rows(name: str, rows: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return ((f"{name} row {number}", row) for number, row in enumerate(rows))


def hub_rows(path: str) -> Iterable[Any]:
    """Rows of `hub:OWNER/NAME[/CONFIG][@SPLIT]`. Needs the extra `datasets`.

    Raises InputError where the extra is missing or the data set cannot be loaded.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"prompts.path = {path}: needs the extra `datasets`: pip install 'driftgate[datasets]', or in a clone "
            ".venv/bin/pip install -e '.[datasets]'"
        ) from None
    name, _, split = path.removeprefix("hub:").partition("@")
    owner_and_name, config = "/".join(name.split("/")[:2]), name.split("/")[2:]
    try:
        return datasets.load_dataset(owner_and_name, *config, split=split or "train")
    except (OSError, ValueError) as error:  # no such data set, no network, or no such configuration or split
        why = str(error).splitlines()[0]
        raise InputError(f"prompts.path = {path}: cannot be loaded: {why}; check name, split and network") from None


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
