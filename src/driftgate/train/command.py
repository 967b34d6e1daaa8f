"""`driftgate train`: a run folder from nothing, or onward from its last checkpoint."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from ..config import TrainConfig
from ..errors import InputError, RunError
from ..models.identity import fingerprint
from ..models.views import AdapterView
from ..recipe import run_code
from ..stop import Stopped, StopSignal
from . import folder
from .build import build_run
from .display import Display
from .loop import train
from .run import Run


def run(config: TrainConfig, out: Path, console: Console, advance: Callable[[int], None] | None = None) -> None:
    """Train in `out`, which holds config.yaml, environment.json, metrics.jsonl, rollouts/ and checkpoints/ afterwards.

    advance: called for every so many steps that are done, those of earlier sessions included.
    Raises InputError before any compute for what the user must mend, RunError for a failure on the way.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    begun = folder.lock(out) if out.is_dir() else None  # a new folder is made only once the input is checked
    run_code(config.code)
    made = build_run(folder.resolved_config(config, out), out)
    problems = folder.fingerprint_of_problems(made.prompts)
    folder.check_same_problems(out / "environment.json", problems)
    base = _base_sha256(made)
    folder.check_same_base(out / "environment.json", base)
    with begun or folder.lock(out):
        _write_head(made, problems, base)
        if made.position.step or made.position.update:
            console.print(f"resuming {out} at {made.position.name}", highlight=False)
        with (
            made.grader,
            StopSignal() as made.stop,
            Display(console, made.config.steps, made.position.step, advance) as made.display,
        ):
            _train(made, console)
    console.print(f"{made.config.steps} steps done; model in {folder.final_model(out)}", highlight=False)


def _train(made: Run, console: Console) -> None:
    try:
        train(made)
    except Stopped:
        console.print(f"stopped and saved; the same command with --out {made.out} goes on", highlight=False)
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}); lower microbatch_tokens (now "
            f"{made.config.microbatch_tokens}) or, in a rollout, rollout.batch (now {made.config.rollout.batch}) and "
            "go on in the same folder; or, in another --out, set student.gradient_checkpointing=true"
        ) from None


def _base_sha256(made: Run) -> str | None:
    """Of the frozen base of adapters, which a checkpoint does not hold; None for a student without adapters."""
    return fingerprint(AdapterView(made.policy, None), made.tokenizer) if made.policy.adapters is not None else None


def _write_head(made: Run, problems: str, base: str | None) -> None:
    """config.yaml, and this session's entry of environment.json."""
    folder.write_config(made.out / "config.yaml", made.config)
    environment = {
        "began_at": made.position.name,
        "problems_sha256": problems,
        "student_sha256": fingerprint(made.policy, made.tokenizer),
        "teacher_sha256": fingerprint(made.targets["teacher"], made.tokenizer),
        **({"base_sha256": base, "peft": metadata.version("peft")} if base is not None else {}),
        **({"code_sha256": folder.sha256_of(made.config.code)} if made.config.code else {}),
    }
    folder.write_environment(made.out / "environment.json", **environment)
