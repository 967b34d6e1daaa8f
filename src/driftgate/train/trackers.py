"""The files that a run writes while it trains: metrics.jsonl and rollouts/."""

import json
from pathlib import Path
from typing import Any, TextIO

from ..files import replace_file
from .checkpoint import Position


class Metrics:
    """metrics.jsonl. Each rollout batch adds a line of kind "rollout", each optimiser update one of kind "update"."""

    def __init__(self, path: Path, position: Position, writes: bool = True):
        """Deletes lines that come after the position where the run resumes: the run is about to write them again.

        writes: False on ranks that leave writing to rank 0.
        """
        self.file: TextIO | None = None
        if not writes:
            return
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = "".join(line for line in lines if line.endswith("\n") and _is_before(json.loads(line), position))
        replace_file(path, kept)
        self.file = path.open("a")

    def log(self, kind: str, **values: Any) -> None:
        """Append a line and flush it."""
        if self.file is not None:
            self.file.write(json.dumps({"kind": kind, **values}) + "\n")
            self.file.flush()


def _is_before(line: dict[str, Any], position: Position) -> bool:
    """Whether a line belongs to the part of the run before the position. A line counts `step` and `update` from 1."""
    if line["step"] <= position.step:
        return True
    in_step_begun = line["step"] == position.step + 1 and position.update > 0
    return in_step_begun and (line["kind"] == "rollout" or line["update"] <= position.update)


def write_rollouts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the responses of a step as JSONL. Each row has the prompt's id, the sample's number, text and token ids,
    whether the response ended, and whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
