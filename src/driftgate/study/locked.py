"""What the arms of a study share, proved by hashes taken from what the runs left, not from what they were told."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..settings import flat
from .config import Study
from .runs import seed_of

Hash = Callable[[Path], str]
"""Of a run folder."""


def locked(study: Study, done: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """One entry for each thing: {"what", "hash": one or by seed, "same", "differs": arms whose runs have another}.

    done: the run folders of each arm. What goes by seed is compared within each seed.
    """
    for_all = {"settings not under test": partial(_settings, study), **FOR_ALL}
    entries = [_entry(what, of, done, False) for what, of in for_all.items()]
    lengths = {len(_steps(folder)) for folders in done.values() for folder in folders}
    common = min(lengths, default=0)
    shown = "prompts shown, in order" + (f", in the first {common} steps" if len(lengths) > 1 else "")
    by_seed = {shown: partial(_shown, steps=common), "first rollout batch, token by token": _first_rollout}
    return entries + [_entry(what, of, done, True) for what, of in by_seed.items()]


def _entry(what: str, of: Hash, done: Mapping[str, Sequence[Path]], by_seed: bool) -> dict[str, Any]:
    known: dict[str, str] = {}
    others = []
    for arm, folders in done.items():
        for folder in folders:
            found = of(folder)
            if known.setdefault(seed_of(folder) if by_seed else "", found) != found:
                others.append(arm)
    shown = known if by_seed else known.get("", "")
    return {"what": what, "hash": shown, "same": not others, "differs": list(dict.fromkeys(others))}


def _settings(study: Study, run: Path) -> str:
    """Of all settings that it ran with but the seed and those that may vary."""
    groups = ("seed", *study.varies)
    kept = {
        key: value
        for key, value in flat(yaml.safe_load((run / "config.yaml").read_text())).items()
        if not any(key == group or key.startswith(f"{group}.") for group in groups)
    }
    return sha256_of(kept)


def sha256_of(value: Any) -> str:
    """Of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _session(run: Path, key: str) -> str:
    return json.loads((run / "environment.json").read_text())[0][key]


def _teachers(run: Path) -> str:
    """The teacher; of several one hash for all."""
    session = json.loads((run / "environment.json").read_text())[0]
    several = {name: value for name, value in session.items() if name.startswith("teachers.")}
    return sha256_of(sorted(several.items())) if several else session["teacher_sha256"]


def _shown(run: Path, steps: int) -> str:
    """Which prompts each of the first steps showed, and how often."""
    return sha256_of([[(row["prompt"], row["sample"]) for row in _rows(path)] for path in _steps(run)[:steps]])


def _first_rollout(run: Path) -> str:
    """Every token of the first rollout batch: initial weights, prompts and random numbers all speak through it."""
    return sha256_of([(row["prompt"], row["sample"], row["ids"]) for row in _rows(_steps(run)[0])])


def _exam(run: Path) -> str:
    result = json.loads((run / "eval" / "result.json").read_text())
    return sha256_of([result["settings"], result["benchmarks"]])


def _code(run: Path) -> str:
    """Commit, changes and versions of every session, each once."""
    sessions = json.loads((run / "environment.json").read_text())
    return sha256_of(sorted({sha256_of([session["git"], session["packages"]]) for session in sessions}))


def _steps(run: Path) -> list[Path]:
    return sorted((run / "rollouts").glob("step-*.jsonl"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FOR_ALL: dict[str, Hash] = {
    "problems of training, as parsed": lambda run: _session(run, "problems_sha256"),
    "student before training: weights, tokenizer": lambda run: _session(run, "student_sha256"),
    "teacher: weights, tokenizer": _teachers,
    "examination: settings, problems": _exam,
    "code and versions": _code,
}
