"""The command line: reads arguments, calls the library, turns its errors into one line and an exit code."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import InputError, RunError
from .stop import Stopped

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Gated on-policy distillation."
)
console = Console()
if not console.is_terminal:
    console.width = 140  # tables in a log need not fit a screen

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Around what Ctrl-C or SIGTERM may cut off without loss."""
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        console.print(f"stopped; what is done is in {out}, and the same command goes on", highlight=False)
        raise Stopped from None


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `driftgate recipes`) or a .yaml file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: gate.tau=10 steps=50 ...")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; one that exists is resumed.")] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Models, prompts and sizes of qwen3/... where the recipe is on the embedded pair."),
    ] = None,
) -> None:
    """Train by a recipe; goes on from the last checkpoint where the run folder has one."""
    from .recipe import load_recipe
    from .train.run import run

    run(
        load_recipe(recipe, overrides, family),
        out or Path("runs", family or "", Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe),
        console,
    )


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run folder, a hub name, sandbox/student or sandbox/teacher.")
    ],
    benchmark: Annotated[
        list[str],
        typer.Option(
            help="lock16, lock19, lock22, lock25; math500, aime24, aime25, amc23, gsm8k from the hub, or NAME=FILE "
            "from a local copy; or a .jsonl of your own. Repeat for more."
        ),
    ],
    out: Out,
    samples: Annotated[int, typer.Option(help="Responses per problem.")] = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 16384, or what the context leaves.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each benchmark.")] = None,
    seed: int = 0,
    batch: Annotated[int | None, typer.Option(help="Responses decoded at once. Default: as memory allows.")] = None,
    chat: Annotated[bool | None, typer.Option(help="Wrap problems in the tokenizer's chat template.")] = None,
    template: Annotated[str | None, typer.Option(help="What the model is shown: text with {problem}.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the weights. Default: a run folder's, as trained; else float32.")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="bfloat16 for matrix products. Default: as --dtype's.")] = None,
    device: str = "auto",
) -> None:
    """pass@k, avg@n and maj@k of a model, with 95 % intervals over problems; the same command goes on after a stop."""
    from .evaluate.command import exam_of_flags, run_eval

    exam = exam_of_flags(
        benchmarks=tuple(benchmark),
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        limit=limit,
        seed=seed,
        batch=batch,
        template=template,
        chat=chat,
    )
    with resumable(out):
        run_eval(model, exam, out, console, device, dtype, compute)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Rollout batches of each run.")] = None,
    seed: int = 0,
) -> None:
    """Train the embedded pair without and with Block64 gates, compare, and write a report; minutes on two cores."""
    from .demo import run_demo

    with resumable(out):
        run_demo(out, console, steps, seed)


@app.command()
def compare(
    folders: Annotated[list[str], typer.Argument(help="Evaluation or run folders: the base, then the arms.")],
    seeds: Annotated[str | None, typer.Option(help="Training seeds, as 0,1,2, put for {seed} in each folder.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="pass@k or avg@n; repeat. Default: pass@1, pass@8.")] = None,
    margin: Annotated[float, typer.Option(help="What counts as equal, as a fraction of 1.")] = 0.02,
    out: Annotated[Path | None, typer.Option("--out", help="A .json file for all figures.")] = None,
) -> None:
    """Arms against a base: differences over seeds and problems, tests, equality, and what could have been seen."""
    from .study.command import run_compare

    run_compare(folders, seeds, measure or ["pass@1", "pass@8"], margin, out, console)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study's .yaml file: arms, seeds, examination, claims.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; one that exists is resumed.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; default: one per GPU, else per core.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs, where several studies share some.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print runs, tokens, memory and time, and stop.")] = False,
    mean_length: Annotated[
        float, typer.Option(help="For --dry-run: a response's expected length, as a fraction of its limit.")
    ] = 0.3,
) -> None:
    """Train and examine arms x seeds with everything else locked; table, plots, and a verdict per claim."""
    if dry_run:
        from .study.plan import print_plan

        print_plan(file, console, mean_length)
    else:
        from .study.runner import run_study

        folder = out or Path("runs", "studies", file.stem)
        with resumable(folder):
            run_study(file, folder, console, workers, runs)


@app.command()
def recipes() -> None:
    """List the shipped recipes: name, source, evidence (P paper, C public code, N readers' notes), one line."""
    from rich.table import Table

    from .recipe import shipped_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True, min_width=32)  # a name is there to be copied
    for title in ("source", "evidence", ""):
        table.add_column(title)
    for name, about in shipped_recipes().items():
        table.add_row(f"[bold]{name}[/bold]", about.source, about.evidence, about.what)
    console.print(table, highlight=False)


def main() -> None:
    """Exit codes: 0 done, 1 failed on the way, 2 wrong input, 130 stopped by the user."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except Stopped:
        sys.exit(130)


def _fail(error: Exception, code: int) -> None:
    print(f"driftgate: {error}", file=sys.stderr)
    sys.exit(code)
