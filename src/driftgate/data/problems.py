"""Problems from files, the hub or the embedded tasks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import PromptSettings
from ..config.sources import SourceSettings
from ..errors import InputError
from .columns import Found, find_columns, value_of
from .conversations import is_message, parse_conversation
from .rows import Rows, read_rows

SANDBOX_PROBLEMS = 4_096
"""Number of embedded training problems: more than any shipped recipe uses."""
MARK = "####"
"""GSM8K's answers are solutions that end with this and the final answer."""


@dataclass(frozen=True)
class Problem:
    """One problem. Training needs no answer; evaluation does."""

    id: str
    problem: str
    answer: str | None = None
    solution: str | None = None
    teacher: str | None = None
    """Name of its teacher, where a run has several."""
    messages: tuple[tuple[str, str], ...] | None = None
    """(role, content) of a conversation that the student is to go on with; None for a single text. `problem` is then
    the last user's message."""
    source: str | None = None
    """Name of its source in a mixture."""


def load_problems(
    settings: PromptSettings, routed: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Problem]:
    """The problems of `prompts.path`, or of every source of `prompts.mix`, whose ids then begin with the source's name.
    routed: read which teacher each has. say: gets a line about each source, with the columns that were found. Raises
    InputError naming the file and the row."""
    problems = []
    for name, source in settings.sources.items():
        found, about = _load_source(source, settings.setting_of(name), routed)
        share = f"; weight {source.weight:g} of {sum(each.weight for each in settings.mix.values()):g}" if name else ""
        say(f"{settings.setting_of(name)}: {about}{share}")
        problems += [_of_source(problem, name, source) for problem in found] if name else found
    return problems


def _of_source(problem: Problem, name: str, source: SourceSettings) -> Problem:
    return replace(problem, id=f"{name}/{problem.id}", source=name, teacher=problem.teacher or source.teacher)


def _load_source(source: SourceSettings, setting: str, routed: bool) -> tuple[list[Problem], str]:
    """The problems, and what is to be said of them."""
    if source.path == "sandbox":
        from .tasks import training_problems

        drawn = training_problems(min(source.limit or SANDBOX_PROBLEMS, SANDBOX_PROBLEMS))
        problems = [Problem(p.id, p.problem, p.answer, p.solution) for p in drawn]
        return problems, f"{len(problems):,} embedded problems"
    rows = read_rows(source.path, f"{setting}.path")[: source.limit]
    problems, about = read_problems(rows, source.columns, f"{setting}.columns", routed)
    name = source.path if source.path.startswith("hub:") else Path(source.path).name
    return problems, f"{len(problems):,} problems of {name}; {about}"


def parse_problems(rows: Rows, columns: Mapping[str, str] | None = None) -> list[Problem]:
    """The problems of `read_problems` alone."""
    return read_problems(rows, columns)[0]


def read_problems(
    rows: Rows, columns: Mapping[str, str] | None = None, setting: str | None = None, routed: bool = False
) -> tuple[list[Problem], str]:
    """The problems of (place, row) pairs, and from which columns they are. columns: our name -> name in the rows;
    others are found. setting: that gives columns, None where none does. routed: read the teacher's name too. Raises
    InputError that says where."""
    found = find_columns(rows, columns or {}, setting)
    problems: dict[str, Problem] = {}
    for place, row in rows:
        problem = _parse_problem(place, row, found, str(len(problems)), routed)
        if problem.id in problems:
            raise InputError(f"{place}: id {problem.id!r} is used twice; make ids unique, sampling is keyed by them")
        problems[problem.id] = problem
    about = found.describe()
    if "solution" not in found.names and any(p.messages and p.solution is not None for p in problems.values()):
        about += ", solution from the assistant's last turn"
    if _ends_with_answers(problems, found):
        return [_split(problem) for problem in problems.values()], f"{about}, of it what follows {MARK}"
    return list(problems.values()), about


def _parse_problem(place: str, row: Any, found: Found, default_id: str, routed: bool) -> Problem:
    if not isinstance(row, dict):
        raise InputError(f'{place}: must be an object such as {{"problem": "..."}}, is {type(row).__name__}')
    column, messages, reference = found.names.get("problem", "problem"), None, None
    text = value_of(row, column)
    if isinstance(text, list) or (column == "messages" and text is not None):
        messages, reference = parse_conversation(place, column, text)
        text = messages[-1][1]
    if not isinstance(text, str) or not text.strip():
        hint = f"; the columns are {sorted(row)}; {found.mend}" if column not in row else ""
        raise InputError(f"{place}: {column!r} must be a text that is not empty{hint}")
    names = ("answer", "solution", *(["teacher"] if routed else []))
    texts = {name: _text(value_of(row, found.names.get(name))) for name in names}
    identity = _text(value_of(row, found.names.get("id")))
    texts |= {"solution": reference if texts["solution"] is None else texts["solution"]}
    return Problem(default_id if identity is None else identity, text, messages=messages, **texts)


def _text(value: Any) -> str | None:
    """A cell as text: of a single message its content, of another list or object its JSON."""
    if isinstance(value, list) and len(value) == 1 and is_message(value[0]):
        return value[0]["content"]
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    return None if value is None else str(value)


def _ends_with_answers(problems: Mapping[str, Problem], found: Found) -> bool:
    """Whether the column of answers holds solutions that end with the answer: in all rows, nothing says that it is to
    be taken as it is, and no other column has solutions."""
    if "answer" in found.given or found.names.get("solution") not in (None, found.names.get("answer")):
        return False
    answers = [problem.answer for problem in problems.values() if problem.answer is not None]
    return bool(answers) and all(MARK in answer for answer in answers)


def _split(problem: Problem) -> Problem:
    if problem.answer is None:
        return problem
    return replace(problem, answer=problem.answer.rpartition(MARK)[2].strip(), solution=problem.answer)
