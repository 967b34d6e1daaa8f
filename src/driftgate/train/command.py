"""`driftgate train`: a run folder from nothing, or onward from its last checkpoint."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from ..config import TrainConfig
from ..data.held_out import write_held_out
from ..errors import InputError, RunError
from ..recipe import run_code
from ..stop import Stopped, StopSignal
from ..world import Alone, World
from . import folder
from .build import build_run
from .display import Display
from .loop import train
from .run import Run
from .shown import differences, lines_of, shown_prompts

Savings = Callable[[TrainConfig], Sequence[tuple[str, float]]]
"""Settings that would save GPU memory, the one that saves most first, with the bytes saved by estimate."""


def run(
    config: TrainConfig,
    out: Path,
    console: Console,
    advance: Callable[[int], None] | None = None,
    savings: Savings | None = None,
    world: World | None = None,
) -> None:
    """Train in `out`, which holds config.yaml, environment.json, metrics.jsonl, rollouts/ and checkpoints/ afterwards.

    advance: called for every so many steps that are done, those of earlier sessions included. savings: what the error
    about a full GPU's memory advises. world: the ranks that train together, all of which call this; rank 0 alone locks,
    writes and shows.
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
    if first:
        folder.check_same_base(out / "environment.json", made.fingerprints.get("base"))
        folder.check_same_served(out / "environment.json", made.served)
    world.share(None)  # rank 0 writes only once all have read
    with begun or (folder.lock(out) if first else nullcontext()):
        if first:
            _write_head(made, problems)
        console = console if first else Console(quiet=True)
        _announce(made, console)
        with (
            closing(made.engines),
            made.grader,
            StopSignal() as made.stop,
            Display(console, made.config.steps, made.position.step, advance) as made.display,
        ):
            _train(made, console, savings)
    if first:
        console.print(f"{made.config.steps} steps done; model in {folder.final_model(out)}", highlight=False)


def _announce(made: Run, console: Console) -> None:
    """What is to be known before the first step."""
    how = made.config, made.prompts, made.views
    begun = made.position.step or made.position.update
    lines = [f"resuming {made.out} at {made.position.name}"] if begun else []
    lines += made.problems.said
    taught = bool(made.config.teacher_roles)
    lines += [] if begun else lines_of(shown_prompts(*how), differences(*how), taught)
    lines += [made.shared.describe()] if made.shared is not None else []
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _train(made: Run, console: Console, savings: Savings | None) -> None:
    try:
        train(made)
        made.finish()
    except Stopped:
        made.finish()
        console.print(f"stopped and saved; the same command with --out {made.out} goes on", highlight=False)
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}). Go on in the same folder with a smaller "
            f"microbatch_tokens (now {made.config.microbatch_tokens}) or rollout.batch (now "
            f"{made.config.rollout.batch}){_advice(made.config, savings)}"
        ) from None


def _advice(config: TrainConfig, savings: Savings | None) -> str:
    """The settings in the order of what they would save; those that a resumed run may not change say so. Empty where
    nothing is known: an error about memory must not end in another error."""
    try:
        found = savings(config) if savings else []
    except Exception:  # whatever it is, the memory is what is full
        return ""
    lines = [f"{setting} ({saved / 1e9:,.3g} GB{_elsewhere(setting)})" for setting, saved in found if saved > 0]
    return f". What would save memory at the peak, by estimate: {', '.join(lines)}" if lines else ""


def _elsewhere(setting: str) -> str:
    """What to add to a setting that needs a new run folder."""
    name = setting.partition("=")[0]
    may_change = name.startswith("--") or name in folder.MAY_CHANGE
    return "" if may_change else ", in another --out"


def _write_head(made: Run, problems: str) -> None:
    """config.yaml, the problems held out, and this session's entry of environment.json."""
    folder.write_config(made.out / "config.yaml", made.config)
    write_held_out(made.out, made.problems.held_out)
    environment = {
        "began_at": made.position.name,
        "problems_sha256": problems,
        "problems_said": made.problems.said,
        "ranks": made.world.size,
        "prompts_shown": shown_prompts(made.config, made.prompts, made.views),
        **{f"{role}_sha256": value for role, value in made.fingerprints.items()},
        **({"served_teachers": folder.shown_served(made.served)} if made.served else {}),
        **({"peft": metadata.version("peft")} if made.policy.adapters is not None else {}),
        **({"code_sha256": folder.sha256_of(made.config.code)} if made.config.code else {}),
    }
    folder.write_environment(made.out / "environment.json", **environment)
