"""Benchmarks by name or file: problems with answers, in a fixed order, and a hash of their content."""

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from . import tasks
from .held_out import one_line
from .problems import Problem, parse_problems, read_problems
from .rows import ENDINGS, ending_of, hub_rows, number_rows, read_rows

EMBEDDED_SIZE = 200
"""Number of problems in each embedded benchmark."""

_WHOLE = re.compile(r"([+-]?)0*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.0+)?")


@dataclass(frozen=True)
class Published:
    """A public benchmark: its place on the hub, and the hash of its content."""

    source: str
    """In the form of `prompts.path`, see `rows.hub_rows`."""
    problems: int
    """Number of problems."""
    sha256: str
    """`content_sha256` of the problems."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> name on the hub, where they differ."""
    note: str = ""
    """Which problems are meant, and which others have the same name."""


PUBLISHED = {
    "math500": Published(
        source="hub:HuggingFaceH4/MATH-500@test",
        problems=500,
        sha256="a98d42053796cbc37fa52d288c9611b55632a3864f49192b2375ba1a2663215c",
        note="the 500 problems of openai/prm800k's test split",
    ),
    "aime24": Published(
        source="hub:HuggingFaceH4/aime_2024@train",
        problems=30,
        sha256="da8dfeb7748746d1d93b9675b120f012550ead2fe916e25e1f684380a5f377e8",
        note="AIME I and II of 2024",
    ),
    "aime25": Published(
        source="hub:math-ai/aime25@test",
        problems=30,
        sha256="3dc9914ab71f24c196d8b95eb3a912d7b283a95093f2412f5c6a885c7c194da2",
        note="AIME I and II of 2025; another hub set of these problems writes its LaTeX differently",
    ),
    "amc23": Published(
        source="hub:math-ai/amc23@test",
        problems=40,
        sha256="03b1f02f6b5dd8d5553eb26574f2ad848c7a405590cb31619097685c8f1917f9",
        columns={"problem": "question"},
        note="the 40 problems of AMC 12A and 12B of 2023; sets of 83 problems have the same name and hold other years",
    ),
    "gsm8k": Published(
        source="hub:openai/gsm8k/main@test",
        problems=1319,
        sha256="7c5daed511d696f5ebf7e8f2213f34e50ef30a832b5e25dfd514782ce559de28",
        columns={"problem": "question", "solution": "answer"},
        note="the test split, not the 7,473 training problems",
    ),
}


def load_benchmark(
    name: str, limit: int | None = None, say: Callable[[str], None] = lambda line: None
) -> list[Problem]:
    """Problems of a benchmark; with `limit`, only the first so many.

    `lock16` ... `lock25` are embedded. One of PUBLISHED comes from the hub, or as NAME=FILE from a local file.
    Both are checked against its hash. Their ids are the first 12 digits of `problem_sha256`, and the problems are
    sorted by id, so that every copy is evaluated with the same random numbers. Any other file, or data set of the hub,
    is used as it is. say: gets a line about it, with the columns that were found.
    Raises InputError for an unknown name, content with another hash, or a problem without answer.
    """
    if name in tasks.BENCHMARKS:
        count = EMBEDDED_SIZE if limit is None else min(limit, EMBEDDED_SIZE)
        return [Problem(p.id, p.problem, p.answer, p.solution) for p in tasks.benchmark(name, count)]
    short = benchmark_name(name)
    if short in PUBLISHED:
        file = name.removeprefix(short).removeprefix("=")
        return list(_from_file(short, file) if file else _from_hub(short))[:limit]
    unknown = not ending_of(Path(name)) or ("=" in name and not Path(name).expanduser().is_file())
    if unknown and not name.startswith("hub:"):
        raise InputError(_unknown(name))
    problems, about = read_problems(read_rows(name, "--benchmark"))
    say(f"--benchmark {name}: {len(problems):,} problems; {about}")
    _require_answers(name, problems)
    return problems[:limit]


