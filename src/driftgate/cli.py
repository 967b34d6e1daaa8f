"""The command line: reads arguments, calls the library, and turns its errors into one line and an exit code."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .errors import InputError, RunError
from .stop import Stopped

if TYPE_CHECKING:
    from .config.exam import ExamSettings

HELP = "A laboratory and a trainer for on-policy distillation."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A laboratory and a trainer for on-policy distillation.",
)
console = Console()
if not console.is_terminal:
    console.width = 140  # tables in a log file need not fit a screen

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print tokens, memory and time, and stop.")]
MeanLength = Annotated[
    float, typer.Option(help="For --dry-run: expected length of a response, as a fraction of its limit.")
]


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """A context around work that Ctrl-C or SIGTERM may stop without loss."""
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        console.print(f"stopped; finished work is in {out}; the same command resumes it", highlight=False)
        raise Stopped from None


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `driftgate recipes`) or a .yaml file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: gate.tau=10 steps=50 ...")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; an existing one is resumed.")] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Use models, prompts and sizes of this family, such as qwen3, not the embedded pair's."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Ranks on this machine; torchrun starts them on several.")] = 1,
    dry_run: DryRun = False,
    mean_length: MeanLength = 0.3,
) -> None:
    """Train a recipe; resumes from the last checkpoint where the run folder has one."""
    from .estimate.training import memory_savings, print_training
    from .ranks import joined
    from .recipe import load_recipe
    from .train.command import run

    if dry_run:
        print_training(load_recipe(recipe, overrides, family), console, mean_length, processes)
        return
    if processes > 1 and "RANK" not in os.environ:
        from .launch import launch

        sys.exit(launch(processes, [sys.executable, "-m", "driftgate", *sys.argv[1:]]))
    folder = out or Path("runs", family or "", Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe)
    with joined() as world:
        savings = partial(memory_savings, processes=world.size)
        run(load_recipe(recipe, overrides, family), folder, console, savings=savings, world=world)


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run folder, a hub name, sandbox/student or sandbox/teacher.")
    ],
    benchmark: Annotated[
        list[str],
        typer.Option(
            help="lock16, lock19, lock22, lock25; math500, aime24, aime25, amc23, gsm8k from the hub, or NAME=FILE "
            "from a local copy; or your own file. Repeat for more."
        ),
    ],
    out: Out,
    samples: Annotated[int, typer.Option(help="Responses per problem.")] = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Default: 16384, or less where the context is shorter.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems of each benchmark.")] = None,
    seed: int = 0,
    batch: Annotated[int | None, typer.Option(help="Responses decoded at once. Default: as memory allows.")] = None,
    chat: Annotated[bool | None, typer.Option(help="Wrap problems in the tokenizer's chat template.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt: text with {problem}.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="A file with a Jinja chat template.")] = None,
    template_args: Annotated[str | None, typer.Option(help="For it: YAML, as {enable_thinking: false}.")] = None,
    verify: Annotated[
        str | None, typer.Option(help="Who says what is right: a kind, or YAML such as '{kind: number, tolerance: 1}'.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights. Default: a run's own, else float32.")] = None,
    compute: Annotated[str | None, typer.Option(help="bfloat16 for matrix products. Default: as --dtype.")] = None,
    device: str = "auto",
    server: Annotated[list[str] | None, typer.Option(help="A vLLM server that writes the samples. Repeat.")] = None,
) -> None:
    """pass@k, avg@n and maj@k of a model, with 95 % intervals over problems; the same command resumes after a stop."""
    from .evaluate.command import run_eval

    values = {"benchmarks": benchmark, "samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    values |= {"max_new_tokens": max_new_tokens, "limit": limit, "batch": batch}
    values |= {"chat": chat, "template": template, "system": system, "chat_template": chat_template}
    values |= {"engine": {"kind": "vllm", "urls": server}} if server else {}
    with resumable(out):
        settings = _exam(values, verify=verify, template_args=template_args)
        run_eval(model, settings, out, console, device, dtype, compute)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Out,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Only the adapter of a run with LoRA, not merged.")
    ] = False,
) -> None:
    """Write the model of a run to a folder that transformers loads; the adapter of a run with LoRA is merged."""
    from .train.export import export as write

    write(run, out, adapter)
    console.print(f"{'adapter' if adapter else 'model'} in {out}", highlight=False)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Rollout batches of each run.")] = None,
    seed: int = 0,
) -> None:
    """Train the embedded pair without and with Block64 gates, compare, and write a report. Takes minutes on 2 cores."""
    from .demo import run_demo

    with resumable(out):
        run_demo(out, console, steps, seed)


@app.command()
def compare(
    folders: Annotated[list[str], typer.Argument(help="Evaluation or run folders: the base, then the arms.")],
    seeds: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2, for {seed} in each folder.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="pass@k or avg@n; repeat. Default: pass@1, pass@8.")] = None,
    margin: Annotated[float, typer.Option(help="Largest difference that counts as equal, as a fraction of 1.")] = 0.02,
    out: Annotated[Path | None, typer.Option("--out", help="A .json file for all figures.")] = None,
) -> None:
    """Compare arms with a base: differences over seeds and problems, tests, equality, smallest detectable effect."""
    from .study.command import run_compare

    run_compare(folders, seeds, measure or ["pass@1", "pass@8"], margin, out, console)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study's .yaml file: arms, seeds, evaluation, claims.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; an existing one is resumed.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; default: one per GPU, else per core.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs, for several studies that share runs.")] = None,
    on: Annotated[
        str | None,
        typer.Option(help="ray: on the cluster at RAY_ADDRESS, or that this machine is part of."),
    ] = None,
    dry_run: DryRun = False,
    mean_length: MeanLength = 0.3,
) -> None:
    """Train and evaluate arms x seeds with all else equal; writes a table, plots, and a verdict per claim."""
    if dry_run:
        from .study.plan import print_plan

        print_plan(file, console, mean_length)
    else:
        from .study.runner import run_study

        folder = out or Path("runs", "studies", file.stem)
        with resumable(folder):
            run_study(file, folder, console, workers, runs, on)


@app.command()
def recipes() -> None:
    """List the shipped recipes: name, source, evidence (P paper, C public code, N readers' notes), one line each."""
    from rich.table import Table

    from .recipe import shipped_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True, min_width=32)  # so that a name can be copied
    for title in ("source", "evidence", ""):
        table.add_column(title)
    for name, about in shipped_recipes().items():
        table.add_row(f"[bold]{name}[/bold]", about.source, about.evidence, about.what)
    console.print(table, highlight=False)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed during the run, 2 wrong input, 130 stopped by the user."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        _run()
    except SystemExit as end:
        if "RANK" in os.environ:
            from .ranks import end_process

            end_process(end.code)
        raise


def _run() -> None:
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except Stopped:
        sys.exit(130)


def _exam(values: dict[str, Any], **as_yaml: str | None) -> "ExamSettings":
    """Settings from flags, those of as_yaml as YAML. Raises InputError that names the flag."""
    import yaml

    from .config.exam import ExamSettings
    from .recipe import checked

    for name, text in as_yaml.items():
        try:
            values |= {name: yaml.safe_load(text)} if text else {}
        except yaml.YAMLError as error:
            flag = f"--{name.replace('_', '-')} {text}"
            raise InputError(f"{flag}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return checked(ExamSettings, values)
    except InputError as error:
        raise InputError("\n".join(map(_as_flag, str(error).splitlines()))) from None


def _as_flag(line: str) -> str:
    """A problem with a setting, named as its flag."""
    name, space, rest = line.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}"


def _fail(error: Exception, code: int) -> None:
    print(f"driftgate: {error}", file=sys.stderr)
    sys.exit(code)
