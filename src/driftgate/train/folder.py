"""A run folder: its lock, its configuration, its environment, and the settings that a resumed run may change."""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import __name__ as package
from ..config import TrainConfig
from ..data.prompts import Prompt
from ..errors import InputError
from ..files import replace_file
from ..recipe import check_config
from ..scorers.served_teacher import About
from ..scorers.server import ServedScorer
from . import checkpoint

PACKAGES = ("driftgate", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")
MAY_CHANGE = ("steps", "checkpoint", "offload", "device", "microbatch_tokens", "rollout.batch")
"""Settings that a resumed run may change. The last three change results, by rounding."""


def resolved_config(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration to run with. In an existing run folder the threads are those that the run began with. Raises
    InputError for a setting that may not change there."""
    before = config_of(out)
    if before is None:
        return config.model_copy(update={"threads": config.threads or torch.get_num_threads()})
    return check_resumable(before, config, out)


def config_of(out: Path) -> TrainConfig | None:
    """The configuration in a run folder; None for a new folder. Raises InputError if another version wrote it."""
    path = out / "config.yaml"
    if not path.is_file():
        return None
    try:
        return check_config(yaml.safe_load(path.read_text()))
    except InputError as error:
        raise InputError(
            f"--out {out}: its config.yaml is of another version ({error}); choose another --out"
        ) from None


def check_resumable(before: TrainConfig, config: TrainConfig, out: Path) -> TrainConfig:
    """`config`, with the threads that the run began with. Raises InputError for a setting that may not change."""
    if config.threads is None:
        config = config.model_copy(update={"threads": before.threads})
    changed = changed_settings(before, config)
    refused = [name for name in changed if name not in MAY_CHANGE]
    if "steps" in changed and config.optimizer.schedule != "constant":
        refused.append("steps (the schedule of the learning rate depends on them)")
    if "steps" in changed and config.rollout.stale:
        refused.append("steps (rollout.lag, refresh and reuse write batches for them ahead)")
    if refused:
        raise InputError(
            f"--out {out}: holds a run with other settings: {', '.join(refused)}; its own are in "
            f"{out / 'config.yaml'}. Choose another --out, or give the same settings to resume it"
        )
    return config


def changed_settings(before: TrainConfig, config: TrainConfig) -> list[str]:
    """Names of the settings at the top level that differ. If `rollout` differs only in its batch, or in which servers
    write, "rollout.batch"."""
    before = _with_places(before, config)
    changed = [name for name in TrainConfig.model_fields if getattr(before, name) != getattr(config, name)]
    free: dict[str, Any] = {"batch": config.rollout.batch}
    if before.rollout.engine.kind == config.rollout.engine.kind:
        free["engine"] = config.rollout.engine
    same = before.rollout.model_copy(update=free) == config.rollout
    return ["rollout.batch" if name == "rollout" and same else name for name in changed]


_PLACES = ("cache", "urls", "concurrency", "timeout", "patience")
"""Settings of a teacher that say where its scores come from, not what they are."""


def _with_places(before: TrainConfig, config: TrainConfig) -> TrainConfig:
    """`before`, with the teachers' caches and servers where `config` has them: these change nothing that a run
    computes. Which model the servers have is checked apart."""
    moved = {
        role: each.model_copy(update={name: getattr(config.teacher_roles[role], name) for name in _PLACES})
        for role, each in before.teacher_roles.items()
        if role in config.teacher_roles
    }
    several = {name: moved.get(f"teachers.{name}", each) for name, each in before.teachers.items()}
    return before.model_copy(update={"teacher": moved.get("teacher", before.teacher), "teachers": several})


def lock(out: Path):
    """Keep other processes out of the run folder while the returned file is open. Raises InputError if one is in it."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"--out {out}: another process is training in this folder; choose another --out") from None
    return file


def fingerprint_of_problems(prompts: Sequence[Prompt]) -> str:
    """SHA-256, in hex, of the parsed problems. The file that they come from does not matter."""
    digest = hashlib.sha256()
    for prompt in prompts:
        known = asdict(prompt.problem)
        for newer in ("teacher", "messages", "source"):
            if known[newer] is None:
                del known[newer]  # so that a run without them has the fingerprint that it always had
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()


def check_same_problems(environment: Path, problems: str) -> None:
    """A resumed run must have the problems that it began with. Raises InputError."""
    _check_same(environment, "problems_sha256", problems, "prompts.path: the problems are not those that")


def check_same_base(environment: Path, base: str | None) -> None:
    """A resumed run must have the base that its adapter was trained on. Raises InputError."""
    _check_same(environment, "base_sha256", base, "student.path: the base of student.lora is not the one that")


def shown_served(served: Mapping[str, ServedScorer]) -> dict[str, Any]:
    """What the servers of each teacher say of themselves."""
    return {role: asdict(scorer.about) for role, scorer in served.items()}


def check_same_served(environment: Path, served: Mapping[str, ServedScorer]) -> None:
    """A resumed run must find the models on servers that it began with. Raises InputError."""
    sessions = json.loads(environment.read_text()) if environment.is_file() else []
    before = sessions[-1].get("served_teachers", {}) if sessions else {}
    for role, scorer in served.items():
        was = About(**before[role]) if role in before else scorer.about
        if other := was.is_another(scorer.about):
            raise InputError(
                f"{role}.urls: the model is not the one that the run in {environment.parent} began with: it {other}; "
                f"serve that one, or choose another --out"
            )


def _check_same(environment: Path, name: str, value: str | None, what: str) -> None:
    sessions = json.loads(environment.read_text()) if environment.is_file() else []
    if sessions and sessions[-1].get(name) != value:
        raise InputError(
            f"{what} the run in {environment.parent} began with; restore what was there, or choose another --out"
        )


def final_model(out: Path) -> Path:
    """The model folder of a run's newest checkpoint."""
    return checkpoint.all_checkpoints(out / "checkpoints")[-1] / "model"


def sha256_of(path: str) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_config(path: Path, config: TrainConfig) -> None:
    """Write the resolved configuration. The file is itself a recipe."""
    replace_file(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_environment(path: Path, **more: Any) -> None:
    """Append an entry about this session: command, machine, versions and `more`. A resumed run has several entries."""
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
    """Commit of the git checkout that driftgate runs from, and whether files in it have changed. None outside a
    checkout."""
    folder = Path(sys.modules[package].__file__ or ".").parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))} if commit else None
