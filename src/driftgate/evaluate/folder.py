"""The folder of an evaluation: eval.json says what was asked, samples.jsonl grows part by part, result.json ends it."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import replace_file
from ..settings import differing, flat

Key = tuple[str, str, int]
"""Benchmark, problem, sample."""
Row = dict[str, Any]


class OtherEvaluationError(InputError):
    """The folder holds another evaluation than the one that is asked for."""


class Folder:
    """`rows` are the samples so far. Without a path they are held in memory alone.

    Raises InputError for a folder that cannot be written or holds what it should not, OtherEvaluationError where it was
    begun with other settings, benchmarks or another model; before anything is changed in it.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]):
        self.path = path
        self.rows: dict[Key, Row] = {}
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            _check_asked(path, json.loads(json.dumps(asked)))
            self.rows = {key_of(row): row for row in _whole_rows(path / "samples.jsonl")}
            with (path / "samples.jsonl").open("a"):
                pass
        except OSError as error:
            raise InputError(f"--out {path}: cannot be written to ({error.strerror}); choose another folder") from None

    def add(self, rows: Sequence[Row]) -> None:
        """Rows that are here to stay, whatever happens next."""
        self.rows |= {key_of(row): row for row in rows}
        if self.path is not None:
            with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.write(_lines(rows))

    def result(self) -> dict[str, Any] | None:
        """What an evaluation that is done has found."""
        path = self.path / "result.json" if self.path is not None else None
        return json.loads(path.read_text()) if path is not None and path.is_file() else None

    def finish(self, order: Iterable[Key], result: dict[str, Any]) -> None:
        """Put samples.jsonl into its final order, then write result.json."""
        if self.path is not None:
            replace_file(self.path / "samples.jsonl", _lines(self.rows[key] for key in order))
            replace_file(self.path / "result.json", json.dumps(result, indent=2) + "\n")


def key_of(row: Row) -> Key:
    return row["benchmark"], row["problem"], row["sample"]


def _check_asked(path: Path, asked: dict[str, Any]) -> None:
    """Compare with what the folder was begun with; note it in a new folder."""
    note, samples = path / "eval.json", path / "samples.jsonl"
    if not note.is_file():
        if samples.is_file() and samples.stat().st_size:
            raise OtherEvaluationError(
                f"--out {path}: holds samples, but no eval.json that says of what; give a new folder"
            )
        replace_file(note, json.dumps(asked, indent=2) + "\n")
        return
    before, now = flat(json.loads(note.read_text())), flat(asked)
    other = [
        f"{name} = {json.dumps(before.get(name))}, asked for is {json.dumps(now.get(name))}"
        for name in differing(before, now)
    ]
    if other:
        raise OtherEvaluationError(
            f"--out {path}: was begun with {'; '.join(other)}. Ask for the same to go on, or give a new folder"
        )


def _whole_rows(path: Path) -> list[Row]:
    """Rows of the lines that were written to their end; a last line cut short is taken off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.split(b"\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"--out {path.parent}: {path.name} is damaged ({error}); give a new folder") from None
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return rows


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
