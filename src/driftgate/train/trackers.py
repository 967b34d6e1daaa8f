"""What a run writes down while it runs: metrics.jsonl and rollouts/."""

import json
from pathlib import Path
from typing import Any, TextIO

from ..files import replace_file
from .checkpoint import Position


class Metrics:
    """metrics.jsonl: a line per rollout batch (`kind` "rollout") and per optimiser update ("update")."""

    def __init__(self, path: Path, position: Position, writes: bool = True):
        """Lines from beyond the position that the run resumes at are dropped: they are about to be made again.

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
        if self.file is not None:
            self.file.write(json.dumps({"kind": kind, **values}) + "\n")
            self.file.flush()


def _is_before(line: dict[str, Any], position: Position) -> bool:
    """Whether a line was made before the position; `step` and `update` count from 1."""
    if line["step"] <= position.step:
        return True
    in_step_begun = line["step"] == position.step + 1 and position.update > 0
    return in_step_begun and (line["kind"] == "rollout" or line["update"] <= position.update)


def write_rollouts(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSONL file per step: prompt id, sample index, text, token ids, whether it ended, whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
