"""The command line: reads arguments, calls the library, turns its errors into one line and an exit code."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import InputError, RunError
from .train.stop import Stopped

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Gated on-policy distillation."
)
console = Console()
if not console.is_terminal:
    console.width = 140  # tables in a log need not fit a screen

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


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
    model: Annotated[str, typer.Argument(help="A model folder, a run folder, a hub name, or sandbox/student.")],
    benchmark: Annotated[list[str], typer.Option(help="lock16, lock19, lock22, lock25, or a .jsonl file; repeat.")],
    out: Out,
    samples: Annotated[int, typer.Option(help="Responses per problem.")] = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 16384, or what the context leaves.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each benchmark.")] = None,
    seed: int = 0,
    batch: Annotated[int, typer.Option(help="Responses decoded at once.")] = 256,
    chat: Annotated[bool | None, typer.Option(help="Wrap problems in the tokenizer's chat template.")] = None,
    template: Annotated[str | None, typer.Option(help="What the model is shown: text with {problem}.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: str = "auto",
) -> None:
    """pass@1 and pass@8 of a model, with 95 % intervals over problems; every sample goes to samples.jsonl."""
    from .evaluate.command import run_eval
    from .evaluate.evaluate import EvalSettings

    settings = EvalSettings(
        tuple(benchmark), samples, temperature, top_p, max_new_tokens, limit, seed, batch, template, chat
    )
    run_eval(model, settings, out, console, device, dtype)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Rollout batches of each run.")] = None,
    seed: int = 0,
) -> None:
    """Train the embedded pair without and with Block64 gates, compare, and write a report; minutes on two cores."""
    from .sandbox.demo import run_demo

    run_demo(out, console, steps, seed)


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
