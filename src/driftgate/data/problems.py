"""Problems from a file, the hub or the embedded tasks."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import PromptSettings
from ..config.prompts import COLUMNS
from ..errors import InputError
from .conversations import parse_conversation

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
    messages: tuple[tuple[str, str], ...] | None = None
    """(role, content) of a conversation that the student is to go on with; None for a single text. `problem` is then
    the last user's message."""


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
    names = {name: (columns or {}).get(name, name) for name in COLUMNS if routed or name != "teacher"}
    problems: dict[str, Problem] = {}
    if columns:
        rows = list(rows)
        _check_columns(rows, columns)
    for where, row in rows:
        problem = _parse_problem(where, row, names, default_id=str(len(problems)))
        if problem.id in problems:
            raise InputError(f"{where}: id {problem.id!r} is used twice; make ids unique, sampling is keyed by them")
        problems[problem.id] = problem
    return list(problems.values())


def _check_columns(rows: Sequence[tuple[str, Any]], columns: dict[str, str]) -> None:
    """Every column that is named is in some row. Raises InputError."""
    present = {name for _, row in rows if isinstance(row, dict) for name in row}
    for ours, theirs in columns.items():
        if present and theirs not in present:
            raise InputError(
                f"prompts.columns.{ours} = {theirs!r}: no row has this column; the columns are {sorted(present)}"
            )


def _parse_problem(where: str, row: Any, names: dict[str, str], default_id: str) -> Problem:
    if not isinstance(row, dict):
        raise InputError(f'{where}: must be an object such as {{"problem": "..."}}, is {type(row).__name__}')
    turns = row.get(names["messages"]) if row.get(names["problem"]) is None else None
    if turns is not None:
        messages, reference = parse_conversation(where, names["messages"], turns)
        filled = {names["problem"]: messages[-1][1], names["solution"]: row.get(names["solution"], reference)}
        return replace(_parse_problem(where, row | filled, names, default_id), messages=messages)
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
