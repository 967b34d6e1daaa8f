"""`driftgate train`: a run folder from nothing, or onward from its last checkpoint."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from ..config import TrainConfig
from ..errors import InputError, RunError
from ..recipe import run_code
from ..stop import Stopped, StopSignal
from ..world import Alone, World
from . import folder
from .build import build_run
from .display import Display
from .loop import train
from .run import Run


def run(
    config: TrainConfig,
    out: Path,
    console: Console,
    advance: Callable[[int], None] | None = None,
    world: World | None = None,
) -> None:
    """Train in `out`, which holds config.yaml, environment.json, metrics.jsonl, rollouts/ and checkpoints/ afterwards.

    advance: called for every so many steps that are done, those of earlier sessions included. world: the ranks that
    train together, all of which call this; rank 0 alone locks, writes and shows.
    Raises InputError before any compute for what the user must mend, RunError for a failure on the way.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    world = world or Alone()
    first = world.rank == 0
    begun = folder.lock(out) if first and out.is_dir() else None  # a new folder is made only once the input is checked
    run_code(config.code)
    made = build_run(folder.resolved_config(config, out), out, world)
    problems = folder.fingerprint_of_problems(made.prompts)
    folder.check_same_problems(out / "environment.json", problems)
    world.share(None)  # rank 0 writes only once all have read
    with begun or (folder.lock(out) if first else nullcontext()):
        if first:
            _write_head(made, problems)
        console = console if first else Console(quiet=True)
        if made.position.step or made.position.update:
            console.print(f"resuming {out} at {made.position.name}", highlight=False)
        with (
            made.grader,
            StopSignal() as made.stop,
            Display(console, made.config.steps, made.position.step, advance) as made.display,
        ):
            _train(made, console)
    if first:
        console.print(f"{made.config.steps} steps done; model in {folder.final_model(out)}", highlight=False)


def _train(made: Run, console: Console) -> None:
    try:
        try:
            train(made)
        finally:
            made.finish()
    except Stopped:
        console.print(f"stopped and saved; the same command with --out {made.out} goes on", highlight=False)
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}); lower microbatch_tokens (now "
            f"{made.config.microbatch_tokens}) or, in a rollout, rollout.batch (now {made.config.rollout.batch}) and "
            "go on in the same folder; or, in another --out, set student.gradient_checkpointing=true"
        ) from None


def _write_head(made: Run, problems: str) -> None:
    """config.yaml, and this session's entry of environment.json."""
    folder.write_config(made.out / "config.yaml", made.config)
    environment = {
        "began_at": made.position.name,
        "problems_sha256": problems,
        "ranks": made.world.size,
        **{f"{role}_sha256": value for role, value in made.fingerprints.items()},
        **({"code_sha256": folder.sha256_of(made.config.code)} if made.config.code else {}),
    }
    folder.write_environment(made.out / "environment.json", **environment)