def benchmark_name(name: str) -> str:
    """The name under which scores are saved: NAME of NAME=FILE for a published benchmark, else `name` itself."""
    short, equals, _ = name.partition("=")
    return short if equals and short in PUBLISHED else name


def content_sha256(problems: Sequence[Problem]) -> str:
    """Hex digits that depend on the texts and answers only, not on order, ids, other columns or file format.

    SHA-256 of the sorted `problem_sha256` of all problems, joined by newlines.
    """
    return hashlib.sha256("\n".join(sorted(map(problem_sha256, problems))).encode()).hexdigest()


def problem_sha256(problem: Problem) -> str:
    r"""SHA-256 of "problem\nanswer" in UTF-8. Both are in Unicode NFC, with every run of white space as one space.

    An integer answer counts as its digits: "+073", "73.0" and "73" are the same, as are "1,319" and "1319". A
    conversation counts with all of its turns.
    """
    answer = one_line(problem.answer or "")
    whole = _WHOLE.fullmatch(answer)
    if whole is not None:
        digits = whole[2].replace(",", "")
        answer = ("-" if whole[1] == "-" and digits != "0" else "") + digits
    shown = problem.problem if problem.messages is None else json.dumps(problem.messages)
    return hashlib.sha256(f"{one_line(shown)}\n{answer}".encode()).hexdigest()


@functools.cache  # every stage of an evaluation needs it, and the hub is slow
def _from_hub(short: str) -> tuple[Problem, ...]:
    source = PUBLISHED[short].source
    try:
        rows = number_rows(source, hub_rows(source, f"--benchmark {short}"))
    except InputError as error:
        raise InputError(f"{error}; or a local copy: --benchmark {short}=FILE") from None
    problems = parse_problems(rows, PUBLISHED[short].columns)
    return _checked(short, f"{short}: {source}", problems)


def _from_file(short: str, file: str) -> tuple[Problem, ...]:
    """Columns have our names, or those on the hub, or usual ones."""
    rows = read_rows(file, f"--benchmark {short}")
    present = {name for _, row in rows if isinstance(row, dict) for name in row}
    theirs = {} if "problem" in present else PUBLISHED[short].columns
    columns = {ours: name for ours, name in theirs.items() if name in present}
    return _checked(short, f"{short}={file}", parse_problems(rows, columns))


def _checked(short: str, where: str, problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The problems with ids by content, sorted by id. Raises InputError where their hash is not the published one."""
    pin = PUBLISHED[short]
    _require_answers(where, problems)
    problems = [replace(p, answer=_final(p.answer or "")) for p in problems]
    found = content_sha256(problems)
    if found != pin.sha256:
        raise InputError(
            f"--benchmark {where}: {len(problems)} problems with sha256 {found}, but {short} is {pin.problems} "
            f"problems with sha256 {pin.sha256} ({pin.note}). Give the right copy as --benchmark {short}=FILE, or "
            f"this one as a benchmark of your own: a file under another name"
        )
    return tuple(sorted((replace(p, id=problem_sha256(p)[:12]) for p in problems), key=lambda p: p.id))


def _final(answer: str) -> str:
    """The answer without the solution before it (GSM8K ends with `#### 42`), and an integer without decimals."""
    answer = answer.rpartition("####")[2].strip()
    whole = _WHOLE.fullmatch(answer)
    return answer.partition(".")[0] if whole else answer


def _require_answers(where: str, problems: Sequence[Problem]) -> None:
    without = next((p.id for p in problems if p.answer is None), None)
    if without is not None:
        raise InputError(f"--benchmark {where}: problem {without!r} has no `answer` to grade by; add one or remove it")


def _unknown(name: str) -> str:
    known = [*tasks.BENCHMARKS, *PUBLISHED]
    near = difflib.get_close_matches(name.partition("=")[0], known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"--benchmark {name}: {hint}the embedded ones are {', '.join(tasks.BENCHMARKS)}; by name from the hub, or as "
        f"NAME=FILE from a local copy, {', '.join(PUBLISHED)}; or give a file that ends with "
        f"{', '.join(ENDINGS)}, or hub:OWNER/NAME@SPLIT"
    )
