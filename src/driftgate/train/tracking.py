"""What a run leaves for its reader: resolved config, metrics, rollouts, environment; and what it shows meanwhile."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import TextColumn

from .. import __name__ as package
from ..config import TrainConfig
from ..files import replace_file
from ..progress import bars
from .checkpoint import Position

PACKAGES = ("driftgate", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


class Metrics:
    """metrics.jsonl: a line per rollout batch (`kind` "rollout") and per optimiser update ("update")."""

    def __init__(self, path: Path, position: Position):
        """Lines from beyond the position that the run resumes at are dropped: they are about to be made again."""
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = "".join(line for line in lines if line.endswith("\n") and _is_before(json.loads(line), position))
        replace_file(path, kept)
        self.file = path.open("a")

    def log(self, kind: str, **values: Any) -> None:
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


def write_config(path: Path, config: TrainConfig) -> None:
    """The resolved configuration, which is itself a recipe."""
    replace_file(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_environment(path: Path, **more: Any) -> None:
    """Append what this session ran on; a resumed run has several entries."""
    sessions = json.loads(path.read_text()) if path.is_file() else []
    sessions.append(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "git": _git_state(),
            **more,
        }
    )
    replace_file(path, json.dumps(sessions, indent=2) + "\n")


def _git_state() -> dict[str, Any] | None:
    """Commit of the driftgate checkout this runs from, and whether it has changes; None for an installed package."""
    folder = Path(sys.modules[package].__file__ or ".").parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))} if commit else None


class Display:
    """A progress bar with the time left on a terminal; a line per step elsewhere."""

    def __init__(self, console: Console, steps: int, done: int, tell: Callable[[int], None] | None = None):
        self.console, self.steps, self.tell = console, steps, tell or (lambda steps: None)
        self.tell(done)
        self.progress = bars(console, TextColumn("{task.fields[note]}"))
        self.steps_bar = self.progress.add_task("steps", total=steps, completed=done, note="")
        self.responses_bar = self.progress.add_task("responses", total=None, visible=False, note="")

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def rollout(self, responses: int) -> None:
        """A rollout of so many responses begins."""
        self.progress.reset(self.responses_bar, total=responses, visible=True)

    def advance(self, responses: int) -> None:
        self.progress.advance(self.responses_bar, responses)

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step is done; `metrics` are those of its last update and rollout."""
        shown = ("loss", "correct", "gate_mean", "gate_min", "drift_abs", "tokens_mean", "truncated")
        parts = [f"{name} {metrics[name]:.3g}" for name in shown if metrics.get(name) is not None]
        self.tell(1)
        self.progress.update(self.steps_bar, completed=step, note="  ".join(parts[:2]))
        if not self.console.is_terminal:
            self.console.print(f"step {step}/{self.steps}  {'  '.join(parts)}", highlight=False, soft_wrap=True)
