"""Problems that are never trained on, so that a run can be examined on them: chosen by the checksum of their text."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..files import replace_file
from .problems import Problem


def one_line(text: str) -> str:
    """In Unicode NFC, with every run of white space as one space, and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_held_out(problem: Problem, share: float) -> bool:
    """Whether a problem is among the share, 0 to 1, that is held out. Depends on its text alone, so on no order and no
    other problem; what is held out of a smaller share is so of a larger one."""
    digest = hashlib.sha256(one_line(problem.problem).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def files_of(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """The files that they are written to, in the run folder: held_out.jsonl, or held_out/SOURCE.jsonl for each source
    of a mixture. Problems without an answer are left out: nobody can be examined on them."""
    files: dict[str, list[Problem]] = {}
    for problem in problems:
        name = f"held_out/{problem.source}.jsonl" if problem.source else "held_out.jsonl"
        if problem.answer is not None:
            files.setdefault(name, []).append(problem)
    return files


def write_held_out(out: Path, problems: Sequence[Problem]) -> None:
    """Write the files, which `data.benchmarks` reads, below `out`."""
    for name, part in files_of(problems).items():
        (out / name).parent.mkdir(exist_ok=True)
        replace_file(out / name, "".join(_row(problem) + "\n" for problem in part))


def _row(problem: Problem) -> str:
    known = {name: getattr(problem, name) for name in ("id", "problem", "answer", "solution")}
    if problem.messages is not None:
        known["problem"] = [{"role": role, "content": content} for role, content in problem.messages]
    return json.dumps({name: value for name, value in known.items() if value is not None})
