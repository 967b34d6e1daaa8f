"""`driftgate train`: a run folder from nothing, or onward from its last checkpoint."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from ..config import TrainConfig
from ..data.prompts import Prompt
from ..errors import InputError, RunError
from ..models.identity import fingerprint
from ..stop import Stopped, StopSignal
from . import setup
from .loop import train
from .tracking import Display, write_config, write_environment


def run(config: TrainConfig, out: Path, console: Console, tell: Callable[[int], None] | None = None) -> None:
    """Train in `out`, which holds config.yaml, environment.json, metrics.jsonl, rollouts/ and checkpoints/ afterwards.

    tell: is told of every so many steps that are done, those of earlier sessions included.
    Raises InputError before any compute for what the user must mend, RunError for a failure on the way.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    begun = setup.lock(out) if out.is_dir() else None  # a new folder is made only once the input is checked
    config = setup.resolved_config(config, out)
    parts = setup.set_up(config, out)
    problems = fingerprint_of_problems(parts.prompts)
    check_same_problems(out / "environment.json", problems)
    with begun or setup.lock(out):
        write_config(out / "config.yaml", config)
        code = {"code_sha256": hashlib.sha256(Path(config.code).read_bytes()).hexdigest()} if config.code else {}
        models = {
            "student_sha256": fingerprint(parts.policy, parts.tokenizer),
            "teacher_sha256": fingerprint(parts.targets["teacher"].policy, parts.tokenizer),
        }
        environment = {"began_at": parts.position.name, "problems_sha256": problems, **models, **code}
        write_environment(out / "environment.json", **environment)
        if parts.position.step or parts.position.update:
            console.print(f"resuming {out} at {parts.position.name}", highlight=False)
        with (
            parts.grader,
            StopSignal() as stop,
            Display(console, config.steps, parts.position.step, tell) as display,
        ):
            try:
                train(config, parts, out, display, stop)
            except Stopped:
                console.print(f"stopped and saved; the same command with --out {out} goes on", highlight=False)
                raise
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"the GPU's memory is full ({str(error).splitlines()[0]}); lower microbatch_tokens (now "
                    f"{config.microbatch_tokens}) or, in a rollout, rollout.batch (now {config.rollout.batch}) and go "
                    "on in the same folder; or, in another --out, set student.gradient_checkpointing=true"
                ) from None
    console.print(f"{config.steps} steps done; model in {final_model(out)}", highlight=False)


def fingerprint_of_problems(prompts: Sequence[Prompt]) -> str:
    """sha256 of the problems as parsed, whatever file they came from."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(asdict(prompt.problem), sort_keys=True).encode())
    return digest.hexdigest()


def check_same_problems(environment: Path, problems: str) -> None:
    """A resumed run must find the problems that it began with. Raises InputError."""
    sessions = json.loads(environment.read_text()) if environment.is_file() else []
    if sessions and sessions[-1].get("problems_sha256") != problems:
        raise InputError(
            f"prompts.path: the problems are not those that the run in {environment.parent} began with; "
            f"restore them, or choose another --out"
        )


def final_model(out: Path) -> Path:
    """The model folder of a run's newest checkpoint."""
    return setup.checkpoint.all_checkpoints(out / "checkpoints")[-1] / "model"
